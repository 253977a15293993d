"""JupyterLab in Chromium."""
