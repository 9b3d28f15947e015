"""Simple models to compare results with."""
