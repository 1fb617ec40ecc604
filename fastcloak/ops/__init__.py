"""The hot operations: their reference, their backends, how they are launched."""
