"""Compiled kernels behind the seam of `recurrence.py`."""
