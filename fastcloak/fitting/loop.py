"""The loops of OPOM and GA-OPOM for P persons with N photos each, on buffers that never move.

Dimension letters: P persons, N photos of one person, b photos in a batch, D feature length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from types import ModuleType

import torch

from fastcloak.cloak import SHAPE
from fastcloak.fitting.objective import Member
from fastcloak.fitting.options import FitConfig
from fastcloak.fitting.state import Learnt, draws, float32_at_most
from fastcloak.models import Surrogate, with_dropout
from fastcloak.ops.augment import Views, blur_matrix
from fastcloak.ops.engine import Progress, launchers, network
from fastcloak.ops.hull import build_hull

TINY = 1e-30
"""Smallest mean |g| that a gradient is divided by: an all-zero gradient stays zero."""


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
            ops: the module with the hot operations, see `fastcloak.ops.backend`.
            engine: what `resolve_engine` returned.
            persons: P.
            photos: N.
        """
        self.surrogate, self.config, self.ops, self.engine = surrogate, config, ops, engine
        self.persons, self.photos, self.batch = persons, photos, config.batch(photos)
        self.eps = float32_at_most(config.eps)
        self.steps = config.steps if config.eps else 0
        self.averaged = math.ceil(config.average * self.steps)
        device = surrogate.device
        apart = config.ensemble != "loss" and len(surrogate.members) > 1
        # Views and the members of an ensemble take plain faces; a network alone is written what it takes in one pass.
        self.plain = apart or bool(config.augment)
        dtype, memory_format = (torch.float32, torch.contiguous_format) if self.plain else surrogate.takes

        def pictures(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            flat = torch.empty(math.prod(size), *SHAPE, dtype=dtype, device=device, memory_format=memory_format)
            return flat.zero_().view(*size, *SHAPE)

        self.start, self.order, self.draws = draws(config, photos, device)
        self.faces = pictures(persons, photos)
        self.delta, self.delta_in, self.acc, self.velocity, self.total = (pictures(persons) for _ in range(5))
        self.pictures = pictures(persons, self.batch, dtype=dtype)
        self.scale = None if self.plain else surrogate.scale.flatten()
        self.shift = None if self.plain else surrogate.shift.flatten()
        # Weights of the channels in the gradient with respect to delta.
        self.channels = torch.ones(3, 1, 1, device=device) if self.scale is None else self.scale.view(3, 1, 1)
        self.views = Views(config.augment, device)
        self.blur = blur_matrix(
            torch.tensor([config.smoothing], dtype=torch.float32, device=device), SHAPE[-1]
        )  # [1, W, W]

        def member(one: Surrogate) -> Member:
            def forward(faces: torch.Tensor) -> torch.Tensor:
                return one.embed(one.normalise(faces))

            return Member(one, network(engine, forward if self.plain else one.embed), persons, photos)

        networks = with_dropout(surrogate, config.dropout) if config.dropout else surrogate
        self.members = [member(one) for one in (networks.members if apart else [networks])]
        self.index = torch.zeros(config.inner(), persons, self.batch, dtype=torch.int64, device=device)
        self.chance = torch.zeros(
            config.inner(), persons, self.batch, self.draws.shape[-1], dtype=torch.float32, device=device
        )
        self.loss, self.gap = (torch.zeros(persons, dtype=torch.float32, device=device) for _ in range(2))
        self.moved = torch.zeros(persons, dtype=torch.bool, device=device)
        self.launchers: dict[Hashable, Callable[[], None]] = {}

    def learn(
        self,
        faces: torch.Tensor,
        features: torch.Tensor,
        tick: Callable[[], None],
        keep: Callable[[Learnt], None] = lambda learnt: None,
        state: Mapping[str, torch.Tensor] | None = None,
    ) -> Learnt:
        """Learn the cloaks of P persons.

        Args:
            faces: [P, N, 3, 112, 112] float32 in [0, 1].
            features: [P, N, D] clean unit features.
            tick: called after each step.
            keep: called after each step with what was learnt so far, in tensors of its own; before the device is done.
            state: what `state` gave in an earlier pass of these faces and options, to go on from there.

        Raises:
            EngineError: the engine cannot launch this network.
            ValueError: the network has no gradient with respect to the pictures.
        """
        # The features of an ensemble are its members' unit features side by side, divided by the root of their number.
        sizes = [member.size for member in self.members]
        parts = [part * math.sqrt(len(sizes)) for part in torch.split(features, sizes, -1)]
        for member, part in zip(self.members, parts, strict=True):
            member.set_hull(build_hull(part, self.config.objective))
        self.faces.copy_(faces)
        kinds = [self._kind(t) for t in range(self.steps)]
        with torch.random.fork_rng([faces.device] if faces.is_cuda else [], enabled=self.config.dropout > 0):
            if not self.launchers:
                self.launchers = launchers(self.engine, {kind: partial(self._step, *kind) for kind in kinds})
            self._reset(parts)
            if self.config.dropout:
                torch.manual_seed(self.config.seed)

            losses = self.loss.new_zeros(self.config.steps, self.persons)
            done = self._restore(state, losses) if state else 0
            learnt = self._learnt(done, losses)
            keep(learnt)
            progress = Progress(faces.device, tick)
            for t in range(done, self.steps):
                self.index.copy_(self.order[t].unsqueeze(1).expand_as(self.index))
                self.chance.copy_(self.draws[t].unsqueeze(1).expand_as(self.chance))
                self.launchers[kinds[t]]()
                if t >= self.steps - self.averaged:
                    self.total += self.delta
                losses[t].copy_(self.loss)
                learnt = self._learnt(t + 1, losses)
                keep(learnt)
                progress.launched()
            progress.wait()
        return learnt

    def state(self, learnt: Learnt) -> dict[str, torch.Tensor]:
        """What decides the steps after those of `learnt`, the last that `learn` kept. Waits for the device.

        Returns:
            Tensors on the CPU, for `learn`.
        """
        held = {**self._lasting(), "losses": learnt.losses[: learnt.steps]}
        if self.config.dropout:
            held["random"] = torch.get_rng_state()
            if self.faces.is_cuda:
                held["random_cuda"] = torch.cuda.get_rng_state(self.faces.device)
        return {name: tensor.cpu().contiguous() for name, tensor in held.items()}

    def _restore(self, state: Mapping[str, torch.Tensor], losses: torch.Tensor) -> int:
        for name, buffer in self._lasting().items():
            buffer.copy_(state[name])
        self.delta_in.copy_(self.delta)
        if self.config.dropout:
            torch.set_rng_state(state["random"])
            if self.faces.is_cuda:
                torch.cuda.set_rng_state(state["random_cuda"], self.faces.device)
        done = len(state["losses"])
        losses[:done].copy_(state["losses"])
        return done

    def _lasting(self) -> dict[str, torch.Tensor]:
        """The buffers that go from one step to the next; a step leaves delta_in = delta and acc = 0."""
        lasting = {"delta": self.delta, "gap": self.gap, "moved": self.moved}
        if self.config.decay:
            lasting["velocity"] = self.velocity
        if self.averaged:
            lasting["total"] = self.total
        if self.config.spread:
            lasting |= {f"last_{i}": member.last for i, member in enumerate(self.members)}
        return lasting

    def _learnt(self, done: int, losses: torch.Tensor) -> Learnt:
        # The sign of NaN is 0: what is added keeps it NaN.
        averaging = done > self.steps - self.averaged
        delta = self.eps * (self.total.sign() + 0 * self.total) if averaging else self.delta.clone()
        if self.config.grey:  # equal but for rounding, where a network weighs its channels differently
            delta = delta[:, :1].repeat(1, 3, 1, 1)
        return Learnt(done, delta, losses, self.gap.clone(), self.moved.clone())

    def _kind(self, t: int) -> tuple[str, bool, int]:
        """Objective of step t, whether it shows every photo with its own start noise, and whose turn is first."""
        config = self.config
        warming = config.objective == "convex_hull" and t < config.warmup
        turn = t * config.inner() % len(self.members) if config.ensemble == "turns" else 0
        return "class_center" if warming else config.objective, config.method == "opom" and t == 0, turn

    def _reset(self, features: list[torch.Tensor]) -> None:
        for member, clean in zip(self.members, features, strict=True):
            member.last.copy_(clean)
        self.delta.copy_(self.start.mean(0).clamp(-self.eps, self.eps))
        self.delta_in.copy_(self.delta)
        for buffer in (self.acc, self.velocity, self.total, self.gap, self.moved):
            buffer.zero_()

    def _step(self, objective: str, noisy: bool, turn: int) -> None:
        """One signed step of the masks: all inner steps, then the outer one."""
        config, ops = self.config, self.ops
        losses, gaps = [], []
        for m, (index, chance) in enumerate(zip(self.index, self.chance, strict=True)):
            ops.cloak_batch_(self.faces, self.delta_in, index, self.pictures, self.scale, self.shift)
            if noisy:  # as published: every photo starts from its own noise, not clipped
                shown = self.faces + self.start
                self.pictures.copy_(shown if self.plain else self.surrogate.normalise(shown))
            whose = self.members
            if config.ensemble == "turns":
                whose = [self.members[(turn + m) % len(self.members)]]
            loss, gap, grads = self._gradient(whose, index, chance, objective)
            ops.accumulate_step_(grads, self.acc, self.delta_in, config.look_ahead(), self.eps, self.scale)
            losses.append(loss)
            gaps.append(gap)
        self.loss.copy_(torch.stack(losses).mean((0, 2)))
        torch.maximum(self.gap, torch.stack(gaps).amax((0, 2)), out=self.gap)
        self.moved |= self.acc.ne(0).any(3).any(2).any(1)
        if config.method == "opom":  # as published: of the last mask only what clipping left of it goes on
            shown = self.faces + (self.start if noisy else self.delta_in[:, None])
            self.delta.copy_(((shown if noisy else shown.clamp_(0, 1)) - self.faces).mean(1))
        ops.outer_step_(self.acc, self.velocity, self.delta, self.delta_in, config.alpha, self.eps, config.decay)

    def _gradient(
        self, whose: list[Member], index: torch.Tensor, chance: torch.Tensor, objective: str
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss [P, b], gap [P, b] and the gradient [P, b, 3, 112, 112] with respect to `self.pictures`."""
        config = self.config
        x = self.pictures.flatten(0, 1).detach().requires_grad_()
        seen = x
        if config.augment:
            rows = torch.arange(self.persons, device=index.device)[:, None]
            seen = self.views(x, self.faces[rows, index].flatten(0, 1), chance.flatten(0, 1))
        leaf = seen.detach().requires_grad_()
        losses, gaps, slopes = zip(
            *(member.gradient(leaf, index, objective, config, self.ops) for member in whose), strict=True
        )
        grads = slopes[0] if len(self.members) == 1 else torch.stack([_scale_free(slope) for slope in slopes]).sum(0)
        if config.augment:
            (grads,) = torch.autograd.grad(seen, x, grads.view_as(seen))
        grads = grads.view_as(self.pictures)
        if config.grey:
            total = (self.channels * grads.float()).sum(-3, keepdim=True)
            grads = torch.empty_like(grads).copy_(total / (3 * self.channels))
        if config.smoothing:
            grads = (self.blur @ grads.float() @ self.blur.mT).to(grads.dtype)
        return torch.stack(losses).mean(0), torch.stack(gaps).amax(0), grads


def _scale_free(grads: torch.Tensor) -> torch.Tensor:  # [P, b, 3, 112, 112]
    """Divided by what the mean over b measures, so that networks weigh the same."""
    size = grads.mean(1, keepdim=True).abs().mean((2, 3, 4), keepdim=True)
    return grads / size.clamp_min(TINY)
