"""Learning cloaks: the loops of OPOM and GA-OPOM, for one person or many at once."""

from __future__ import annotations

import logging
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from fastcloak.cloak import LEAST_CHANGE, Cloak
from fastcloak.fitting.checkpoint import Checkpoint, open_checkpoint
from fastcloak.fitting.claim import fingerprint
from fastcloak.fitting.options import FitConfig, configure
from fastcloak.fitting.outliers import copies, listed, stranger_bound, strangers
from fastcloak.fitting.passes import Passes, Person, Underway, grouped, persons_per_pass
from fastcloak.models import load_model, prepare, unit_features
from fastcloak.photos.inputs import named_faces
from fastcloak.system.device import resolve_device, resolve_dtype
from fastcloak.system.errors import CheckpointError, FitInterrupted, FitManyError

log = logging.getLogger("fastcloak")

LEAST_PHOTOS = 2

Progress = bool | Callable[[int, int], None] | None


def fit(
    images: Any,
    model: Any,
    *,
    method: str = "ga",
    preset: str | None = None,
    objective: str = "convex_hull",
    eps: float = 8 / 255,
    alpha: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    inner_steps: int | None = None,
    inner_alpha: float | None = None,
    normalise: bool | None = None,
    decay: float | None = None,
    augment: Sequence[str] | str | None = None,
    dropout: float | None = None,
    smoothing: float | None = None,
    spread: float | None = None,
    ensemble: str | None = None,
    average: float | None = None,
    warmup: int = 5,
    lower: float = 0.0,
    upper: float = 1.0,
    random_start: bool = True,
    grey: bool | None = None,
    seed: int = 0,
    strict: bool = False,
    device: str | torch.device = "auto",
    backend: str = "auto",
    engine: str = "auto",
    dtype: str | torch.dtype = "auto",
    progress: Progress = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = True,
) -> Cloak:
    """Learns one person's cloak from about ten of their photos.

    Options that are None take what the preset says, see `fastcloak.fitting.options.PRESETS`, or else the default
    named here.

    Args:
        images: the person's photos, two or more: tensor or array [N, 3, H, W] or [N, H, W, 3], uint8 or float in
            [0, 1]; a list of PIL images or paths; or a folder. 112x112 pictures count as aligned faces, in others the
            largest face is detected and aligned.
        model: the surrogate: anything `load_model` takes or returns; a list is an ensemble.
        method: "ga" (GA-OPOM: gradients of small batches accumulated into one signed step) or "opom" (all photos in
            every step, as published).
        preset: "fast", "balanced" or "strong": our recipe for 160, 640 and 1,280 image-gradients; "plain": ga
            without boosters. None: "fast". opom has "plain" only. Other options override a preset.
        objective: "fi_uap", "fi_uap_plus", "class_center", "affine_hull" or "convex_hull".
        eps: largest change of a pixel, on the [0, 1] scale.
        alpha: step on the [0, 1] scale; 1 / 255.
        steps: signed steps of the mask; 16. 0 gives an empty mask.
        batch_size: ga: photos per inner step, at most N; 1 (our ablation, docs/method.md).
        inner_steps: ga: inner steps accumulated into one step; 10 (our ablation).
        inner_alpha: ga: step of the look-ahead; eps / 2 (our ablation).
        normalise: ga: accumulate g / mean|g| instead of g.
        decay: momentum of the outer step, 0 to 1, on g / mean|g|; 0. (The published code keeps a velocity per photo.)
            Dong et al., CVPR 2018. Free.
        augment: show the network a random view of each picture, drawn anew in each inner step: names out of "mix",
            "photo", "color", "blur", "jpeg", "geometry" and "flip" (`fastcloak.ops.augment`), as a tuple or "a,b";
            "+a,b" adds them to the preset's. "+photo" is for photos that are small or will be saved coarsely
            (docs/method.md). Costs no image-gradient, and a few milliseconds each.
        dropout: share of numbers dropped after each convolution, anew in each pass, 0 to 0.9; 0 (DFANet, Zhong and
            Deng, TIFS 2021, has 0.1). Costs no image-gradient, but time.
        smoothing: width (sigma, pixels) of a Gaussian blur of the gradient; 0 (TI, Dong et al., CVPR 2019). Free.
        spread: weight of the log-determinant of the cloaked photos' Gram matrix in the objective, against linkage
            between them; 0. Free.
        ensemble: how several networks are joined: "loss" (mean of the losses, hull weights in common), "gradient"
            (mean of the gradients, each divided by its own size) or "turns" (one network each inner step, in turns,
            gradients divided by their size). "loss" and "gradient" cost an image-gradient for each network and photo,
            "turns" one for each photo.
        average: share of the steps, the last ones, whose masks are averaged, 0 to 1; the cloak is then eps times the
            sign of that mean, so that every pixel takes all of eps. 0, the last mask as it is. Free. (The mean: Polyak
            and Juditsky, 1992; the sign is ours, docs/method.md.)
        warmup: convex_hull: first steps that use class_center, to leave the hull.
        lower, upper: convex_hull: bounds of the hull weights; narrower than 0 and 1 is the reduced hull. They must
            leave room around 1/N.
        random_start: start from uniform noise in +-eps, one per photo (ga: the mean of these), instead of zero.
        grey: learn a mask of three equal channels: grey photos stay grey, and of another mask hold only the mean of its
            channels. None: ga does so if all photos are grey, opom (as published) does not.
        seed: of the start and the order of photos.
        strict: refuse photos that are copies of others, or that do not look like most of the others. Else copies are
            left out, so that none counts twice, and both are logged as a warning that names them.
        device: "auto" (CUDA where there is one), or a torch device.
        backend: what computes the hot operations: "reference" (PyTorch), "triton" (fused kernels, on CUDA, up to 64
            photos), or "auto": triton where its kernels work, else reference.
        engine: how a step is launched: "eager"; "compile" (the network through torch.compile); "cudagraph" (the whole
            step captured once and replayed); "auto" is cudagraph on CUDA, else eager.
        dtype: of the surrogate: "float32", "bfloat16", the torch dtype, or "auto": bfloat16 where the processor is
            faster with it (see `fastcloak.models.prepare`), else float32. The mask, the accumulated gradient and the
            hull are always float32 or better.
        progress: None: a bar if the terminal shows one; True or False: always, never; or a function that is called
            with (steps done, steps in all).
        checkpoint: a folder, new or of an earlier fit, in which to save what was learnt, about once a second, so that
            the same call goes on from there after any stop. On a CPU, with the same number of threads, the cloak is bit
            for bit that of a fit that was not stopped. Remove the folder when the cloak is saved.
        resume: go on with what is in the checkpoint; False removes that and begins anew.

    Returns:
        `Cloak`. `info["photos"]` is how many it was learnt from, `info["copies"]` how many were left out and
            `info["strangers"]` how many do not look like most of the others; `info["losses"]` is the mean loss of each
            step, `info["image_gradients"]` the cost: forward and backward passes of one photo through the surrogate.

    Raises:
        ValueError: bad input; the message names it, what was expected and the cure.
        FloatingPointError: NaN or Inf in the surrogate's embeddings or gradients, with the step.
        TypeError: images or a model of a type that cannot be taken.
        FitInterrupted: Ctrl-C; it holds the cloak after the last whole step.
        CheckpointError: an OSError: the checkpoint cannot be written (a full disk ...) or is in use. Raised at once; it
            holds the cloak after the last whole step too, and the folder what was saved before.

    Source: OPOM (Zhong and Deng, TPAMI 2022); GA-OPOM (Liu et al., arXiv 2401.01575).
    """
    options = {name: value for name, value in locals().items() if name not in ("images", "model")}
    try:
        return fit_many({"": images}, model, **options)[""]
    except FitManyError as error:
        raise error.errors[""] from None


