"""Bidirectional LSTMs with attention for text, in JAX and Flax."""

__version__ = "0.1.0"
