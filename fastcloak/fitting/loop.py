"""The loops of OPOM and GA-OPOM for P persons with N photos each.

    delta <- mean of the start noise                                            State.begin
    for t = 1 .. T:                                                             one signed step: Loop._step
        acc <- 0,  delta_in <- delta
        for m = 1 .. M:                                                         inner steps
            x <- clip(faces[index_m] + delta_in, 0, 1), or a view of it         Views.show
            g <- gradient of the distance of x from the person's hull           objective.py
            acc <- acc + mean of g over the batch                               Views.step
            delta_in <- clip(delta_in + inner_alpha sign(mean g), -eps, eps)    Views.step
        delta <- clip(delta + alpha sign(acc), -eps, eps)                       outer_step_

With momentum the last line takes velocity <- decay velocity + acc / mean|acc| in place of acc; with smoothing acc is
blurred before, with color < 1 its channels are mixed, with symmetry its mirror image is added.

OPOM is M = 1 with all photos as the batch and no look-ahead. Source: OPOM (Zhong and Deng, TPAMI 2022), Algorithm 1;
GA-OPOM (Liu et al., arXiv 2401.01575), Algorithm 1.

Dimension letters: P persons, N photos of one person, b photos in a batch, D feature length.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch

from fastcloak.cloak import SHAPE
from fastcloak.fitting.objective import Apart, Gradient, HullDistance, Turn, combined
from fastcloak.fitting.options import FitConfig
from fastcloak.fitting.state import Album, Learnt, State, Tailoring, Tensors, zero_pictures
from fastcloak.models import Surrogate, with_dropout
from fastcloak.ops.augment import Views, blur_matrix
from fastcloak.ops.engine import Launcher, Progress, network


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

    A step is a fixed sequence of launches on buffers that never move, which an engine may capture. Which one it is, the
    device counts: the host has nothing to do between two of them.
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
        fall_back: bool = False,
    ) -> None:
        """Allocate the buffers and build the objective.

        Args:
            surrogate: a prepared one; its device is the loop's.
            config: what decides the cloak.
            ops: what `resolve_backend` returned.
            engine: what `resolve_engine` returned.
            persons, photos: P and N.
            tailoring: how an album is tailored, whose faces are persons with one photo.
            fall_back: as for `Launcher`.
        """
        self.surrogate, self.config, self.ops = surrogate, config, ops
        self.persons, self.photos = persons, photos
        self.tailoring = tailoring
        several = config.ensemble != "loss" and len(surrogate.members) > 1
        # Views and several networks take the faces as they are; of one network alone all lie as it takes them.
        alone = not (several or config.augment or tailoring)
        memory_format = surrogate.takes[1] if alone else torch.contiguous_format
        self.state = State(surrogate, config, persons, photos, memory_format, tailoring.canvas if tailoring else None)
        album, plain = self.state.album, (torch.float32, torch.contiguous_format)
        in_turns = several and config.ensemble == "turns"
        self.views = Views(config.augment, ops, surrogate.device, grey=bool(config.grey), unit=in_turns)

        def distance(one: Surrogate, forward: Callable[[torch.Tensor], torch.Tensor]) -> HullDistance:
            apart = Apart(ops, one.embedding_size, tailoring.apart, album.together) if tailoring and album else None
            return HullDistance(one, network(engine, forward), config, ops, persons, photos, apart)

        def normalised(one: Surrogate) -> Callable[[torch.Tensor], torch.Tensor]:
            return lambda faces: one.embed(one.normalise(faces))

        def turn(gradient: Gradient, takes: Any, *scale_and_shift: torch.Tensor) -> Turn:
            b = config.batch(photos)
            pictures = zero_pictures((persons, b), SHAPE, takes, surrogate.device)
            return Turn(gradient, pictures, *(numbers.flatten() for numbers in scale_and_shift))

        shown = with_dropout(surrogate, config.dropout) if config.dropout else surrogate
        members = shown.members if several else (shown,)
        if several and not in_turns:
            self.networks = [distance(one, normalised(one)) for one in members]
            self.turns = [turn(combined(self.networks), plain)]
        else:
            self.networks = [distance(one, one.embed) for one in members]
            self.turns = [
                turn(one, member.takes, member.scale, member.shift)
                for one, member in zip(self.networks, members, strict=True)
            ]
        self.blur: torch.Tensor | None = None
        if config.smoothing:
            sigma = torch.tensor([config.smoothing], device=surrogate.device)
            self.blur = blur_matrix(sigma, self.state.acc.shape[-1])[0]
        self.launcher = Launcher(engine, surrogate.device, fall_back)

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
        state = self.state
        # The features of an ensemble are its members' unit features side by side, divided by the root of their number.
        sizes = [one.size for one in self.networks]
        known = features.new_empty(0, sum(sizes)) if earlier is None else earlier
        parts, olds = (torch.split(math.sqrt(len(sizes)) * rows, sizes, -1) for rows in (features, known))
        with torch.random.fork_rng([faces.device] if faces.is_cuda else [], enabled=self.config.dropout > 0):
            for one, part, old in zip(self.networks, parts, olds, strict=True):
                one.begin(part)
                if one.apart is not None:
                    one.apart.begin(old, alike)
            state.begin(faces, album)
            done = state.restore(saved) if saved else 0
            learnt = state.learnt(done)
            keep(learnt, partial(state.save, done))
            progress = Progress(faces.device, tick)
            for t in range(done, state.steps):
                if t == state.steps - state.averaged:
                    state.total.zero_()
                self.launch(t)
                learnt = state.learnt(t + 1)
                keep(learnt, partial(state.save, t + 1))
                progress.launched()
            progress.wait()
        return learnt

    def launch(self, t: int) -> None:
        """Launch step t, which is the next; after the last comes the first."""
        kind = self._kind(t)

        def step() -> None:
            self.state.show()
            self._step(kind)
            self.state.keep()

        self.launcher(kind, step)

    def _kind(self, t: int) -> Kind:
        config = self.config
        warming = config.objective == "convex_hull" and t < config.warmup
        return Kind(
            "class_center" if warming else config.objective,
            config.method == "opom" and t == 0,
            t * config.inner_steps % len(self.turns),
        )

    def _step(self, kind: Kind) -> None:
        config, state, ops, views = self.config, self.state, self.ops, self.views
        losses, gaps = [], []
        bound, place = (state.album.bound, state.album.place) if state.album else (None, None)
        for m in range(config.inner_steps):
            shown, index, chance, jitter = (each[m] for each in (state.shown, state.index, state.chance, state.jitter))
            turn = self.turns[(kind.turn + m) % len(self.turns)]
            mask = state.start.expand(self.persons, -1, -1, -1, -1) if kind.noisy else state.delta_in
            views.show(state.faces, mask, shown, chance, turn.pictures, turn.scale, turn.shift, bound, place, jitter)
            loss, gap, grads = turn.gradient(turn.pictures.flatten(0, 1), index, kind.objective)
            views.step(grads, chance, state.acc, state.delta_in, config.inner_alpha, state.eps, turn.scale, place)
            losses.append(loss)
            gaps.append(gap)
        state.loss.copy_(torch.stack(losses).mean((0, 2)))
        torch.maximum(state.gap, torch.stack(gaps).amax((0, 2)), out=state.gap)
        state.moved |= state.acc.any((1, 2, 3))
        if config.method == "opom":
            self._keep_what_clipping_left(kind.noisy)
        if self.blur is not None:
            state.acc.copy_(self.blur @ state.acc @ self.blur.mT)
        if config.color < 1:
            state.acc.copy_(torch.lerp(state.acc.mean(1, keepdim=True), state.acc, config.color))
        if "symmetry" in config.augment:
            state.acc.add_(state.acc.flip(-1))
        ops.outer_step_(state.acc, state.velocity, state.delta, state.delta_in, config.alpha, state.eps, config.decay)

    # What is OPOM's alone, as published: every photo starts from its own noise, not clipped, and of the last mask only
    # what clipping each picture left of it goes on.

    def _keep_what_clipping_left(self, noisy: bool) -> None:
        state = self.state
        faces = state.faces[:, : self.photos]
        shown = faces + (state.start if noisy else state.delta_in[:, None])
        state.delta.copy_(((shown if noisy else shown.clamp_(0, 1)) - faces).mean(1))
