"""A real ipykernel, driven as a front end drives one."""
