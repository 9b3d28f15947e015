"""The model: NNX modules with the equations, and compiled kernels."""
