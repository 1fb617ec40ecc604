"""Triton twins of the hot operations in `fastcloak.reference`, under the same names and signatures."""
