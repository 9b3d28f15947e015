"""Experiments that reproduce published studies."""
