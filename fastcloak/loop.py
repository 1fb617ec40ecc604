"""The loops of OPOM and GA-OPOM for P persons with N photos each, on buffers that never move.

Dimension letters: P persons, N photos of one person, b photos in a batch, D feature length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import numpy as np
import torch

from fastcloak.cloak import SHAPE
from fastcloak.config import FitConfig
from fastcloak.engine import Progress, launchers, network
from fastcloak.hull import build_hull
from fastcloak.models import Surrogate


@dataclass(frozen=True)
class Learnt:
    """What one pass learnt, on its device.

    Attributes:
        delta: [P, 3, 112, 112] float32.
        losses: [steps, P], mean over the photos of the step.
        gap: [P], largest duality gap of any hull weights.
        moved: [P] bool, whether any gradient was other than zero.
    """

    delta: torch.Tensor
    losses: torch.Tensor
    gap: torch.Tensor
    moved: torch.Tensor


class Loop:
    """The loop of one pass. It can learn several passes of P persons with N photos each, one after the other.

    Everything that a step reads and writes is allocated once, in the memory format that the network takes, and the
    photo indices of all steps lie on the device: a step is a fixed sequence of launches, which an engine may capture.
    """

    def __init__(
        self, surrogate: Surrogate, config: FitConfig, ops: ModuleType, engine: str, persons: int, photos: int
    ) -> None:
        """Allocate the buffers.

        Args:
            surrogate: a prepared one; its device is the loop's.
            config: what decides the cloak.
            ops: the module with the hot operations, see `fastcloak.ops`.
            engine: what `resolve_engine` returned.
            persons: P.
            photos: N.
        """
        self.surrogate, self.config, self.ops, self.engine = surrogate, config, ops, engine
        self.persons, self.photos, self.batch = persons, photos, config.batch(photos)
        self.eps = float32_at_most(config.eps)
        device = surrogate.device
        dtype, memory_format = surrogate.takes

        def pictures(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            flat = torch.empty(math.prod(size), *SHAPE, dtype=dtype, device=device, memory_format=memory_format)
            return flat.zero_().view(*size, *SHAPE)

        self.start, self.order = _draws(config, photos, device)
        self.faces = pictures(persons, photos)
        self.delta, self.delta_in, self.acc, self.velocity = (pictures(persons) for _ in range(4))
        self.pictures = pictures(persons, self.batch, dtype=dtype)
        self.scale, self.shift = surrogate.scale.flatten(), surrogate.shift.flatten()
        self.embed = network(engine, surrogate.embed)

        D, K = surrogate.embedding_size, photos
        self.points = torch.zeros(persons, K, D, device=device)
        self.gram = torch.zeros(persons, K, K, device=device, dtype=torch.float64)
        self.center = torch.zeros(persons, D, device=device)
        self.index = torch.zeros(config.inner(), persons, self.batch, dtype=torch.int64, device=device)
        self.loss, self.gap = (torch.zeros(persons, device=device) for _ in range(2))
        self.moved = torch.zeros(persons, dtype=torch.bool, device=device)
        self.launchers: dict[Hashable, Callable[[], None]] = {}

    def learn(self, faces: torch.Tensor, features: torch.Tensor, tick: Callable[[], None]) -> Learnt:
        """Learn the cloaks of P persons.

        Args:
            faces: [P, N, 3, 112, 112] float32 in [0, 1].
            features: [P, N, D] clean unit features.
            tick: called after each step.

        Raises:
            EngineError: the engine cannot launch this network.
            ValueError: the network has no gradient with respect to the pictures.
        """
        hull = build_hull(features, self.config.objective)
        for buffer, value in ((self.points, hull.points), (self.gram, hull.gram), (self.center, hull.center)):
            buffer.copy_(value)
        self.faces.copy_(faces)
        steps = self.config.steps if self.config.eps else 0
        kinds = [self._kind(t) for t in range(steps)]
        if not self.launchers:
            self.launchers = launchers(self.engine, {kind: partial(self._step, *kind) for kind in kinds})
        self._reset()

        losses = self.loss.new_zeros(self.config.steps, self.persons)
        progress = Progress(faces.device, tick)
        for t, kind in enumerate(kinds):
            self.index.copy_(self.order[t].unsqueeze(1).expand_as(self.index))
            self.launchers[kind]()
            losses[t].copy_(self.loss)
            progress.launched()
        progress.wait()
        return Learnt(self.delta.clone(), losses, self.gap.clone(), self.moved.clone())

    def _kind(self, t: int) -> tuple[str, bool]:
        """Objective of step t, and whether it shows every photo with its own start noise."""
        config = self.config
        warming = config.objective == "convex_hull" and t < config.warmup
        return "class_center" if warming else config.objective, config.method == "opom" and t == 0

    def _reset(self) -> None:
        self.delta.copy_(self.start.mean(0).clamp(-self.eps, self.eps))
        self.delta_in.copy_(self.delta)
        for buffer in (self.acc, self.velocity, self.gap, self.moved):
            buffer.zero_()

    def _step(self, objective: str, noisy: bool) -> None:
        """One signed step of the masks: all inner steps, then the outer one."""
        config, ops = self.config, self.ops
        losses, gaps = [], []
        for index in self.index:
            ops.cloak_batch_(self.faces, self.delta_in, index, self.pictures, self.scale, self.shift)
            if noisy:  # as published: every photo starts from its own noise, not clipped
                self.pictures.copy_(self.surrogate.normalise(self.faces + self.start))
            loss, gap, grads = self._gradient(index, objective)
            ops.accumulate_step_(
                grads, self.acc, self.delta_in, config.look_ahead(), self.eps, config.normalise, self.scale
            )
            losses.append(loss)
            gaps.append(gap)
        self.loss.copy_(torch.stack(losses).mean((0, 2)))
        torch.maximum(self.gap, torch.stack(gaps).amax((0, 2)), out=self.gap)
        self.moved |= self.acc.ne(0).any(3).any(2).any(1)
        if config.method == "opom":  # as published: of the last mask only what clipping left of it goes on
            shown = self.faces + (self.start if noisy else self.delta_in[:, None])
            self.delta.copy_(((shown if noisy else shown.clamp_(0, 1)) - self.faces).mean(1))
        ops.outer_step_(self.acc, self.velocity, self.delta, self.delta_in, config.alpha, self.eps, config.decay)

    def _gradient(self, index: torch.Tensor, objective: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss [P, b], gap [P, b] and the gradient [P, b, 3, 112, 112] with respect to what the network took."""
        x = self.pictures.flatten(0, 1).detach().requires_grad_()
        embeddings = self.embed(x).view(self.persons, self.batch, -1)
        if not embeddings.requires_grad:
            raise ValueError(_no_gradient(self.surrogate))
        loss, slope, gap = self.ops.hull_loss(
            embeddings.detach(),
            self.points,
            self.gram,
            self.center,
            index,
            objective,
            self.config.lower,
            self.config.upper,
        )
        (grads,) = torch.autograd.grad(embeddings, x, slope, allow_unused=True)
        if grads is None:
            raise ValueError(_no_gradient(self.surrogate))
        return loss, gap, grads.view_as(self.pictures)


