"""Training: objectives, optimiser, step, loop, checkpoints, run folders."""
