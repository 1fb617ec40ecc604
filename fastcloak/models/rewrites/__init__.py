"""Rewrites of a network that make it faster, or a better surrogate."""
