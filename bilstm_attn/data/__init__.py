"""Reviews to seeded, length-bucketed batches: sources, token cache, batches."""
