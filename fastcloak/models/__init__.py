"""Face-embedding networks: loading them, and preparing them for the loop."""

from fastcloak.models.dropout import with_dropout
from fastcloak.models.features import unit_features
from fastcloak.models.load import load_model
from fastcloak.models.prepare import prepare
from fastcloak.models.surrogate import Surrogate

__all__ = ["Surrogate", "load_model", "prepare", "unit_features", "with_dropout"]
