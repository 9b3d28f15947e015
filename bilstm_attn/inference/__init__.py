"""Using a trained model: metrics, evaluation, prediction, the exported file."""
