"""Face-embedding networks: loading them, and preparing them for the loop."""

from fastcloak.models.load import load_model
from fastcloak.models.rewrites.dropout import with_dropout
from fastcloak.models.rewrites.prepare import prepare
from fastcloak.models.surrogate import Surrogate, unit_features

__all__ = ["Surrogate", "load_model", "prepare", "unit_features", "with_dropout"]