def fit_many(
    people: Mapping[str, Any],
    model: Any,
    *,
    device: str | torch.device = "auto",
    backend: str = "auto",
    engine: str = "auto",
    dtype: str | torch.dtype = "auto",
    progress: Progress = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = True,
    memory_budget: int | None = None,
    strict: bool = False,
    **options: Any,
) -> dict[str, Cloak]:
    """Learns a cloak for each of many people; several can share a forward pass.

    People with the same number of photos share passes; photos are read as they are needed. In a pass of one person
    the cloak is bit for bit that of `fit`. In a larger one the network may round differently, which signs make grow
    from step to step: the cloak then differs in many pixels, but hardly in its loss (docs/method.md).

    Args:
        people: name -> photos, as for `fit`. The number of photos may differ.
        model: the surrogate, as for `fit`.
        device, backend, engine, dtype, progress: as for `fit`; progress counts the steps of all people.
        checkpoint, resume: as for `fit`. The folder also gets a cloak file of everyone who is finished; they are not
            fitted again, as long as their photos, which are read again, are the same. People may be added and left out.
            A pass that was stopped goes on with the same people in it.
        memory_budget: bytes that one pass may take. None: on CUDA a quarter of the free memory; on CPU one person per
            pass, so that the cloak is bit for bit that of `fit`; larger passes can be faster on some networks.
        strict: as for `fit`; it makes people fail whose photos are not all different and theirs.
        options: every other option of `fit`.

    Returns:
        name -> cloak, in the order of `people`.

    Raises:
        ValueError: a bad option, or a checkpoint of other options, of another network, device or version.
        FitManyError: one or more people could not be fitted. All others were, and are in its `.cloaks`.
        FitInterrupted, CheckpointError: as `fit`; they hold the cloaks of everyone who was finished.
    """
    try:
        fitter = Fitter(
            model,
            device=device,
            backend=backend,
            engine=engine,
            dtype=dtype,
            memory_budget=memory_budget,
            strict=strict,
            **options,
        )
    except KeyboardInterrupt as stop:
        raise FitInterrupted({}, {}, "interrupted while the model was loaded; nothing is finished") from stop
    return fitter.fit_many(people, progress=progress, checkpoint=checkpoint, resume=resume)


