"""What keeps the tests on this machine; the folder is put on PYTHONPATH for child processes."""
