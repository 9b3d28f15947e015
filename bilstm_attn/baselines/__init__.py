"""Simple models that any result is compared with."""
