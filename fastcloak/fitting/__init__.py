"""Learning: photos of a person -> a cloak."""
