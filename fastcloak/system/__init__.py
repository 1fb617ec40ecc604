"""The machine: devices, files, installed packages."""