class Fitter:
    """A surrogate made ready, and a step captured, once for many calls of `fit_many`.

    Attributes:
        config: the options.
        loaded: the surrogate as `load_model` gave it.
    """

    def __init__(
        self,
        model: Any,
        *,
        device: str | torch.device = "auto",
        backend: str = "auto",
        engine: str = "auto",
        dtype: str | torch.dtype = "auto",
        memory_budget: int | None = None,
        strict: bool = False,
        **options: Any,
    ) -> None:
        """Loads and prepares.

        Args:
            model, device, backend, engine, dtype, memory_budget, strict, options: as for `fit_many`.

        Raises:
            ValueError, TypeError: as `fit_many`.
        """
        if memory_budget is not None and (isinstance(memory_budget, bool) or not isinstance(memory_budget, int)):
            raise ValueError(f"memory_budget must be a whole number of bytes, got {memory_budget!r}")
        if not isinstance(strict, bool):
            raise ValueError(f"strict must be True or False, got {strict!r}")
        self.config, self._strict = configure(options), strict
        for name, least in (("steps", 1), ("alpha", 1e-9), ("eps", LEAST_CHANGE / 255)):
            if getattr(self.config, name) < least:
                log.warning("with %s = %g a cloak protects nothing", name, getattr(self.config, name))
        self._place = resolve_device(device)
        self._passes = Passes(backend, engine, self._place)
        with _own_modes(self._place):
            self.loaded = load_model(model)
            self._surrogate = prepare(self.loaded, device=self._place, dtype=resolve_dtype(dtype))
            self._persons = persons_per_pass(self._surrogate, self.config, memory_budget)
        self._made_by: dict[str, Any] = {
            "models": [member.name for member in self._surrogate.members],
            "device": torch.cuda.get_device_name(self._place) if self._place.type == "cuda" else self._place.type,
            "dtype": str(self._surrogate.dtype).removeprefix("torch."),
            "versions": _versions(),
        }

    def fit_many(
        self,
        people: Mapping[str, Any],
        *,
        progress: Progress = None,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: bool = True,
    ) -> dict[str, Cloak]:
        """`fastcloak.fit_many` with what is ready; arguments, result and errors are its."""
        if not isinstance(people, Mapping):
            raise TypeError(f"people must be a mapping of name -> photos, got {type(people).__name__}")
        if not isinstance(resume, bool):
            raise ValueError(f"resume must be True or False, got {resume!r}")
        if checkpoint is not None and not all(isinstance(name, str) for name in people):
            raise TypeError(
                "people must have names of type str where there is a checkpoint, whose files are named after them"
            )
        cloaks: dict[str, Cloak] = {}
        errors: dict[str, Exception] = {}
        underway: Underway | None = None
        try:
            with _ticker(len(people), self.config.steps, progress) as tick, _own_modes(self._place):
                opened: AbstractContextManager[Checkpoint | None] = nullcontext()
                if checkpoint is not None:
                    opened = open_checkpoint(checkpoint, self.fingerprint(), resume)
                with opened as kept:

                    def read(name: str, images: Any) -> Person | None:
                        faces, names, copied = _read(self.config, images)
                        self._complain(name, copied, "are copies of others and left out")
                        self._passes.check(len(faces), self._surrogate.embedding_size)
                        if kept is not None and (cloak := kept.finished(name, faces)) is not None:
                            cloaks[name] = cloak
                            return None
                        features = unit_features(self._surrogate, faces)
                        far = [names[i] for i in strangers(features, stranger_bound(self._surrogate))]
                        several = 2 * len(far) >= len(faces)
                        whose = "of several people, or without a face" if several else "of someone else, or no face"
                        self._complain(name, far, f"are unlike most of the others: {whose}; better leave them out")
                        about = {"copies": len(copied), "strangers": len(far)}
                        return Person(faces, features, self.config.of(faces), about)

                    begun = {} if kept is None else kept.begun
                    skip = partial(tick, self.config.steps)
                    for group in grouped(people, read, skip, self._persons, begun, errors):
                        names, members = list(group), list(group.values())
                        own, saved = members[0].config, None if kept is None else kept.start(names)
                        about = [member.about for member in members]
                        underway = Underway(names, len(members[0].faces), own, saved, about)
                        for _ in underway.state.get("losses", ()):
                            tick(len(names))
                        try:
                            learnt = self._passes.learn(self._surrogate, members, partial(tick, len(names)), underway)
                        except torch.OutOfMemoryError as error:  # the others are not lost
                            errors |= dict.fromkeys(group, error)
                            continue
                        finished = underway.cloaks(learnt, self._ran(), errors)
                        cloaks |= finished
                        if underway.saved is not None:
                            underway.saved.finish(finished)
        except (KeyboardInterrupt, CheckpointError) as stop:
            unfinished: dict[str, Cloak] = {}
            if underway is not None and underway.learnt is not None and underway.learnt.steps:
                with _own_modes(self._place):
                    unfinished = underway.cloaks(underway.learnt, self._ran(), {}, finished=False)
            cloaks = {name: cloaks[name] for name in people if name in cloaks}
            unfinished = {name: cloak for name, cloak in unfinished.items() if name not in cloaks}
            if isinstance(stop, CheckpointError):
                stop.cloaks, stop.partial = cloaks, unfinished
                raise
            where = ""
            if checkpoint is not None:
                where = f"; the same call goes on from what is saved in {os.fspath(checkpoint)}"
            raise FitInterrupted(
                cloaks,
                unfinished,
                f"interrupted: {len(cloaks)} of {len(people)} people are finished (in .cloaks), {len(unfinished)} have "
                f"one of the steps done so far (in .partial){where}",
            ) from stop
        cloaks = {name: cloaks[name] for name in people if name in cloaks}
        if errors:
            raise FitManyError(cloaks, errors)
        return cloaks

    def _complain(self, person: str, photos: list[str], what: str) -> None:
        if photos:
            words = f"photos that {what} ({len(photos)}): {listed(photos)}"
            if self._strict:
                raise ValueError(f"images must be different photos of one person (strict), got {words}")
            log.warning("%s%s", f"{person}: " if person else "", words)

    def fingerprint(self) -> dict[str, Any]:
        """What must be the same for a later run to go on where an earlier one stopped, for JSON."""
        return fingerprint(self._surrogate, self.loaded, self.config, **self._ran())

    def _ran(self) -> dict[str, Any]:
        return {**self._made_by, "backend": self._passes.backend, "engine": self._passes.engine}


