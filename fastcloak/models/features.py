"""Unit features of many faces."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from fastcloak.device import check_fork
from fastcloak.models.surrogate import Surrogate


def unit_features(surrogate: Surrogate, faces: torch.Tensor, batch_size: int = 32) -> torch.Tensor:
    """Embeds faces and divides each embedding by its length.

    Args:
        surrogate: what `load_model` returns.
        faces: [n, 3, 112, 112] float in [0, 1], on any device.
        batch_size: faces per forward pass, at least 1.

    Returns:
        [n, D] float32 on the surrogate's device, rows of length 1, without a graph.

    Raises:
        ValueError: another batch size, or a network that does not give one embedding a face.
        FloatingPointError: an embedding is NaN, Inf or zero; names the surrogate and the face.
    """
    check_fork()
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number >= 1, got {batch_size!r}")
    with torch.no_grad():
        batches = torch.split(faces, batch_size)
        embeddings = torch.cat([surrogate(batch.to(surrogate.device)) for batch in batches])
    if len(embeddings) != len(faces):
        raise ValueError(
            f"{surrogate.name} must give every picture its own embedding, whatever else is in the batch, got "
            f"{len(embeddings)} for {len(faces)} faces in batches of {batch_size}; check what its function does with "
            "the first dimension"
        )
    length = torch.linalg.vector_norm(embeddings, dim=1)
    bad = ~(length.isfinite() & (length > 0))
    if bad.any():
        raise FloatingPointError(
            f"{surrogate.name} must give finite embeddings other than zero, got {embeddings[bad][0].tolist()[:4]} ... "
            f"for face {int(bad.nonzero()[0])}; check the network, its scale and shift"
        )
    return normalize(embeddings, dim=1)
