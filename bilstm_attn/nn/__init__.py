"""The model: modules with the equations, and the kernels behind them."""
