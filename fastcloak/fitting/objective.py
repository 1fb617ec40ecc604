"""What the loop ascends: how far cloaked photos are from the person's hull, and its gradient.

A `Gradient` takes the pictures that are shown and says their loss and gradient. `HullDistance` is the objective of one
network; each booster wraps a `Gradient` and is one: `combined` (several networks), `through_views` and `in_grey`.

Dimension letters: P persons, N photos of one person, b photos in a batch, D feature length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

from fastcloak.fitting.options import FitConfig
from fastcloak.models import Surrogate
from fastcloak.ops.augment import Views
from fastcloak.ops.hull import build_hull

TINY = 1e-30
"""Smallest mean |g| that a gradient is divided by: an all-zero gradient stays zero."""
EARLIER = 64
"""Faces tailored before from which those of a pass are kept apart."""
SHARPNESS = 0.1
"""Difference of two cosines at which the more similar face is pushed away from e times as strongly."""


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
    """Distance of a network's unit features from the hulls of P persons with N photos each.

    In an album it is also the distance from the faces that look most alike, see `Apart`.
    """

    def __init__(
        self,
        surrogate: Surrogate,
        forward: Callable[[Tensor], Tensor],
        config: FitConfig,
        ops: ModuleType,
        persons: int,
        photos: int,
        apart: Apart | None = None,
    ) -> None:
        """Allocate the hulls in the features of a surrogate.

        Args:
            forward: gives its raw embeddings of pictures.
            apart: what keeps the persons apart, who then have one photo each.
        """
        self.name, self.size, self.forward = surrogate.name, surrogate.embedding_size, forward
        self.config, self.ops, self.apart = config, ops, apart
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
            seen = features.detach()
            loss, slope, gap = self._loss(seen, batch, batch.objective, self.center)
            if self.apart is not None:
                alike, push, _ = self._loss(seen, batch, "fi_uap_plus", self.apart.others(seen[:, 0]))
                loss, slope = loss + alike, slope + push
            (grads,) = torch.autograd.grad(features, leaf, slope, allow_unused=True)
        if grads is None:
            raise ValueError(
                f"{self.name} must be differentiable with respect to the pictures, got an output without a gradient; "
                "remove no_grad, detach, numpy and rounding from it"
            )
        return loss, gap, grads.view(*batch.index.shape, *pictures.shape[1:])

    def _loss(self, features: Tensor, batch: Batch, objective: str, center: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        config, hull = self.config, (self.points, self.gram, center)
        return self.ops.hull_loss(  # type: ignore[no-any-return]
            features, *hull, batch.index, objective, config.lower, config.upper
        )


class Apart:
    """What drives the faces of an album away from those that one network finds most alike to them.

    The loss of face i is <z_i, o_i>, where o_i is the mean of the other faces' unit features, weighted by a softmax of
    their cosines to it: who is searched for is found by the nearest photo, not by the mean of all.
    """

    def __init__(self, size: int, strength: float, together: Tensor) -> None:
        """Allocate; D is `size`, and `together`, [P, P], is 1 for two faces that are kept apart from each other."""
        self.strength, self.together = strength, together
        self.earlier = torch.zeros(EARLIER, size, dtype=torch.float32, device=together.device)
        self.known = torch.zeros(len(together), EARLIER, dtype=torch.float32, device=together.device)

    def begin(self, earlier: Tensor, alike: Tensor | None = None) -> None:
        """Start a pass.

        Args:
            earlier: [E, D] unit features of faces that were tailored before, E <= `EARLIER`.
            alike: [P, E] bool, from which of them each face is kept apart; None: from all.
        """
        for buffer in (self.earlier, self.known):
            buffer.zero_()
        self.earlier[: len(earlier)] = earlier
        self.known[:, : len(earlier)] = 1 if alike is None else alike

    def others(self, features: Tensor) -> Tensor:
        """The weighted means o times the strength, [P, D], of features [P, D]; zero where there are no others."""
        units = F.normalize(features.float(), dim=-1)
        everyone = torch.cat((units, self.earlier))
        there = torch.cat((self.together, self.known), 1)
        alike = torch.exp((units @ everyone.T - 1) / SHARPNESS) * there
        return self.strength * (alike / alike.sum(1, keepdim=True).clamp_min(TINY)) @ everyone


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


def through_views(gradient: Gradient, names: tuple[str, ...], faces: Tensor, place: Tensor | None = None) -> Gradient:
    """A random view of each picture is shown.

    Args:
        faces: [P, N, 3, H, W], the pictures without a mask.
        place: [P, 2, 3], where in the pictures of a person the aligned face lies; None: they are aligned faces.
    """
    views = Views(names, faces.device)
    persons = torch.arange(len(faces), device=faces.device)[:, None]

    def seen(pictures: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        leaf = pictures.detach().requires_grad_()
        places = None if place is None else place.repeat_interleave(batch.index.shape[1], 0)
        clean = faces[persons, batch.index].flatten(0, 1)
        view = views(leaf, clean, batch.chance.flatten(0, 1), places)
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
