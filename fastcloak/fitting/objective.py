"""A network whose loss the loop ascends: its hulls, its loss and the gradient with respect to what it sees.

Dimension letters: P persons, N photos of one person, b photos in a batch, D feature length.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch

from fastcloak.fitting.options import FitConfig
from fastcloak.models import Surrogate
from fastcloak.ops.hull import Hull

RIDGE = 1e-3
"""Keeps the log-determinant of features that nearly agree from outweighing everything else."""


class Member:
    """A surrogate, or one of an ensemble, with the hulls of P persons with N photos each in its features."""

    def __init__(
        self, surrogate: Surrogate, forward: Callable[[torch.Tensor], torch.Tensor], persons: int, photos: int
    ) -> None:
        """Allocate the buffers.

        Args:
            surrogate: whose features the hulls are in.
            forward: pictures as the loop's buffer holds them -> raw embeddings.
            persons: P.
            photos: N.
        """
        self.name, self.size, self.forward = surrogate.name, surrogate.embedding_size, forward
        self.points = torch.zeros(persons, photos, self.size, dtype=torch.float32, device=surrogate.device)
        self.gram = torch.zeros(persons, photos, photos, device=surrogate.device, dtype=torch.float64)
        self.center = torch.zeros(persons, self.size, dtype=torch.float32, device=surrogate.device)
        # [P, N, D], the unit feature of each photo when it was last shown cloaked
        self.last = torch.zeros_like(self.points)

    def set_hull(self, hull: Hull) -> None:
        """Take over the hulls of P persons."""
        for buffer, value in ((self.points, hull.points), (self.gram, hull.gram), (self.center, hull.center)):
            buffer.copy_(value)

    def gradient(
        self, pictures: torch.Tensor, index: torch.Tensor, objective: str, config: FitConfig, ops: ModuleType
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Forward and backward pass.

        Args:
            pictures: [P b, 3, 112, 112], a leaf that requires a gradient.
            index: [P, b] int64, which photos these are.
            objective: of `fastcloak.fitting.options.OBJECTIVES`.
            config: bounds of the hull weights, and spread.
            ops: the module with the hot operations.

        Returns:
            Loss [P, b], duality gap [P, b] and gradient [P, b, 3, 112, 112] with respect to `pictures`.

        Raises:
            ValueError: the network has no gradient with respect to the pictures.
        """
        features = self.forward(pictures).view(*index.shape, -1)
        if not features.requires_grad:
            raise ValueError(self._no_gradient())
        raw = features.detach()
        loss, slope, gap = ops.hull_loss(
            raw, self.points, self.gram, self.center, index, objective, config.lower, config.upper
        )
        if config.spread:
            slope = slope + config.spread * spread_slope(raw, self.last, index)
        (grads,) = torch.autograd.grad(features, pictures, slope, allow_unused=True)
        if grads is None:
            raise ValueError(self._no_gradient())
        return loss, gap, grads.view(*index.shape, *pictures.shape[1:])

    def _no_gradient(self) -> str:
        return (
            f"{self.name} must be differentiable with respect to the pictures, got an output without a gradient; "
            "remove no_grad, detach, numpy and rounding from it"
        )


def spread_slope(features: torch.Tensor, last: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Gradient of log det(Z Z^T + RIDGE I), the volume that a person's cloaked photos span, by raw features.

    Args:
        features: [P, b, D] float, raw; as unit features they first replace their rows in Z.
        last: [P, N, D] float32, Z, the unit feature of each photo when it was last shown cloaked; changed in place.
        index: [P, b] int64, the rows.

    Returns:
        [P, b, D] like `features`.

    Source: the log-determinant as a measure of spread: Kulesza and Taskar, 2012 (determinantal point processes).
    """
    f = features.float()
    norm = torch.linalg.vector_norm(f, dim=-1, keepdim=True)
    z = f / norm
    rows = index[..., None].expand_as(z)
    last.scatter_(1, rows, z)
    exact = last.double()
    gram = exact @ exact.mT + RIDGE * torch.eye(exact.shape[1], dtype=exact.dtype, device=exact.device)
    inverse, _ = torch.linalg.inv_ex(gram)
    slope = (2 * inverse @ exact).to(f.dtype).gather(1, rows)
    through: torch.Tensor = (slope - z * (slope * z).sum(-1, keepdim=True)) / norm
    return through.to(features.dtype)
