"""One call of `fit_many`: people are read, learnt pass by pass, and kept. Whatever stops it, no cloak is lost.

On a GPU threads read the photos of the next pass while one is learnt. What the photos are found to be, and all that
waits for the device, is the business of the calling thread, in the order of the people.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from fastcloak.cloak import Cloak
from fastcloak.fitting.checkpoint import Checkpoint, open_checkpoint
from fastcloak.fitting.groups import Person, Photos, grouped
from fastcloak.fitting.options import FitConfig
from fastcloak.fitting.state import Learnt, Tensors
from fastcloak.photos.inputs import each_face
from fastcloak.protection.outliers import copies, listed, stranger_bound, strangers
from fastcloak.system.errors import CheckpointError, FitInterrupted, FitManyError
from fastcloak.system.threads import in_order

if TYPE_CHECKING:
    from fastcloak.fitting.fitter import Fitter

log = logging.getLogger("fastcloak")

LEAST_PHOTOS = 2
LARGEST_GAP = 1e-6
"""Duality gap of the hull weights above which a warning is logged; float32 features give about 1e-8."""

Progress = bool | Callable[[int, int], None] | None


class Run:
    """What is finished, what failed, and the pass under way.

    As a context it turns Ctrl-C into FitInterrupted, and gives a CheckpointError the cloaks so far.

    Attributes:
        cloaks: of the finished people, by name.
        errors: what went wrong with each of the others, by name.
    """

    def __init__(self, fitter: Fitter, people: Mapping[str, Any]) -> None:
        self.cloaks: dict[str, Cloak] = {}
        self.errors: dict[str, Exception] = {}
        self._fitter, self._people = fitter, people
        self._folder: str | os.PathLike[str] | None = None
        self._checkpoint: Checkpoint | None = None
        self._pass: _Pass | None = None
        self._readers: Executor | None = None
        self._ended = threading.Event()
        self._ahead = fitter.readers
        self._opened = ExitStack()

    def __enter__(self) -> Run:
        return self

    def open(self, progress: Progress, checkpoint: str | os.PathLike[str] | None, resume: bool) -> None:
        """Show progress, set PyTorch's modes and open the checkpoint, until the context ends."""
        self._tick = Ticker(len(self._people), self._fitter.config.steps, progress)
        self._opened.callback(self._tick.close)
        self._opened.enter_context(own_modes(self._fitter.device))
        if checkpoint is not None:
            self._folder = checkpoint
            self._checkpoint = self._opened.enter_context(
                open_checkpoint(checkpoint, self._fitter.fingerprint(), resume)
            )
        if self._fitter.readers:
            self._readers = ThreadPoolExecutor(self._fitter.readers, "fastcloak-reader")
            self._opened.callback(self._readers.shutdown, cancel_futures=True)
            self._opened.callback(self._ended.set)  # before it: a reader then stops at the next photo

    def __exit__(
        self, kind: type[BaseException] | None, stop: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._opened.__exit__(kind, stop, traceback)
        if not isinstance(stop, (KeyboardInterrupt, CheckpointError)):
            return
        cloaks, partial = self._finished(), self._unfinished()
        if isinstance(stop, CheckpointError):
            stop.cloaks, stop.partial = cloaks, partial
            return
        goes_on = ""
        if self._folder is not None:
            goes_on = f"; the same call goes on from what is saved in {os.fspath(self._folder)}"
        raise FitInterrupted(
            cloaks,
            partial,
            f"interrupted: {len(cloaks)} of {len(self._people)} people are finished (in .cloaks), {len(partial)} have "
            f"one of the steps done so far (in .partial){goes_on}",
        ) from stop

    def result(self) -> dict[str, Cloak]:
        """The cloaks, in the order of the people.

        Raises:
            FitManyError: there are errors.
        """
        if self.errors:
            raise FitManyError(
                self._finished(), {name: self.errors[name] for name in self._people if name in self.errors}
            )
        return self._finished()

    def learn(self) -> None:
        """Read everyone, group them into passes and learn their cloaks."""
        begun = {} if self._checkpoint is None else self._checkpoint.begun
        for photos in grouped(self._read(), self._fitter.persons_per_pass, begun):
            group = self._embedded(photos)
            if not group:
                continue
            running = self._pass = _Pass(group, self._checkpoint)
            for _ in running.state.get("losses", ()):
                self._tick(len(group))
            try:
                tick = partial(self._tick, len(group))
                learnt = self._fitter.learn(list(group.values()), tick, running.keep, running.state)
            except torch.OutOfMemoryError as error:  # the others are not lost
                self.errors |= dict.fromkeys(group, error)
                continue
            finished = running.cloaks(learnt, self._fitter.made_by(), self.errors)
            self.cloaks |= finished
            running.finish(finished)

    def _finished(self) -> dict[str, Cloak]:
        return {name: self.cloaks[name] for name in self._people if name in self.cloaks}

    def _unfinished(self) -> dict[str, Cloak]:
        """The cloaks of those under way after their last whole step, by name."""
        running = self._pass
        if running is None or running.learnt is None or not running.learnt.steps:
            return {}
        with own_modes(self._fitter.device):
            partial = running.cloaks(running.learnt, self._fitter.made_by(), {}, finished=False)
        return {name: cloak for name, cloak in partial.items() if name not in self.cloaks}

    def _read(self) -> Iterator[tuple[str, Photos]]:
        """Everyone who is to be fitted; in `errors` what is wrong with the photos of the others."""
        fitter = self._fitter
        for name, read in in_order(self._readers, self._photos, self._people.items(), lambda: self._ahead):
            try:
                if isinstance(read, Exception):
                    raise read
                self._ahead = max(fitter.readers, fitter.persons_per_pass(len(read.faces)))
                fitter.check_photos(len(read.faces), read.copied)
                self._complain(name, read.copied, "are copies of others and left out")
                cloak = None if self._checkpoint is None else self._checkpoint.finished(name, read.faces)
            except Exception as error:  # one person's bad photos must not end the others' work
                self.errors[name] = error
                continue
            if cloak is None:
                yield name, read
            else:
                self.cloaks[name] = cloak
                self._tick(fitter.config.steps)

    def _photos(self, person: tuple[str, Any]) -> tuple[str, Photos | Exception]:
        """Read a person's photos, or say what is wrong with them; used by threads."""
        name, images = person
        try:
            names, faces = [], []
            for photo, face in each_face(images):
                if self._ended.is_set():  # nobody waits for this person any more
                    break
                names.append(photo)
                faces.append(face)
            first = copies(torch.stack(faces))
            copied = [f"{names[copy]} of {names[i]}" for copy, i in first.items()]
            kept = [i for i in range(len(faces)) if i not in first]
            whole = torch.stack([faces[i] for i in kept])
            return name, Photos([names[i] for i in kept], whole, copied, self._fitter.config.of(whole))
        except Exception as error:
            return name, error

    def _embedded(self, group: Mapping[str, Photos]) -> dict[str, Person]:
        """The people of a pass with their features; in `errors` what is wrong with the others."""
        people: dict[str, Person] = {}
        features = self._fitter.embedded([photos.faces for photos in group.values()])
        for (name, photos), found in zip(group.items(), features, strict=True):
            try:
                if isinstance(found, Exception):
                    raise found
                far = [photos.names[i] for i in strangers(found, stranger_bound(self._fitter.surrogate))]
                several = 2 * len(far) >= len(photos.faces)
                whose = "of several people, or without a face" if several else "of someone else, or no face"
                self._complain(name, far, f"are unlike most of the others: {whose}; better leave them out")
            except Exception as error:  # see above
                self.errors[name] = error
                continue
            about = {"copies": len(photos.copied), "strangers": len(far)}
            people[name] = Person(photos.faces, found, photos.config, about)
        return people

    def _complain(self, person: str, photos: list[str], what: str) -> None:
        if photos:
            message = f"photos that {what} ({len(photos)}): {listed(photos)}"
            if self._fitter.strict:
                raise ValueError(f"images must be different photos of one person (strict), got {message}")
            log.warning("%s%s", f"{person}: " if person else "", message)


class _Pass:
    """The pass that runs: what it has learnt so far, and where that is saved."""

    def __init__(self, people: Mapping[str, Person], checkpoint: Checkpoint | None) -> None:
        self._people, self._began = people, time.perf_counter()
        self._saved = None if checkpoint is None else checkpoint.start(list(people))
        self.state: Tensors = {} if self._saved is None else self._saved.state
        self.learnt: Learnt | None = None

    def keep(self, learnt: Learnt, state: Callable[[], Tensors]) -> None:
        """Remember what was learnt after a step, and save its state now and then."""
        # One assignment: an interruption, which may come anywhere, finds this step or the one before.
        self.learnt = learnt
        if self._saved is not None:
            self._saved.save(state)

    def finish(self, cloaks: Mapping[str, Cloak]) -> None:
        if self._saved is not None:
            self._saved.finish(cloaks)

    def cloaks(
        self, learnt: Learnt, made_by: Mapping[str, Any], errors: dict[str, Exception], finished: bool = True
    ) -> dict[str, Cloak]:
        """The cloaks of everyone in the pass by name, and in `errors` what went wrong with the others."""
        seconds = time.perf_counter() - self._began + (0.0 if self._saved is None else self._saved.seconds)
        info = {**made_by, "seconds": seconds / len(self._people)}
        cloaks = {}
        for i, (name, person) in enumerate(self._people.items()):
            try:
                cloaks[name] = _cloak(learnt, i, person, info, finished)
            except (FloatingPointError, ValueError) as error:
                errors[name] = error
        return cloaks


def _cloak(learnt: Learnt, row: int, person: Person, made_by: Mapping[str, Any], finished: bool) -> Cloak:
    """The cloak of one person of a pass, or what went wrong with it."""
    config: FitConfig = person.config
    steps = config.steps if finished else learnt.steps
    delta, losses = learnt.delta[row].cpu().contiguous(), learnt.losses[:steps, row].cpu()
    if not (losses.isfinite().all() and delta.isfinite().all()):
        bad = (~losses.isfinite()).nonzero()
        step = int(bad[0]) if len(bad) else steps - 1
        raise FloatingPointError(
            f"the surrogate's embeddings or gradients became NaN or Inf at step {step + 1} of {config.steps}; "
            "check the network (and its scale and shift), or use dtype='float32'"
        )
    if len(losses) and config.eps and not learnt.moved[row]:
        raise ValueError(
            "the gradient was zero at every step, so that nothing was learnt: the network must be differentiable and "
            "give different embeddings for different photos"
        )
    gap = learnt.gap[row].item()
    if not gap <= LARGEST_GAP:  # also true for NaN
        log.warning("hull weights were found only to a duality gap of %.1e (expected below %.0e)", gap, LARGEST_GAP)
    photos = len(person.faces)
    batch_size, networks = config.batch(photos), 1 if config.ensemble == "turns" else len(made_by["models"])
    info = {
        **asdict(config),
        "batch_size": batch_size,
        "augment": list(config.augment),
        "photos": photos,
        "image_gradients": steps * config.inner_steps * batch_size * networks if config.eps else 0,
        "losses": losses.tolist(),
        "hull_gap": gap,
        **made_by,
        **person.about,
    }
    if not finished:
        info |= {"partial": True, "steps_done": steps}
    return Cloak(delta, config.eps, info)


@contextmanager
def own_modes(device: torch.device) -> Iterator[None]:
    """Gradients on, autocast off and the device current, whatever the caller's modes are."""
    current = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with current, torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        yield


class Ticker:
    """Moves the bar, or calls the caller's function."""

    def __init__(self, people: int, steps: int, progress: Progress) -> None:
        self._done, self._total = 0, people * steps
        self._callback = progress if callable(progress) else None
        # None: silent when stderr is no terminal.
        disable = sys.stderr is None or self._callback is not None or (None if progress is None else not progress)
        description = "fitting" if people == 1 else f"fitting {people} people"
        self._bar = tqdm(total=self._total, desc=description, unit="step", disable=disable)
        self.close = self._bar.close

    def __call__(self, persons: int) -> None:
        """After a step of N persons."""
        self._done += persons
        self._bar.update(persons)
        if self._callback is not None:
            self._callback(self._done, self._total)
