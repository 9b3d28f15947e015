"""The machine: devices, processes, caches, files, the terminal."""
