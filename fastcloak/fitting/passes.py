"""People in groups that fit into memory: a pass is one run of the loop over one group."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

from fastcloak.cloak import SHAPE, Cloak
from fastcloak.fitting.checkpoint import Pass
from fastcloak.fitting.loop import Loop
from fastcloak.fitting.options import FitConfig
from fastcloak.fitting.state import Learnt
from fastcloak.models import Surrogate
from fastcloak.ops.backend import holds, resolve_backend
from fastcloak.ops.engine import resolve_engine
from fastcloak.system.errors import EngineError

log = logging.getLogger("fastcloak")
LARGEST_GAP = 1e-6
"""Duality gap of the hull weights above which a warning is logged; float32 features give about 1e-8."""


class Passes:
    """Runs one pass after the other, and keeps the buffers and captures of the last one for the next of its size."""

    def __init__(self, backend: str, engine: str, place: torch.device) -> None:
        self._wish, self._backend_wish = engine, backend
        self._found = resolve_backend(backend, place)
        self.backend = self._found[0]
        self.engine = resolve_engine(engine, place)
        self._loop: Loop | None = None

    def check(self, photos: int, size: int) -> None:
        """Refuse one person whose hull the explicitly wished backend cannot hold; "auto" takes another for them."""
        if self._backend_wish != "auto" and not holds(self._found[1], photos, size):
            raise ValueError(
                f"backend {self._backend_wish!r} holds hulls of 64 photos and 8192 numbers at most, got {photos} "
                f"photos with embeddings of {size}; use backend='auto'"
            )

    def learn(
        self, surrogate: Surrogate, people: Sequence[Person], tick: Callable[[], None], underway: Underway
    ) -> Learnt:
        """Run the loop for a group of people, all with as many photos and the same configuration."""
        faces = torch.stack([person.faces for person in people]).to(surrogate.device)
        features = torch.stack([person.features for person in people])
        P, N = faces.shape[:2]
        config = people[0].config  # all of a pass have the same
        wanted = (P, N, self.engine, config)
        if self._loop is None or wanted != (
            self._loop.persons,
            self._loop.photos,
            self._loop.engine,
            self._loop.config,
        ):
            if self._loop is not None:
                self._loop.launchers.clear()  # they hold the loop, whose memory is to be free before another's is taken
            self._loop = None
            self.backend, ops = self._found
            if self._backend_wish == "auto" and not holds(ops, N, surrogate.embedding_size):
                self.backend, ops = resolve_backend("reference", surrogate.device)
            self._loop = Loop(surrogate, config, ops, self.engine, P, N)
        try:
            return self._loop.learn(faces, features, tick, partial(underway.keep, self._loop), underway.state)
        except EngineError as error:
            if self._wish != "auto" or self.engine == "eager":
                raise
            log.warning("%s; fitting goes on with engine 'eager', slower", error)
            self.engine = "eager"
            return self.learn(surrogate, people, tick, underway)


class Underway:
    """A pass that runs: what it has learnt so far, and where that is saved.

    Attributes:
        learnt: what was learnt until the last whole step.
        saved: the pass of the checkpoint, if there is one.
        state: to go on from.
    """

    def __init__(
        self, names: list[str], photos: int, config: FitConfig, saved: Pass | None, about: list[dict[str, int]]
    ) -> None:
        self._names, self._photos, self._config, self._began = names, photos, config, time.perf_counter()
        self._about = about
        self.learnt: Learnt | None = None
        self.saved = saved
        self.state = saved.state if saved is not None else {}

    def keep(self, loop: Loop, learnt: Learnt) -> None:
        """Remember what was learnt after a step, and save it now and then."""
        # One assignment: an interruption, which may come anywhere, finds this step or the one before.
        self.learnt = learnt
        if self.saved is not None:
            self.saved.save(lambda: loop.state(learnt))

    def cloaks(
        self,
        learnt: Learnt,
        made_by: Mapping[str, Any],
        errors: dict[str, Exception],
        finished: bool = True,
    ) -> dict[str, Cloak]:
        """The cloaks of everyone in the pass by name, and in `errors` what went wrong with the others."""
        seconds = time.perf_counter() - self._began + (self.saved.seconds if self.saved is not None else 0.0)
        info = {**made_by, "seconds": seconds / len(self._names)}
        cloaks = {}
        for i, name in enumerate(self._names):
            try:
                cloaks[name] = _cloak(learnt, i, self._photos, self._config, info | self._about[i], finished)
            except (FloatingPointError, ValueError) as error:
                errors[name] = error
        return cloaks


@dataclass(frozen=True)
class Person:
    """Whom a cloak is learnt for."""

    faces: torch.Tensor  # [N, 3, 112, 112] float32 in [0, 1]
    features: torch.Tensor  # [N, D] unit features of the clean faces
    config: FitConfig
    about: dict[str, int]  # how many photos are not as they should be, for the cloak's info


def _cloak(
    learnt: Learnt, person: int, photos: int, config: FitConfig, made_by: Mapping[str, Any], finished: bool
) -> Cloak:
    """The cloak of one person of a pass, or what went wrong with it."""
    steps = config.steps if finished else learnt.steps
    delta, losses = learnt.delta[person].cpu().contiguous(), learnt.losses[:steps, person].cpu()
    if not (losses.isfinite().all() and delta.isfinite().all()):
        bad = (~losses.isfinite()).nonzero()
        step = int(bad[0]) if len(bad) else steps - 1
        raise FloatingPointError(
            f"the surrogate's embeddings or gradients became NaN or Inf at step {step + 1} of {config.steps}; "
            "check the network (and its scale and shift), or use dtype='float32'"
        )
    if len(losses) and config.eps and not learnt.moved[person]:
        raise ValueError(
            "the gradient was zero at every step, so that nothing was learnt: the network must be differentiable and "
            "give different embeddings for different photos"
        )
    gap = learnt.gap[person].item()
    if not gap <= LARGEST_GAP:  # also true for NaN
        log.warning("hull weights were found only to a duality gap of %.1e (expected below %.0e)", gap, LARGEST_GAP)
    b, inner_steps = config.batch(photos), config.inner()
    networks = 1 if config.ensemble == "turns" else len(made_by["models"])
    info = {
        **asdict(config),
        "batch_size": b,
        "inner_steps": inner_steps,
        "inner_alpha": config.look_ahead(),
        "augment": list(config.augment),
        "photos": photos,
        "image_gradients": steps * inner_steps * b * networks if config.eps else 0,
        "losses": losses.tolist(),
        "hull_gap": gap,
        **made_by,
    }
    if not finished:
        info |= {"partial": True, "steps_done": steps}
    return Cloak(delta, config.eps, info)


def grouped(
    people: Mapping[str, Any],
    read: Callable[[str, Any], Person | None],
    skip: Callable[[], None],
    persons_per_pass: Callable[[int], int],
    begun: Mapping[str, tuple[str, ...]],
    errors: dict[str, Exception],
) -> Iterator[dict[str, Person]]:
    """Reads people in order and yields them as soon as a pass is full of people with the same number of photos.

    Those of a pass that was begun wait for each other, since they round together.
    """
    waiting: dict[tuple[int, FitConfig] | tuple[str, ...], dict[str, Person]] = {}
    for name, images in people.items():
        try:
            person = read(name, images)
        except Exception as error:  # one person's bad photos must not end the others' work
            errors[name] = error
            continue
        if person is None:  # finished
            skip()
            continue
        N = len(person.faces)
        together = begun.get(name)
        alike = N, person.config
        group = waiting.setdefault(together or alike, {})
        group[name] = person
        if together:
            if len(group) == len(together):
                del waiting[together]
                yield {name: group[name] for name in together}
        elif len(group) >= persons_per_pass(N):
            yield waiting.pop(alike)
    yield from waiting.values()


def persons_per_pass(surrogate: Surrogate, config: FitConfig, memory_budget: int | None) -> Callable[[int], int]:
    """How many people with N photos each one pass takes."""
    if memory_budget is None and surrogate.device.type == "cpu":
        return lambda photos: 1
    budget = torch.cuda.mem_get_info(surrogate.device)[0] // 4 if memory_budget is None else memory_budget
    per_photo, picture = _bytes_per_photo(surrogate), 4 * math.prod(SHAPE)

    def persons(photos: int) -> int:
        # Besides the network's: faces, twice while they are handed over and once cloaked, and what a step changes.
        bytes_per_person = config.batch(photos) * per_photo + (3 * photos + 7) * picture
        return max(1, budget // bytes_per_person)

    return persons


def _bytes_per_photo(surrogate: Surrogate) -> int:
    """Memory of one photo's forward and backward pass: what autograd keeps, and as much again for gradients."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {tensor.untyped_storage().data_ptr() for tensor in (*surrogate.parameters(), *surrogate.buffers())}
    x = torch.zeros(1, *SHAPE, device=surrogate.device, requires_grad=True)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        embeddings = surrogate(x)  # held until the count is done, so that no address is used twice
    activations = sum(size for address, size in kept.items() if address not in weights)
    del embeddings
    return 2 * activations + 4 * x.numel() * x.element_size()
