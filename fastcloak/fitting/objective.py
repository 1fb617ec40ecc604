"""What the loop ascends: how far cloaked photos are from the person's hull, and its gradient.

A `Gradient` takes the pictures that are shown and says their loss and gradient. `HullDistance` is the objective of one
network; each booster wraps a `Gradient` and is one: `combined` (several networks), `through_views`, `in_grey`.

Dimension letters: P persons, N photos of one person, b photos in a batch, D feature length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from fastcloak.fitting.options import FitConfig
from fastcloak.models import Surrogate
from fastcloak.ops.augment import Views
from fastcloak.ops.hull import build_hull

TINY = 1e-30
"""Smallest mean |g| that a gradient is divided by: an all-zero gradient stays zero."""


@dataclass(frozen=True)
class Batch:
    """What is shown in an inner step, besides the pictures.

    Attributes:
        index: [P, b] int64, which photos they are.
        chance: [P, b, DRAWS], the numbers of their views.
        objective: of `fastcloak.fitting.options.OBJECTIVES`.
        turn: which network's turn it is.
    """

    index: Tensor
    chance: Tensor
    objective: str
    turn: int


Gradient = Callable[[Tensor, Batch], tuple[Tensor, Tensor, Tensor]]
"""Pictures [P b, 3, 112, 112] -> loss [P, b], duality gap [P, b] and gradient [P, b, 3, 112, 112]."""


class HullDistance:
    """Distance of a network's unit features from the hulls of P persons with N photos each."""

    def __init__(
        self,
        surrogate: Surrogate,
        forward: Callable[[Tensor], Tensor],
        config: FitConfig,
        ops: ModuleType,
        persons: int,
        photos: int,
    ) -> None:
        """Allocate the hulls in the features of a surrogate; `forward` gives its raw embeddings of pictures."""
        self.name, self.size, self.forward = surrogate.name, surrogate.embedding_size, forward
        self.config, self.ops = config, ops
        self.points = torch.zeros(persons, photos, self.size, dtype=torch.float32, device=surrogate.device)
        self.gram = torch.zeros(persons, photos, photos, device=surrogate.device, dtype=torch.float64)
        self.center = torch.zeros(persons, self.size, dtype=torch.float32, device=surrogate.device)

    def begin(self, features: Tensor) -> None:
        """Build the hulls of clean unit features, [P, N, D]."""
        hull = build_hull(features, self.config.objective)
        for buffer, value in ((self.points, hull.points), (self.gram, hull.gram), (self.center, hull.center)):
            buffer.copy_(value)

    def __call__(self, pictures: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """As `Gradient`.

        Raises:
            ValueError: the network has no gradient with respect to the pictures.
        """
        leaf = pictures.detach().requires_grad_()
        features = self.forward(leaf).view(*batch.index.shape, -1)
        grads = None
        if features.requires_grad:
            loss, slope, gap = self.ops.hull_loss(
                features.detach(),
                self.points,
                self.gram,
                self.center,
                batch.index,
                batch.objective,
                self.config.lower,
                self.config.upper,
            )
            (grads,) = torch.autograd.grad(features, leaf, slope, allow_unused=True)
        if grads is None:
            raise ValueError(
                f"{self.name} must be differentiable with respect to the pictures, got an output without a gradient; "
                "remove no_grad, detach, numpy and rounding from it"
            )
        return loss, gap, grads.view(*batch.index.shape, *pictures.shape[1:])


def combined(networks: Sequence[Gradient], in_turns: bool) -> Gradient:
    """Several networks: the sum of their gradients, each divided by its own size; in turns, of one of them."""

    def gradient(pictures: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        asked = [networks[batch.turn % len(networks)]] if in_turns else networks
        losses, gaps, slopes = zip(*(network(pictures, batch) for network in asked), strict=True)
        grads = torch.stack([_scale_free(slope) for slope in slopes]).sum(0)
        return torch.stack(losses).mean(0), torch.stack(gaps).amax(0), grads

    return gradient


def _scale_free(grads: Tensor) -> Tensor:  # [P, b, 3, 112, 112]
    size = grads.mean(1, keepdim=True).abs().mean((2, 3, 4), keepdim=True)
    return grads / size.clamp_min(TINY)


def through_views(gradient: Gradient, names: tuple[str, ...], faces: Tensor) -> Gradient:
    """A random view of each picture is shown; `faces`, [P, N, 3, 112, 112], are the same without a mask."""
    views = Views(names, faces.device)
    rows = torch.arange(len(faces), device=faces.device)[:, None]

    def seen(pictures: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        leaf = pictures.detach().requires_grad_()
        view = views(leaf, faces[rows, batch.index].flatten(0, 1), batch.chance.flatten(0, 1))
        loss, gap, grads = gradient(view, batch)
        (grads,) = torch.autograd.grad(view, leaf, grads.view_as(view))
        return loss, gap, grads.view(*batch.index.shape, *pictures.shape[1:])

    return seen


def in_grey(gradient: Gradient, channels: Tensor) -> Gradient:
    """The gradient of a mask of three equal channels, of pictures that are faces times `channels`, [3, 1, 1]."""

    def grey(pictures: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        loss, gap, grads = gradient(pictures, batch)
        total = (channels * grads.float()).sum(-3, keepdim=True)
        return loss, gap, torch.empty_like(grads).copy_(total / (3 * channels))

    return grey
