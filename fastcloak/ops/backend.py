"""What computes the hot operations: "reference" (PyTorch) or "triton". The only importer of `fastcloak.kernels`."""

from __future__ import annotations

import logging
import os
from importlib import import_module
from types import ModuleType

import torch

from fastcloak.ops import reference

log = logging.getLogger("fastcloak")

BACKENDS = ("auto", "reference", "triton")


def resolve_backend(backend: str, device: torch.device) -> tuple[str, ModuleType]:
    """The backend for `device`, by name and as the module of the four operations.

    "auto" is triton on CUDA if a trial of its kernels succeeds there, else reference, with a warning.

    Args:
        backend: "reference", "triton" or "auto". triton runs on a CPU only in Triton's interpreter, a slow means of
            testing (TRITON_INTERPRET=1).
        device: of the tensors.

    Raises:
        ValueError: an unknown name, or an explicit wish that cannot be met.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "reference" or (backend == "auto" and device.type != "cuda"):
        return "reference", reference
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"backend 'triton' needs a CUDA device, got {device}; use 'reference' or 'auto'")
    try:
        # Not an import statement: setup.py installs kernels/ as fastcloak.kernels, which type checkers cannot know, and
        # Triton is not on every platform.
        kernels = import_module("fastcloak.kernels")
        _try(kernels, device)
    except Exception as error:  # compilers and drivers raise anything
        reason = f"{type(error).__name__}: {str(error).strip()[:300]}"
        if backend == "triton":
            raise ValueError(
                f"backend 'triton' does not work on {device}, use 'reference' or 'auto' ({reason})"
            ) from error
        log.warning("Triton kernels do not work on %s, PyTorch computes instead, slower (%s)", device, reason)
        return "reference", reference
    return "triton", kernels


def holds(ops: ModuleType, photos: int, size: int) -> bool:
    """Whether the operations can take a hull of N photos with embeddings of this size; reference takes any."""
    if ops is reference:
        return True
    limits = import_module("fastcloak.kernels.hull")
    return bool(photos <= limits.LARGEST_K and size <= limits.LARGEST_D)


def capturable(ops: ModuleType, objective: str) -> bool:
    """Whether a CUDA graph can hold the operations; the reference finds convex hulls with LAPACK's, which may wait."""
    return ops is not reference or objective != "convex_hull"


def _try(kernels: ModuleType, device: torch.device) -> None:
    """Runs the smallest case of every operation and compares it with a number worked out by hand."""
    faces = torch.full((1, 1, 3, 4, 4), 0.25, device=device)
    acc, velocity, delta, delta_in = (torch.zeros(1, 3, 4, 4, device=device) for _ in range(4))
    index = torch.zeros(1, 1, dtype=torch.int64, device=device)
    out = torch.zeros_like(faces)
    kernels.cloak_batch_(faces, delta_in, index, out)
    kernels.accumulate_step_(out, acc, delta_in, 0.25, 0.5)
    kernels.outer_step_(acc, velocity, delta, delta_in, 0.25, 0.5)
    points = torch.tensor([[[-1.0, 0.0], [1.0, 0.0]]], device=device)
    features = torch.tensor([[[0.0, 2.0]]], device=device)
    loss, _, _ = kernels.hull_loss(
        features, points, (points @ points.mT).double(), torch.zeros(1, 2, device=device), index, "convex_hull"
    )
    if delta.sum().item() != 12 or abs(loss.item() - 1) > 1e-5:
        raise RuntimeError(f"wrong results: {delta.sum().item():g} instead of 12, {loss.item():g} instead of 1")
