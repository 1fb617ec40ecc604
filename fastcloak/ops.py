"""What computes the hot operations: "reference" (PyTorch) or "triton". The only importer of `fastcloak.kernels`."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import torch

from fastcloak import reference

# Not an import statement: setup.py installs kernels/ as fastcloak.kernels, which type checkers cannot know.
kernels = import_module("fastcloak.kernels")

BACKENDS = ("auto", "reference", "triton")


def resolve_backend(backend: str, device: torch.device) -> tuple[str, ModuleType]:
    """The backend that will run on `device`, by name and as the module that holds the four operations.

    Args:
        backend: "reference", "triton", or "auto" for the fastest that works on `device`.
        device: where the tensors live.

    Raises:
        ValueError: an unknown name, or an explicit wish that cannot be met.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    missing = [name for name in reference.__all__ if not hasattr(kernels, name)]
    if backend == "triton" and missing:
        raise ValueError(
            f"backend 'triton' is not available: this version has no kernel for {', '.join(missing)}; use 'reference'"
        )
    if backend == "triton" or (backend == "auto" and device.type == "cuda" and not missing):
        return "triton", kernels
    return "reference", reference
