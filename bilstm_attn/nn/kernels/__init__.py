"""Compiled LSTM kernels, called from `recurrence.py`."""
