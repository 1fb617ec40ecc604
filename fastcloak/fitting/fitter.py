"""Learning cloaks: `fit` for one person, `fit_many` for many, `Fitter` for many calls.

The photos go from here through `run.py` (read, grouped, kept) to `loop.py` (the steps) and `objective.py` (a gradient).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch

from fastcloak.cloak import Cloak
from fastcloak.fitting.claim import fingerprint
from fastcloak.fitting.groups import Person, persons_per_pass
from fastcloak.fitting.learner import Learner, on_device
from fastcloak.fitting.options import configure, warn_of_idle
from fastcloak.fitting.run import LEAST_PHOTOS, Progress, Run, own_modes
from fastcloak.fitting.state import Learnt, Tensors
from fastcloak.models import unit_features
from fastcloak.ops.backend import capturable, holds
from fastcloak.protection.outliers import listed
from fastcloak.system.checks import whole
from fastcloak.system.errors import FitInterrupted, FitManyError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fastcloak.fitting.options import FitOptions

log = logging.getLogger("fastcloak")

READERS = 8
"""Threads that read photos for a GPU, at most; a CPU reads for itself, since its cores are busy with the steps."""
EMBEDDED_AT_ONCE = 256
"""Clean faces in a forward pass on a GPU."""


def fit(
    images: Any,
    model: Any,
    *,
    preset: str | None = None,
    eps: float = 8 / 255,
    seed: int = 0,
    strict: bool = False,
    progress: Progress = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = True,
    device: str | torch.device = "auto",
    backend: str = "auto",
    engine: str = "auto",
    dtype: str | torch.dtype = "auto",
    **options: Unpack[FitOptions],
) -> Cloak:
    """Learns one person's cloak from about ten of their photos.

        cloak = fastcloak.fit("photos/anna", "sface")
        cloak.save("anna.safetensors")

    Args:
        images: the person's photos, two or more: tensor or array [N, 3, H, W] or [N, H, W, 3], uint8 or float in
            [0, 1]; a list of PIL images or paths; or a folder. 112x112 pictures count as aligned faces, in others the
            largest face is detected and aligned.
        model: the surrogate: anything `load_model` takes or returns; a list is an ensemble.
        preset: "fast", "balanced" or "strong": our recipe for 160, 640 and 1,280 image-gradients; "plain": ga
            without boosters. None: "fast". opom has "plain" only. Other options override a preset.
        eps: largest change of a pixel, on the [0, 1] scale.
        seed: of the start, the order of photos and the views.
        strict: refuse photos that are copies of others, or that do not look like most of the others. Else copies are
            left out, so that none counts twice, and both are logged as a warning that names them.
        progress: None: a bar if the terminal shows one; True or False: always, never; or a function that is called
            with (steps done, steps in all).
        checkpoint: a folder, new or of an earlier fit, in which to save what was learnt, about once a second, so that
            the same call goes on from there after any stop. On a CPU, with the same number of threads, the cloak is bit
            for bit that of a fit that was not stopped. Remove the folder when the cloak is saved.
        resume: go on with what is in the checkpoint; False removes that and begins again.
        device: "auto" (CUDA where there is one), or a torch device.
        backend: what computes the hot operations: "reference" (PyTorch), "triton" (fused kernels, on CUDA, up to 64
            photos), or "auto": triton where its kernels work, else reference.
        engine: how a step is launched: "eager"; "cudagraph" (the whole step captured once and replayed); "compile"
            (the network through torch.compile, and on CUDA the step captured where it can be); "auto" is cudagraph on
            CUDA, and eager on a CPU and where a step cannot be captured.
        dtype: of the surrogate: "float32", "bfloat16", the torch dtype, or "auto": bfloat16 where the processor is
            faster with it (see `fastcloak.models.prepare`), else float32. The mask, the accumulated gradient and the
            hull are always float32 or better.
        options: `fastcloak.fitting.options.FitOptions`; docs/use.md and `fastcloak fit --help` list them.

    Returns:
        `Cloak`. `info["photos"]` is how many it was learnt from, `info["copies"]` how many were left out and
            `info["strangers"]` how many do not look like most of the others; `info["losses"]` is the mean loss of each
            step, `info["image_gradients"]` the cost: forward and backward passes of one photo through the surrogate.

    Raises:
        ValueError: bad input; the message names it, what was expected and a hint.
        FloatingPointError: NaN or Inf in the surrogate's embeddings or gradients, with the step.
        TypeError: images or a model of a type that cannot be taken, or an unknown option.
        FitInterrupted: Ctrl-C; it holds the cloak after the last whole step.
        CheckpointError: an OSError: the checkpoint cannot be written (a full disk ...) or is in use. Raised at once; it
            holds the cloak after the last whole step too, and the folder what was saved before.

    Source: OPOM (Zhong and Deng, TPAMI 2022); GA-OPOM (Liu et al., arXiv 2401.01575).
    """
    try:
        return fit_many(
            {"": images},
            model,
            preset=preset,
            eps=eps,
            seed=seed,
            strict=strict,
            progress=progress,
            checkpoint=checkpoint,
            resume=resume,
            device=device,
            backend=backend,
            engine=engine,
            dtype=dtype,
            **options,
        )[""]
    except FitManyError as error:
        raise error.errors[""] from None


def fit_many(
    people: Mapping[str, Any],
    model: Any,
    *,
    preset: str | None = None,
    eps: float = 8 / 255,
    seed: int = 0,
    strict: bool = False,
    progress: Progress = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = True,
    device: str | torch.device = "auto",
    backend: str = "auto",
    engine: str = "auto",
    dtype: str | torch.dtype = "auto",
    memory_budget: int | None = None,
    **options: Unpack[FitOptions],
) -> dict[str, Cloak]:
    """Learns a cloak for each of many people; several can share a forward pass.

    People with the same number of photos share passes; photos are read as they are needed. In a pass of one person
    the cloak is bit for bit that of `fit`. In a larger one the network may round differently, which signs make grow
    from step to step: the cloak then differs in many pixels, but hardly in its loss (docs/notebook.md).

    Args:
        people: name -> photos, as for `fit`. The number of photos may differ.
        model: the surrogate, as for `fit`.
        preset, eps, seed, device, backend, engine, dtype, options: as for `fit`.
        strict: as for `fit`; it makes people fail whose photos are not all different and theirs.
        progress: as for `fit`; it counts the steps of all people.
        checkpoint, resume: as for `fit`. The folder also gets the cloak files of people already done; they are not
            fitted again, as long as their photos, which are read again, are the same. People may be added and left out.
            A pass that was stopped goes on with the same people in it.
        memory_budget: bytes that one pass may take. None: on CUDA a quarter of the free memory; on CPU one person per
            pass, so that the cloak is bit for bit that of `fit`; larger passes can be faster on some networks.

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
            preset=preset,
            eps=eps,
            seed=seed,
            strict=strict,
            device=device,
            backend=backend,
            engine=engine,
            dtype=dtype,
            memory_budget=memory_budget,
            **options,
        )
    except KeyboardInterrupt as stop:
        raise FitInterrupted({}, {}, "interrupted while the model was loaded; nothing is finished") from stop
    return fitter.fit_many(people, progress=progress, checkpoint=checkpoint, resume=resume)


