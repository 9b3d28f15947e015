"""Attributions: computing them, measuring their faithfulness, rendering them."""
