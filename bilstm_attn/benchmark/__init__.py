"""Ours beside what a user would otherwise pick, at the same work."""
