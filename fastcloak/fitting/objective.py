"""What the loop ascends: how far cloaked photos are from the person's hull, and its gradient.

A `Gradient` takes the pictures that are shown and says their loss and gradient. `HullDistance` is the objective of one
network, `combined` that of several.

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
from fastcloak.ops.hull import build_hull
from fastcloak.ops.reference import TINY

EARLIER = 64
"""Faces tailored before from which those of a pass are kept apart."""
SHARPNESS = 0.1
"""Difference of two cosines at which the more similar face is pushed away from e times as strongly."""

Gradient = Callable[[Tensor, Tensor, str], tuple[Tensor, Tensor, Tensor]]
"""Pictures as networks take them, [P b, 3, 112, 112], which photos they are, [P, b], and the objective -> loss [P, b],
duality gap [P, b] and gradient [P, b, 3, 112, 112]."""


@dataclass(frozen=True, eq=False)
class Turn:
    """What an inner step asks for its gradient, and what it takes.

    Attributes:
        gradient: of one network or several.
        pictures: [P, b, 3, 112, 112], the buffer it reads, in the dtype and memory format that it takes.
        scale, shift: [3] float32, what it takes is faces * scale + shift.
    """

    gradient: Gradient
    pictures: Tensor
    scale: Tensor | None = None
    shift: Tensor | None = None


class HullDistance:
    """Distance of a network's unit features from the hulls of P persons with N photos each.

    In an album, whose objective is fi_uap_plus, -<z, c>, it is also the distance from the faces that look most alike:
    c is then the person's center plus what `Apart` gives.
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

    def __call__(self, pictures: Tensor, index: Tensor, objective: str) -> tuple[Tensor, Tensor, Tensor]:
        """As `Gradient`.

        Raises:
            ValueError: the network has no gradient with respect to the pictures.
        """
        leaf = pictures.detach().requires_grad_()
        features = self.forward(leaf).view(*index.shape, -1)
        grads = None
        if features.requires_grad:
            seen, center, config = features.detach(), self.center, self.config
            if self.apart is not None:
                center = self.apart.center(seen[:, 0], center)
            loss, slope, gap = self.ops.hull_loss(
                seen, self.points, self.gram, center, index, objective, config.lower, config.upper
            )
            (grads,) = torch.autograd.grad(features, leaf, slope, allow_unused=True)
        if grads is None:
            raise ValueError(
                f"{self.name} must be differentiable with respect to the pictures, got an output without a gradient; "
                "remove no_grad, detach, numpy and rounding from it"
            )
        return loss, gap, grads.view(*index.shape, *pictures.shape[1:])


class Apart:
    """What drives the faces of an album away from those that one network finds most alike to them.

    The loss of face i is <z_i, o_i>, where o_i is the mean of the other faces' unit features, weighted by a softmax of
    their cosines to it: who is searched for is found by the nearest photo, not by the mean of all.
    """

    def __init__(self, ops: ModuleType, size: int, strength: float, together: Tensor) -> None:
        """Allocate; D is `size`, and `together`, [P, P], is 1 for two faces that are kept apart from each other."""
        self.ops, self.strength, self.together = ops, strength, together
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

    def center(self, features: Tensor, center: Tensor) -> Tensor:
        """The centers plus the means o times the strength, all [P, D]; o is zero where there are no others."""
        others = self.earlier, self.together, self.known
        return self.ops.apart_center(features, *others, center, self.strength, SHARPNESS)  # type: ignore[no-any-return]


def combined(networks: Sequence[Gradient]) -> Gradient:
    """Several networks: the sum of their gradients, each divided by its own size."""

    def gradient(pictures: Tensor, index: Tensor, objective: str) -> tuple[Tensor, Tensor, Tensor]:
        losses, gaps, slopes = zip(*(network(pictures, index, objective) for network in networks), strict=True)
        grads = torch.stack([_scale_free(slope) for slope in slopes]).sum(0)
        return torch.stack(losses).mean(0), torch.stack(gaps).amax(0), grads

    return gradient


def _scale_free(grads: Tensor) -> Tensor:  # [P, b, 3, 112, 112]
    size = grads.mean(1, keepdim=True).abs().mean((2, 3, 4), keepdim=True)
    return grads / size.clamp_min(TINY)
