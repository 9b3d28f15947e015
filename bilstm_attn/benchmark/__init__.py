"""Speed comparison with Flax, Keras and PyTorch implementations of the same model."""