class Fitter(Learner):
    """A surrogate made ready, and a step captured, once for many calls of `fit_many`.

    Attributes:
        config: the options.
        strict: as for `fit`.
        persons_per_pass: N photos -> how many people share a pass.
        readers: threads that read the photos of the next pass while one is learnt; 0: they are read when needed.
        faces_at_once: how many clean faces, of whomever, share a forward pass; 0: each person's are embedded alone, so
            that their features do not depend on the others, to the bit.
    """

    def __init__(
        self,
        model: Any,
        *,
        preset: str | None = None,
        eps: float = 8 / 255,
        seed: int = 0,
        strict: bool = False,
        device: str | torch.device = "auto",
        backend: str = "auto",
        engine: str = "auto",
        dtype: str | torch.dtype = "auto",
        memory_budget: int | None = None,
        **options: Unpack[FitOptions],
    ) -> None:
        """Loads and prepares.

        Args:
            model, preset, eps, seed, strict, device, backend, engine, dtype, memory_budget, options: as for `fit_many`.

        Raises:
            ValueError, TypeError: as `fit_many`.
        """
        if memory_budget is not None:
            memory_budget = whole("memory_budget", memory_budget, 0)
        if not isinstance(strict, bool):
            raise ValueError(f"strict must be True or False, got {strict!r}")
        self.config, self.strict = configure({"preset": preset, "eps": eps, "seed": seed, **options}), strict
        warn_of_idle(self.config)
        super().__init__(model, device, backend, engine, dtype)
        on_cpu = self.device.type == "cpu"
        self.readers = 0 if on_cpu else min(READERS, os.cpu_count() or 1)
        self.faces_at_once = 0 if on_cpu else EMBEDDED_AT_ONCE
        with own_modes(self.device):
            self.persons_per_pass = persons_per_pass(self.surrogate, self.config, memory_budget)

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
        with Run(self, people) as run:
            run.open(progress, checkpoint, resume)
            run.learn()
        return run.result()

    def learn(
        self,
        group: list[Person],
        tick: Callable[[], None],
        keep: Callable[[Learnt, Callable[[], Tensors]], None],
        saved: Tensors,
    ) -> Learnt:
        """Run the loop for people who have the same number of photos and options; see `Loop.learn`."""
        faces = on_device(torch.stack([person.faces for person in group]), self.device)
        features = torch.stack([person.features for person in group])
        return self.run(
            group[0].config,
            *faces.shape[:2],
            most=self.persons_per_pass(faces.shape[1]),
            faces=faces,
            features=features,
            tick=tick,
            keep=keep,
            saved=saved,
        )

    def embedded(self, people: Sequence[torch.Tensor]) -> Iterator[torch.Tensor | Exception]:
        """Unit features of each person's faces, [N, 3, 112, 112], or what is wrong with them."""
        together: tuple[torch.Tensor, ...] = ()
        if self.faces_at_once:
            with suppress(FloatingPointError, torch.OutOfMemoryError):  # whose faces it was is seen below
                faces = on_device(torch.cat(list(people)), self.device)
                sizes = [len(one) for one in people]
                together = torch.split(unit_features(self.surrogate, faces, self.faces_at_once), sizes)
        for i, one in enumerate(people):
            try:
                yield together[i] if together else unit_features(self.surrogate, one)
            except Exception as error:
                yield error

    def check_photos(self, N: int, copied: list[str]) -> None:
        """Refuse too few photos, or more than the hull's bounds or the wished backend and engine hold."""
        config, size = self.config, self.surrogate.embedding_size
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
        if self._backend_wish != "auto" and not holds(self._ops[1], N, size):
            raise ValueError(
                f"backend {self._backend_wish!r} holds hulls of 64 photos and 8192 numbers at most, got {N} photos "
                f"with embeddings of {size}; use backend='auto'"
            )
        if self._engine_wish == "cudagraph" and not capturable(self.operations(N)[1], config.objective):
            raise ValueError(
                "engine 'cudagraph' cannot hold convex hulls of the reference, which also has those of more than 64 "
                f"photos, got {N} photos; use engine='auto', or another objective"
            )

    def fingerprint(self) -> dict[str, Any]:
        """What must be the same for a later run to go on where an earlier one stopped, for JSON."""
        return fingerprint(self.surrogate, self.loaded, self.config, **{**self.made_by(), **self.wished()})