def _read(config: FitConfig, images: Any) -> tuple[torch.Tensor, list[str], list[str]]:
    """One person's aligned faces [N, 3, 112, 112] with their names, and the copies left out; or what is wrong."""
    names, faces = named_faces(images)
    first = copies(faces)
    copied = [f"{names[copy]} of {names[i]}" for copy, i in first.items()]
    if first:
        kept = [i for i in range(len(faces)) if i not in first]
        faces, names = faces[kept], [names[i] for i in kept]
    N = len(faces)
    if N < LEAST_PHOTOS:
        raise ValueError(
            f"images must hold {LEAST_PHOTOS} photos of the person or more (ten work well), got {N}"
            + (f" and copies: {listed(copied)}" if copied else "")
        )
    if config.objective == "convex_hull" and not config.lower < 1 / N < config.upper:
        raise ValueError(
            f"lower and upper must leave room around 1/N = {1 / N:g} for the {N} photos, got {config.lower:g} and "
            f"{config.upper:g}; weights that are all 1/N are objective 'class_center'"
        )
    return faces, names, copied


def _versions() -> dict[str, str]:
    return {
        "fastcloak": version("fastcloak"),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


@contextmanager
def _own_modes(device: torch.device) -> Iterator[None]:
    """Gradients on, autocast off and the device current, whatever the caller's modes are."""
    current = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with current, torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        yield


@contextmanager
def _ticker(people: int, steps: int, progress: Progress) -> Iterator[Callable[[int], None]]:
    """A function to call after a step of so many persons: moves the bar or tells the caller's function."""
    total = people * steps
    if callable(progress):
        done = 0

        def tick(persons: int) -> None:
            nonlocal done
            done += persons
            progress(done, total)

        yield tick
    else:
        # disable=None: silent when stderr is no terminal.
        disable = sys.stderr is None or (None if progress is None else not progress)
        description = "fitting" if people == 1 else f"fitting {people} people"
        with tqdm(total=total, desc=description, unit="step", disable=disable) as bar:

            def move(persons: int) -> None:
                bar.update(persons)

            yield move