def _no_gradient(surrogate: Surrogate) -> str:
    return (
        f"{surrogate.name} must be differentiable with respect to the pictures, got an output without a gradient; "
        "remove no_grad, detach, numpy and rounding from it"
    )


def _draws(config: FitConfig, photos: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Start noise [N, 3, 112, 112] and photo indices [steps, inner_steps, b], the same for every person.

    opom starts every photo from its own noise; ga starts from the mean of the same noise, which is the mask that this
    amounts to. Noise of full strength in the mask itself costs much of what 16 steps can reach (docs/method.md).
    ga draws photos without replacement until all were used, then reshuffles, on through all steps; a batch at the end
    of one pass takes its rest from the next, so that all photos are used equally often.
    """
    generator = torch.Generator().manual_seed(config.seed)
    b, inner_steps, opom = config.batch(photos), config.inner(), config.method == "opom"
    start = torch.zeros(photos, *SHAPE)
    if config.random_start and config.steps:
        start.uniform_(-1, 1, generator=generator).mul_(float32_at_most(config.eps))
    drawn = config.steps * inner_steps * b
    passes = -(-drawn // photos)
    shuffled = [torch.arange(photos) if opom else torch.randperm(photos, generator=generator) for _ in range(passes)]
    order = torch.cat(shuffled)[:drawn] if shuffled else torch.empty(0, dtype=torch.int64)
    return start.to(device), order.view(config.steps, inner_steps, b).to(device)


def float32_at_most(value: float) -> float:
    """The largest float32 number <= value, so that |delta| <= eps holds exactly: float32(8/255) is above 8/255."""
    nearest = np.float32(value)
    return float(nearest if float(nearest) <= value else np.nextafter(nearest, np.float32(0)))
