"""Protecting: a cloak and photos -> protected photos."""
