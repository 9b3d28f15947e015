"""Services of the machine: devices, processes, caches, files and the terminal."""
