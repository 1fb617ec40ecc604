"""The loops of OPOM and GA-OPOM for P persons with N photos each.

    delta <- mean of the start noise                                            State.begin
    for t = 1 .. T:                                                             one signed step: Loop._step
        acc <- 0,  delta_in <- delta
        for m = 1 .. M:                                                         inner steps
            x <- clip(faces[index_m] + delta_in, 0, 1)                          cloak_batch_
            g <- gradient of the distance of x from the person's hull           objective.py
            acc <- acc + mean of g over the batch                               accumulate_step_
            delta_in <- clip(delta_in + inner_alpha sign(mean g), -eps, eps)    accumulate_step_
        delta <- clip(delta + alpha sign(acc), -eps, eps)                       outer_step_

With momentum the last line takes velocity <- decay velocity + acc / mean|acc| in place of acc; with smoothing acc is
blurred before.

OPOM is M = 1 with all photos as the batch and no look-ahead. Source: OPOM (Zhong and Deng, TPAMI 2022), Algorithm 1;
GA-OPOM (Liu et al., arXiv 2401.01575), Algorithm 1.

Dimension letters: P persons, N photos of one person, b photos in a batch, D feature length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from functools import partial
from types import ModuleType
from typing import NamedTuple

import torch

from fastcloak.fitting.objective import Apart, Batch, Gradient, HullDistance, combined, in_grey, through_views
from fastcloak.fitting.options import FitConfig
from fastcloak.fitting.state import Album, Learnt, State, Tailoring, Tensors
from fastcloak.models import Surrogate, with_dropout
from fastcloak.ops.augment import blur_matrix
from fastcloak.ops.engine import Progress, launchers, network


class Kind(NamedTuple):
    """In what steps differ: those of one kind are one sequence of launches.

    Attributes:
        objective: of `fastcloak.fitting.options.OBJECTIVES`.
        noisy: every photo is shown with its own start noise (opom's first step).
        turn: which network's turn is first.
    """

    objective: str
    noisy: bool = False
    turn: int = 0


class Loop:
    """The loop of one pass. It can learn several passes of P persons with N photos each, one after the other.

    A step is a fixed sequence of launches on buffers that never move, which an engine may capture.
    """

    def __init__(
        self,
        surrogate: Surrogate,
        config: FitConfig,
        ops: ModuleType,
        engine: str,
        persons: int,
        photos: int,
        tailoring: Tailoring | None = None,
    ) -> None:
        """Allocate the buffers and build the objective.

        Args:
            surrogate: a prepared one; its device is the loop's.
            config: what decides the cloak.
            ops: what `resolve_backend` returned.
            engine: what `resolve_engine` returned.
            persons, photos: P and N.
            tailoring: how an album is tailored, whose faces are persons with one photo.
        """
        self.surrogate, self.config, self.ops, self.engine = surrogate, config, ops, engine
        self.persons, self.photos = persons, photos
        several = config.ensemble != "loss" and len(surrogate.members) > 1
        # Views and the networks of an ensemble take plain faces; a network alone is written what it takes in one pass.
        self.plain = several or bool(config.augment) or tailoring is not None
        self.tailoring = tailoring
        self.state = State(surrogate, config, persons, photos, self.plain, tailoring.canvas if tailoring else None)
        album = self.state.album
        self.scale = None if self.plain else surrogate.scale.flatten()
        self.shift = None if self.plain else surrogate.shift.flatten()

        def distance(one: Surrogate) -> HullDistance:
            def forward(faces: torch.Tensor) -> torch.Tensor:
                return one.embed(one.normalise(faces))

            shown = network(engine, forward if self.plain else one.embed)
            if tailoring is None or album is None:
                return HullDistance(one, shown, config, ops, persons, photos)
            apart = Apart(one.embedding_size, tailoring.apart, album.together)
            return HullDistance(one, shown, config, ops, persons, photos, apart)

        shown = with_dropout(surrogate, config.dropout) if config.dropout else surrogate
        self.networks = [distance(one) for one in (shown.members if several else [shown])]
        self.gradient: Gradient = self.networks[0]
        if several:
            self.gradient = combined(self.networks, in_turns=config.ensemble == "turns")
        if config.augment or album:
            self.gradient = through_views(
                self.gradient, config.augment, self.state.faces, album.place if album else None
            )
        if config.grey:
            channels = torch.ones_like(surrogate.scale) if self.plain else surrogate.scale
            self.gradient = in_grey(self.gradient, channels.view(3, 1, 1))
        self.blur: torch.Tensor | None = None
        if config.smoothing:
            sigma = torch.tensor([config.smoothing], device=surrogate.device)
            self.blur = blur_matrix(sigma, self.state.acc.shape[-1])[0]
        self.launchers: dict[Hashable, Callable[[], None]] = {}

    def learn(
        self,
        faces: torch.Tensor,
        features: torch.Tensor,
        tick: Callable[[], None] = lambda: None,
        keep: Callable[[Learnt, Callable[[], Tensors]], None] = lambda learnt, state: None,
        saved: Tensors | None = None,
        album: Album | None = None,
        earlier: torch.Tensor | None = None,
        alike: torch.Tensor | None = None,
    ) -> Learnt:
        """Learn the cloaks of P persons.

        Args:
            faces: [P, N, 3, 112, 112] float32 in [0, 1]; of an album canvases, [P, 1, 3, S, S].
            features: [P, N, D] clean unit features; of an album what each face is driven away from, of any length.
            tick: called after each step, once the device has done it.
            keep: called after each step, before the device has done it, with what was learnt so far and a function
                that gives the state to go on from.
            saved: what `State.save` gave in an earlier pass of these faces and options, to go on from there.
            album: the bounds, places and couplings of an album.
            earlier: [E, D] unit features of faces of the album that were tailored before, at most `EARLIER`.
            alike: [P, E] bool, from which of these each face is kept apart; None: from all.

        Raises:
            EngineError: the engine cannot launch this network.
            ValueError: the network has no gradient with respect to the pictures.
        """
        state, kinds = self.state, [self._kind(t) for t in range(self.state.steps)]

        def begin() -> None:
            # The features of an ensemble are its members' unit features side by side, divided by the root of their
            # number.
            sizes = [one.size for one in self.networks]
            known = features.new_empty(0, sum(sizes)) if earlier is None else earlier
            parts, olds = (torch.split(math.sqrt(len(sizes)) * rows, sizes, -1) for rows in (features, known))
            for one, part, old in zip(self.networks, parts, olds, strict=True):
                one.begin(part)
                if one.apart is not None:
                    one.apart.begin(old, alike)
            state.begin(faces, album)

        with torch.random.fork_rng([faces.device] if faces.is_cuda else [], enabled=self.config.dropout > 0):
            begin()
            if not self.launchers:
                self.launchers = launchers(self.engine, {kind: partial(self._step, kind) for kind in kinds})
                begin()  # a capture runs its steps
            done = state.restore(saved) if saved else 0
            learnt = state.learnt(done)
            keep(learnt, partial(state.save, done))
            progress = Progress(faces.device, tick)
            for t in range(done, state.steps):
                state.show(t)
                self.launchers[kinds[t]]()
                learnt = state.keep(t)
                keep(learnt, partial(state.save, t + 1))
                progress.launched()
            progress.wait()
        return learnt

    def _kind(self, t: int) -> Kind:
        config = self.config
        warming = config.objective == "convex_hull" and t < config.warmup
        turn = t * config.inner_steps % len(self.networks) if config.ensemble == "turns" else 0
        return Kind("class_center" if warming else config.objective, config.method == "opom" and t == 0, turn)

    def _step(self, kind: Kind) -> None:
        config, state, ops = self.config, self.state, self.ops
        losses, gaps = [], []
        bound = None if state.album is None else state.album.bound
        for m, (index, chance) in enumerate(zip(state.index, state.chance, strict=True)):
            ops.cloak_batch_(state.faces, state.delta_in, index, state.pictures, self.scale, self.shift, bound)
            if kind.noisy:
                self._show_start_noise()
            batch = Batch(index, chance, kind.objective, kind.turn + m)
            loss, gap, grads = self.gradient(state.pictures.flatten(0, 1), batch)
            ops.accumulate_step_(grads, state.acc, state.delta_in, config.inner_alpha, state.eps, self.scale)
            losses.append(loss)
            gaps.append(gap)
        state.loss.copy_(torch.stack(losses).mean((0, 2)))
        torch.maximum(state.gap, torch.stack(gaps).amax((0, 2)), out=state.gap)
        state.moved |= state.acc.ne(0).any(3).any(2).any(1)
        if config.method == "opom":
            self._keep_what_clipping_left(kind.noisy)
        if self.blur is not None:
            state.acc.copy_(self.blur @ state.acc @ self.blur.mT)
        ops.outer_step_(state.acc, state.velocity, state.delta, state.delta_in, config.alpha, state.eps, config.decay)

    # What is OPOM's alone, as published: every photo starts from its own noise, not clipped, and of the last mask only
    # what clipping each picture left of it goes on.

    def _show_start_noise(self) -> None:
        shown = self.state.faces + self.state.start
        self.state.pictures.copy_(shown if self.plain else self.surrogate.normalise(shown))

    def _keep_what_clipping_left(self, noisy: bool) -> None:
        state = self.state
        shown = state.faces + (state.start if noisy else state.delta_in[:, None])
        state.delta.copy_(((shown if noisy else shown.clamp_(0, 1)) - state.faces).mean(1))
