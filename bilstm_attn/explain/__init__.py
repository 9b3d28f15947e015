"""Attributions, how far to believe them, and pictures of them."""
