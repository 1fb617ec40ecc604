"""What one GPU does: kernels, the ladder, people per pass, engines, launches and energy, as many rows as time allows.

    bash bench/gpu_check.sh                                     builds, tests and then runs this
    python -m bench.speed.gpu --seconds 240 -o bench/results    the measurements alone, fastcloak installed
    python -m bench.speed.gpu --dry-run -o rows                 on a CPU with tiny sizes: is every row written?

Every section runs in a process of its own: neither a broken CUDA context, nor a failed capture, after which torch 2.11
can never capture again (pytorch/pytorch #180395), nor a hang takes the other sections with it. A row is written as soon
as it is measured; one that could not be has the reason in `note`.

Times are medians of CUDA events, in turns where things are compared, after a first call whose time is `setup_seconds`.
A pass is timed as a whole, with the few launches that build its hull. `share` is the share of the roofline: bytes that
must be moved, over a large copy; or operations of the network's forward and backward pass, over a large matrix product
in the precision of its convolutions (float32 runs as TF32, torch's default for convolutions).
"""

from __future__ import annotations

import argparse
import csv
import gc
import math
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._autograd import DeviceType
from torch.nn.functional import interpolate, normalize
from torch.profiler import ProfilerActivity, profile

from bench.harness import nets
from bench.harness.machine import Timing, copy_bandwidth, interleaved, peak_flops, row_context, synchronise
from bench.speed import published
from fastcloak.fitting.loop import Loop
from fastcloak.fitting.options import FitConfig
from fastcloak.fitting.state import Learnt
from fastcloak.models import Surrogate, prepare, unit_features
from fastcloak.ops import reference
from fastcloak.ops.backend import resolve_backend
from fastcloak.ops.hull import build_hull

EPS, ALPHA = 8 / 255, 1 / 255
PHOTOS, D = 10, 512
STEPS = 16  # of a mask: the default of fit
PEOPLE = (1, 4, 16, 64, 256, 1024)
COMPILE_SECONDS = 25.0  # that must be left for torch.compile to be begun; it is ended 30 s after the end

WHAT = ("net", "method", "objective", "persons", "batch", "inner_steps", "dtype", "channels_last", "backend", "engine")
PASS = (
    "setup_seconds", "seconds_per_step", "low", "high", "repeats", "images_per_second", "masks_per_hour", "share",
    "peak_allocated_mb", "peak_reserved_mb", "loss", "loss_over_reference", "agrees",
)  # fmt: skip

COLUMNS = {
    "kernels": (
        "operation", "variant", "persons", "batch", "dtype", "layout", "bytes", "fits_l2", "setup_seconds", "seconds",
        "low", "high", "gb_per_s", "share", "copy_seconds", "share_of_equal_copy", "reference_seconds",
        "reference_launched", "reference_over_triton", "error", "agrees",
    ),
    "ladder": (
        "net", "rung", "persons", "batch", "dtype", "setup_seconds", "seconds_per_step", "low", "high", "repeats",
        "images_per_second", "over_published", "share", "roof", "reached", "reached_over_published", "agrees",
    ),
    "people": (*WHAT, *PASS),
    "engines": (*WHAT, *PASS),
    "launches": (
        "net", "objective", "backend", "normalise", "per_inner_step", "per_inner_step_outside", "network",
        "copies_per_inner_step_outside",
    ),
    "energy": (
        *WHAT, "seconds", "masks", "joules_per_mask", "watts", "idle_watts", "image_gradients_per_joule", "method_of",
    ),
}  # fmt: skip
"""Columns of each topic; every row also has `card`, `dry_run`, `note` and those of `row_context`."""

SHARES = {"kernels": 0.18, "ladder": 0.2, "people": 0.28, "launches": 0.06, "energy": 0.1, "engines": 0.18}
"""Sections in their order and what part of the time each may take. What one leaves goes to the later ones."""

SHOWN = {
    "kernels": ("operation", "variant", "persons", "batch", "dtype", "layout", "seconds", "gb_per_s", "share",
                "reference_over_triton", "agrees"),
    "ladder": ("net", "rung", "images_per_second", "over_published", "share", "agrees"),
    "people": ("net", "method", "persons", "images_per_second", "masks_per_hour", "share", "peak_reserved_mb",
               "agrees"),
    "engines": ("net", "method", "persons", "engine", "backend", "setup_seconds", "seconds_per_step", "agrees"),
    "launches": ("objective", "backend", "per_inner_step_outside", "copies_per_inner_step_outside", "network"),
    "energy": ("net", "method", "persons", "joules_per_mask", "watts", "idle_watts"),
}  # fmt: skip
"""What the table at the end shows."""

Row = dict[str, Any]


@dataclass
class Run:
    """Where rows go, and until when.

    Attributes:
        folder: for one CSV file per topic.
        dry_run: tiny sizes on a CPU.
        ends: of `time.monotonic()`; no row is begun after it.
        commit: of the tree this is a copy of, "-dirty" at its end if it has changes; empty: asks git.
    """

    folder: Path
    dry_run: bool
    ends: float
    commit: str = ""
    roofs: dict[torch.dtype, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Look at the machine."""
        self.device = torch.device("cpu" if self.dry_run else "cuda")
        self.card = "cpu_dry_run" if self.dry_run else torch.cuda.get_device_name()
        self.context: Row = {"card": self.card, "dry_run": self.dry_run, **row_context(self.device)}
        if self.commit:
            self.context |= {"commit": self.commit.removesuffix("-dirty"), "dirty": self.commit.endswith("-dirty")}
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    def file(self, topic: str) -> Path:
        """Where the rows of a topic go."""
        return self.folder / f"gpu_{topic}_{re.sub('[^A-Za-z0-9]+', '_', self.card)}.csv"

    def start(self, topic: str) -> None:
        """An empty file."""
        with self.file(topic).open("w", newline="") as file:
            csv.writer(file).writerow(self._columns(topic))

    def add(self, topic: str, row: Row) -> None:
        """Writes one row and says so."""
        told = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}
        with self.file(topic).open("a", newline="") as file:
            csv.DictWriter(file, self._columns(topic)).writerow({**self.context, **told})
        shown = (f"{key}={told[key]}" for key in (*SHOWN[topic], "note") if told.get(key) not in (None, ""))
        print(f"{topic}: {' '.join(shown)}", flush=True)

    def _columns(self, topic: str) -> list[str]:
        return [*COLUMNS[topic], "note", *self.context]

    def attempt(self, topic: str, what: Row, measure: Callable[[], Row], needs: float = 0.0) -> Row:
        """Adds the row that `measure` returns; where there is no time, or it fails, one that says why.

        Args:
            topic: key of `COLUMNS`.
            what: columns that say what is measured.
            measure: returns the other columns.
            needs: seconds it may take.
        """
        if self.left < needs or self.left <= 0:
            row = {**what, "note": f"skipped: {max(self.left, 0):.0f} s left, needs {needs:.0f}"}
        else:
            try:
                row = {**what, **measure()}
            except Exception as error:  # whatever one row meets, the others go on
                row = {**what, "note": reason(error)}
        self.add(topic, row)
        self.forget()
        return row

    def forget(self) -> None:
        """Frees what no row holds any more."""
        gc.collect()
        if self.device.type == "cuda":
            try:
                torch.cuda.empty_cache()
            except RuntimeError as error:  # torch 2.11 after a failed capture
                print(f"empty_cache: {reason(error)}", flush=True)

    def roof(self, dtype: torch.dtype) -> float:
        """Operations per second of a large matrix product, in what convolutions of this dtype compute in."""
        if self.dry_run:
            return 1e9
        if dtype not in self.roofs:
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("high")
            try:
                self.roofs[dtype] = peak_flops(dtype, self.device)
            finally:
                torch.set_float32_matmul_precision(before)
        return self.roofs[dtype]


def reason(error: Exception) -> str:
    """One line of an exception."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def timed(run: Run, calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Timing]:
    """Seconds of several things in turns, by CUDA events. Everything was called before."""
    if run.device.type != "cuda":
        return interleaved(calls, repeats)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
            start.record()
            call()
            end.record()
            end.synchronize()
            seconds[name].append(start.elapsed_time(end) / 1e3)
    return {name: Timing(tuple(measured)) for name, measured in seconds.items()}


def once(run: Run, call: Callable[[], object]) -> float:
    """Seconds of a first call, compilation and all."""
    synchronise(run.device)
    began = time.perf_counter()
    call()
    synchronise(run.device)
    return time.perf_counter() - began


# ---- kernels


@dataclass
class Case:
    """One call of a hot operation by both backends.

    Attributes:
        operation: its name.
        arguments: of a call; tensors that it changes are copied for each backend.
        moved: bytes, each input read once and each output written once.
        what: columns.
    """

    operation: str
    arguments: tuple[Any, ...]
    moved: int
    what: Row


def kernels(run: Run) -> None:
    """Achieved bytes per second of every kernel against a copy, and against the reference."""
    triton = resolve_backend("triton", run.device)[1]
    copied = 1e9 if run.dry_run else copy_bandwidth(run.device)
    for case in cases(run):
        run.attempt("kernels", case.what, lambda case=case: measure_kernel(run, case, triton, copied))  # type: ignore[misc]


def cases(run: Run) -> Iterator[Case]:
    """What a fit uses first: bfloat16 in channels_last, then float32 contiguous, then the rest."""
    formats = [(torch.bfloat16, True), (torch.float32, False), (torch.float32, True), (torch.bfloat16, False)]
    sizes = [(1, 2)] if run.dry_run else [(1, 10), (256, 10), (1, 1), (64, 1)]
    for dtype, last in formats[: 2 if run.dry_run else 4]:
        for persons, batch in sizes:
            yield from picture_cases(run, persons, batch, dtype, last)
            # The layout of pictures does not matter to features; the convex hull is slow in the interpreter.
            if last == (dtype == torch.bfloat16) and (last or not run.dry_run):
                yield from hull_cases(run, persons, batch, dtype)


def picture_cases(run: Run, P: int, b: int, dtype: torch.dtype, last: bool) -> Iterator[Case]:
    """The three element-wise operations."""
    side, photos = (6, 3) if run.dry_run else (112, PHOTOS)
    n, e = 3 * side * side, dtype.itemsize
    generator = torch.Generator(run.device).manual_seed(0)

    def pictures(*size: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
        flat = torch.rand(math.prod(size), 3, side, side, device=run.device, generator=generator) * scale
        layout = torch.channels_last if last else torch.contiguous_format
        return flat.to(dtype=dtype, memory_format=layout).view(*size, 3, side, side)

    def state() -> Tensor:
        return pictures(P, scale=2 * EPS) - EPS

    what: Row = {"persons": P, "batch": b, "dtype": name_of(dtype), "layout": "channels_last" if last else "contiguous"}
    index = torch.arange(b, device=run.device).expand(P, b) % photos
    scale, shift = (torch.full((3,), value, device=run.device) for value in (2.0, -1.0))

    arguments: tuple[Any, ...] = (pictures(P, photos), state(), index, pictures(P, b, dtype=dtype), scale, shift)
    moved = P * (4 * min(b, photos) * n + 4 * n + 8 * b + b * n * e) + 24
    yield Case("cloak_batch_", arguments, moved, {"operation": "cloak_batch_", **what})

    grads = (pictures(P, b, scale=2) - 1).to(dtype)
    arguments = (grads, state(), state(), EPS / 2, EPS, scale)
    moved = P * (b * n * e + 16 * n) + 12
    yield Case("accumulate_step_", arguments, moved, {"operation": "accumulate_step_", "variant": "", **what})

    if dtype == torch.float32 or last:  # float32 state whatever the network takes
        for decay in (0.0, 1.0):
            arguments = (state(), state(), state(), state(), ALPHA, EPS, decay)
            named = {"operation": "outer_step_", "variant": "momentum" if decay else "", **what, "dtype": "float32"}
            yield Case("outer_step_", arguments, P * n * (28 if decay else 20), named)


def hull_cases(run: Run, P: int, b: int, dtype: torch.dtype) -> Iterator[Case]:
    """The objectives; fi_uap_plus is class_center with less."""
    b, K, size = (1, 2, 16) if run.dry_run else (b, PHOTOS, D)
    generator = torch.Generator(run.device).manual_seed(1)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, device=run.device, generator=generator)

    clean = normalize(randn(P, 1, size) + 0.7 * randn(P, K, size), dim=-1)
    index = torch.arange(b, device=run.device).expand(P, b) % K
    features = (20 * clean.gather(1, index[..., None].expand(-1, -1, size)) + 0.4 * randn(P, b, size)).to(dtype)
    read = {
        "fi_uap": 4 * min(b, K) * size + 8 * b,
        "affine_hull": 4 * K * size,
        "convex_hull": 4 * K * size + 8 * K * K,
    }
    for objective in ("convex_hull", "class_center", "affine_hull", "fi_uap"):
        hull = build_hull(clean, objective)
        arguments = (features, hull.points, hull.gram, hull.center, index, objective)
        moved = P * (2 * b * size * dtype.itemsize + 4 * size + read.get(objective, 0) + 8 * b)
        what: Row = {"operation": "hull_loss", "variant": objective, "persons": P, "batch": b, "dtype": name_of(dtype)}
        yield Case("hull_loss", arguments, moved, what)


def measure_kernel(run: Run, case: Case, triton: ModuleType, copied: float) -> Row:
    """Checks against the reference, then times both."""

    def call_of(module: ModuleType) -> tuple[Callable[[], Any], list[Any]]:
        arguments = [a.clone() if isinstance(a, Tensor) else a for a in case.arguments]
        return lambda: getattr(module, case.operation)(*arguments), arguments

    (ours, mine), (theirs, their) = call_of(triton), call_of(reference)
    results: list[Any] = []
    setup = once(run, lambda: results.append(ours()))
    expected = theirs()
    if case.operation == "hull_loss":
        pairs = list(zip(results[0], expected, strict=True))
    else:
        pairs = [(a, b) for a, b in zip(mine, their, strict=True) if isinstance(a, Tensor)]
    error, agrees = compare(pairs, signs=case.operation != "hull_loss")

    # The reference's convex hull may wait for the device inside LAPACK: a capture of it would fail.
    capture_reference = case.what.get("variant") != "convex_hull"
    calls = {
        "triton": several(run, ours, capture=True),
        "reference": several(run, theirs, capture=capture_reference, count=10 if capture_reference else 2),
    }
    source = torch.ones(max(case.moved // 8, 1), device=run.device)
    target = torch.empty_like(source)
    calls["copy"] = several(run, lambda: target.copy_(source), capture=True)
    timings = timed(run, {name: call for name, (call, _) in calls.items()}, 1 if run.dry_run else 9)
    each = {name: [s / calls[name][1] for s in timing.seconds] for name, timing in timings.items()}
    alone, unfused, copy = (Timing(tuple(each[name])) for name in ("triton", "reference", "copy"))
    cache = getattr(torch.cuda.get_device_properties(), "L2_cache_size", 0) if run.device.type == "cuda" else 0
    return {
        "bytes": case.moved,
        "fits_l2": case.moved < cache,
        "setup_seconds": setup,
        "seconds": alone.median,
        "low": alone.spread[0],
        "high": alone.spread[1],
        "gb_per_s": case.moved / alone.median / 1e9,
        "share": case.moved / alone.median / copied,
        "copy_seconds": copy.median,
        "share_of_equal_copy": copy.over(alone),
        "reference_seconds": unfused.median,
        "reference_launched": "graph" if capture_reference and run.device.type == "cuda" else "eager",
        "reference_over_triton": unfused.over(alone),
        "error": error,
        "agrees": agrees,
    }


def compare(pairs: list[tuple[Tensor, Tensor]], signs: bool) -> tuple[float, bool]:
    """Largest difference over the largest number, and whether that is rounding; with `signs`, of all but 0.1 %.

    A gradient that rounds across zero turns the sign of a step.
    """
    worst, agrees = 0.0, True
    for actual, expected in pairs:
        if not expected.is_floating_point():
            continue
        a, e = actual.double(), expected.double()
        difference = (a - e).abs() / e.abs().max().clamp_min(1e-9)
        rounding = max(1e-5, 2 * torch.finfo(expected.dtype).eps)
        beyond = float((~(difference <= rounding)).double().mean())
        worst = max(worst, float(difference.max()))
        agrees = agrees and beyond <= (1e-3 if signs else 0.0)
    return worst, agrees


def several(run: Run, call: Callable[[], Any], *, capture: bool, count: int = 20) -> tuple[Callable[[], object], int]:
    """Several calls as one, replayed from a CUDA graph if `capture`, so that launching them costs the host nothing."""
    if run.device.type != "cuda" or not capture:
        count = 1 if run.device.type != "cuda" else count

        def loop() -> None:
            for _ in range(count):
                call()

        return loop, count
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        for _ in range(count):
            call()
    graph.replay()
    return graph.replay, count


# ---- passes of the fit


class Learner:
    """A pass of the fit with its inputs: calling it learns `config.steps` steps of P masks."""

    def __init__(
        self, run: Run, surrogate: Surrogate, config: FitConfig, backend: str, engine: str, persons: int
    ) -> None:
        """Make the people, embed them, allocate the loop."""
        self.run, self.config, self.persons = run, config, persons
        photos = 3 if run.dry_run else PHOTOS
        self.faces = people_of(persons, photos, run.device)
        self.features = unit_features(surrogate, self.faces.flatten(0, 1), 256).view(persons, photos, -1)
        ops = resolve_backend(backend, run.device)[1]
        self.loop = Loop(surrogate, config, ops, engine, persons, photos)
        self.images = persons * config.batch(photos) * config.inner()  # image-gradients of a step

    def __call__(self) -> Learnt:
        """Learn once."""
        return self.loop.learn(self.faces, self.features, lambda: None)


def people_of(persons: int, photos: int, device: torch.device) -> Tensor:
    """[P, N, 3, 112, 112]; the first person is that of `nets.faces`."""
    one = nets.faces(photos).to(device)
    if persons == 1:
        return one[None]
    generator = torch.Generator(device).manual_seed(0)
    own = interpolate(torch.rand(persons, 3, 14, 14, device=device, generator=generator), (112, 112))
    people = 0.6 * one[None] + 0.4 * own[:, None]
    people[0] = one
    return people


def network(run: Run, name: str) -> nn.Module:
    """On the device, weights as they come; a tiny one in a dry run."""
    if run.dry_run:
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 4, 14, 14), nn.BatchNorm2d(4), nn.PReLU(4), nn.Flatten(), nn.Linear(256, 16)
        return nn.Sequential(*layers).eval()
    return nets.NETS[name]().to(run.device)


def surrogate_of(run: Run, net: nn.Module, dtype: torch.dtype | None, channels_last: bool | None = None) -> Surrogate:
    """As fit prepares it; a dtype of None is fit's own choice."""
    return prepare(nets.surrogate(net, "net"), device=run.device, dtype=dtype, channels_last=channels_last)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def described(name: str, surrogate: Surrogate, config: FitConfig, backend: str, engine: str, persons: int) -> Row:
    """Columns `WHAT`."""
    return {
        "net": name,
        "method": config.method,
        "objective": config.objective,
        "persons": persons,
        "batch": config.batch(PHOTOS),
        "inner_steps": config.inner(),
        "dtype": name_of(surrogate.dtype),
        "channels_last": surrogate.memory_format == torch.channels_last,
        "backend": backend,
        "engine": engine,
    }


@dataclass
class Measured:
    """A learner after its first call."""

    learner: Learner
    setup: float
    allocated: int
    reserved: int
    learnt: Learnt


def set_up(run: Run, make: Callable[[], Learner]) -> Measured:
    """First call of a pass, and the memory that it took beyond what was there before."""
    run.forget()
    cuda = run.device.type == "cuda"
    before = (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) if cuda else (0, 0)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    learner = make()
    results: list[Learnt] = []
    setup = once(run, lambda: results.append(learner()))
    after = (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()) if cuda else (0, 0)
    return Measured(learner, setup, after[0] - before[0], after[1] - before[1], results[0])


def pass_row(run: Run, measured: Measured, timing: Timing, flops: int, dtype: torch.dtype, expected: float) -> Row:
    """Columns `PASS`; `expected` is the loss of the first person by the reference."""
    learner = measured.learner
    step = Timing(tuple(s / learner.config.steps for s in timing.seconds))
    rate = learner.images / step.median
    loss = float(measured.learnt.losses[-1, 0])
    finite = bool(measured.learnt.losses.isfinite().all() and measured.learnt.delta.isfinite().all())
    return {
        "setup_seconds": measured.setup,
        "seconds_per_step": step.median,
        "low": step.spread[0],
        "high": step.spread[1],
        "repeats": len(step.seconds),
        "images_per_second": rate,
        "masks_per_hour": 3600 * learner.persons / (STEPS * step.median),
        "share": rate * 2 * flops / run.roof(dtype),
        "peak_allocated_mb": measured.allocated / 1e6,
        "peak_reserved_mb": measured.reserved / 1e6,
        "loss": loss,
        "loss_over_reference": loss / expected,
        # Rounding turns signs of gradients near zero, and later steps build on that.
        "agrees": finite and abs(loss / expected - 1) < 0.2,
    }


def configs(run: Run) -> dict[str, FitConfig]:
    """The defaults of both methods, all steps with the hull (the slowest objective), few steps."""
    steps = 2 if run.dry_run else 3
    inner = 2 if run.dry_run else None
    return {
        "ga": FitConfig(steps=steps, inner_steps=inner, warmup=0),
        "opom": FitConfig(method="opom", steps=steps, warmup=0),
    }


def reference_loss(run: Run, surrogate: Surrogate, config: FitConfig) -> float:
    """Of the first person alone, in plain PyTorch."""
    return float(Learner(run, surrogate, config, "reference", "eager", 1)().losses[-1, 0])


def backends(run: Run) -> tuple[str, str]:
    """The fused backend and engine, in a dry run the plain ones (the interpreter would take minutes)."""
    return ("reference", "eager") if run.dry_run else ("triton", "cudagraph")


# ---- ladder


def ladder(run: Run) -> None:
    """From the published loop to ours, each rung with what it adds, fi_uap on all ten photos."""
    for name in ("tiny",) if run.dry_run else ("iresnet50", "mobilefacenet"):
        try:
            ladder_of(run, name, network(run, name))
        except Exception as error:
            run.add("ladder", {"net": name, "note": reason(error)})
        run.forget()


def ladder_of(run: Run, name: str, net: nn.Module) -> None:
    """The rungs on one network, in turns."""
    steps = 2 if run.dry_run else STEPS
    photos = 3 if run.dry_run else PHOTOS
    faces = nets.faces(photos).to(run.device)
    plain = nets.OnFaces(net)
    start = published.start_noise(photos).to(run.device)
    config = FitConfig(method="opom", objective="fi_uap", steps=steps)
    flops = nets.flops(net)
    fused, graph = backends(run)
    many = 2 if run.dry_run else 32

    def loop(dtype: torch.dtype, backend: str, engine: str, persons: int = 1) -> Callable[[], Callable[[], Tensor]]:
        def make() -> Callable[[], Tensor]:
            surrogate = surrogate_of(run, net, dtype, dtype == torch.bfloat16)
            learner = Learner(run, surrogate, config, backend, engine, persons)
            return lambda: learner().delta[0]

        return make

    def published_loop() -> Callable[[], Tensor]:
        plain.requires_grad_(True)
        clean = published.clean_features(plain, faces)

        def fit() -> Tensor:
            cloaked, delta = faces + start, torch.zeros_like(faces[:1])
            for _ in range(steps):
                cloaked, delta, _ = published.published_step(plain, faces, clean, cloaked, "fi_uap")
            return delta[0]

        return fit

    def plain_loop(frozen: bool) -> Callable[[], Callable[[], Tensor]]:
        def make() -> Callable[[], Tensor]:
            own = nets.OnFaces(network(run, name)).requires_grad_(not frozen)
            with torch.no_grad():
                z = normalize(own(faces))

            def fit() -> Tensor:
                cloaked, delta = faces + start, torch.zeros_like(faces[:1])
                for _ in range(steps):
                    cloaked = cloaked.detach().requires_grad_()
                    own.zero_grad()
                    (normalize(own(cloaked)) - z).square().mean().backward()  # type: ignore[no-untyped-call]
                    assert cloaked.grad is not None
                    moved = cloaked.detach() + ALPHA * cloaked.grad.mean(0, keepdim=True).sign()
                    delta = (moved - faces).mean(0, keepdim=True).clamp(-EPS, EPS)
                    cloaked = (faces + delta).clamp(0, 1)
                return delta[0]

            return fit

        return make

    half, full = torch.bfloat16, torch.float32
    rungs: dict[str, tuple[Callable[[], Callable[[], Tensor]], torch.dtype, int]] = {
        "published": (published_loop, full, 1),
        "clean features cached": (plain_loop(False), full, 1),
        "weights frozen": (plain_loop(True), full, 1),
        "batch norm folded": (loop(full, "reference", "eager"), full, 1),
        "bf16 channels_last": (loop(half, "reference", "eager"), half, 1),
        "fused kernels": (loop(half, fused, "eager"), half, 1),
        f"{many} people per pass": (loop(half, fused, "eager", many), half, many),
        f"graph, {many} people": (loop(half, fused, graph, many), half, many),
        "graph, 1 person": (loop(half, fused, graph), half, 1),
    }
    calls: dict[str, Callable[[], Tensor]] = {}
    setups: dict[str, float] = {}
    masks: dict[str, Tensor] = {}
    for rung, (make, dtype, persons) in rungs.items():
        try:
            if run.left < 5 and not run.dry_run:
                raise TimeoutError(f"skipped: {run.left:.0f} s left")
            began = time.perf_counter()
            calls[rung] = make()
            masks[rung] = calls[rung]()
            synchronise(run.device)
            setups[rung] = time.perf_counter() - began
        except Exception as error:
            calls.pop(rung, None)
            what: Row = {"net": name, "rung": rung, "persons": persons, "batch": photos, "dtype": name_of(dtype)}
            run.add("ladder", {**what, "note": reason(error)})
    # The published loop takes longest by far: as many turns as the time allows.
    turn = sum(once(run, call) for call in calls.values())
    repeats = 2 if run.dry_run else max(1, min(5, int(run.left / 2 / turn)))
    timings = timed(run, calls, repeats)

    def reached(mask: Tensor) -> float:
        with torch.no_grad():
            z, moved = normalize(plain(faces)), normalize(plain((faces + mask).clamp(0, 1)))
        return float((moved - z).square().sum(1).mean())

    goal = reached(masks["published"]) if "published" in masks else math.nan
    for rung, timing in timings.items():
        _, dtype, persons = rungs[rung]
        step = Timing(tuple(s / steps for s in timing.seconds))
        rate = persons * photos / step.median
        over = timings["published"].over(timing) * persons if "published" in timings else math.nan
        got = reached(masks[rung].to(faces.dtype))
        row = {
            "net": name,
            "rung": rung,
            "persons": persons,
            "batch": photos,
            "dtype": name_of(dtype),
            "setup_seconds": setups[rung],
            "seconds_per_step": step.median,
            "low": step.spread[0],
            "high": step.spread[1],
            "repeats": repeats,
            "images_per_second": rate,
            "over_published": over,
            "share": rate * 2 * flops / run.roof(dtype),
            "roof": "tf32" if dtype == full and run.device.type == "cuda" else name_of(dtype),
            "reached": got,
            "reached_over_published": got / goal,
            "agrees": abs(got / goal - 1) < 0.1,
        }
        run.add("ladder", row)


# ---- many people


def people(run: Run) -> None:
    """Images and masks per second, and memory, against the number of people per pass."""
    for name in ("tiny",) if run.dry_run else ("iresnet50", "mobilefacenet"):
        net = network(run, name)
        flops = nets.flops(net)
        surrogate = surrogate_of(run, net, None if not run.dry_run else torch.float32)
        for config in configs(run).values():
            try:
                expected = reference_loss(run, surrogate, config)
            except Exception as error:
                run.add("people", {"net": name, "method": config.method, "note": reason(error)})
                expected = math.nan
            last = (0, 0.0, 0.0)  # people, seconds and memory of the pass before
            for persons in (1, 2) if run.dry_run else PEOPLE:
                last = one_pass(run, name, surrogate, config, persons, flops, expected, last)


def one_pass(
    run: Run,
    name: str,
    surrogate: Surrogate,
    config: FitConfig,
    persons: int,
    flops: int,
    expected: float,
    last: tuple[int, float, float],
) -> tuple[int, float, float]:
    """A row of `people`; returns people, seconds and memory, from which the next one is foreseen."""
    backend, engine = backends(run)
    what = described(name, surrogate, config, backend, engine, persons)
    seconds = memory = 0.0
    if last[0]:
        memory = last[2] * persons / last[0]
        seconds = last[1] * persons / last[0] if last[0] >= 16 else last[1]
        free = torch.cuda.mem_get_info()[0] if run.device.type == "cuda" else math.inf
        if memory > 0.95 * free:
            run.add("people", {**what, "note": f"skipped: needs {memory / 1e9:.0f} GB, {free / 1e9:.0f} GB are free"})
            return persons, seconds, memory
    took = [seconds, memory]

    def measure() -> Row:
        began = time.perf_counter()
        measured = set_up(run, lambda: Learner(run, surrogate, config, backend, engine, persons))
        once_more = once(run, measured.learner)
        repeats = 2 if run.dry_run else max(1, min(5, int(min(run.left, 6.0) / once_more)))
        timing = timed(run, {"pass": measured.learner}, repeats)["pass"]
        took[:] = time.perf_counter() - began, float(measured.reserved)
        return pass_row(run, measured, timing, flops, surrogate.dtype, expected)

    run.attempt("people", what, measure, needs=seconds)
    return persons, took[0], took[1]


def engines(run: Run) -> None:
    """Engines and backends on the same passes, in turns; what may break the process comes last."""
    name = "tiny" if run.dry_run else "iresnet50"
    net = network(run, name)
    flops = nets.flops(net)
    surrogate = surrogate_of(run, net, None if not run.dry_run else torch.float32)
    chosen = configs(run)
    expected = dict.fromkeys(chosen, math.nan)
    for method, config in chosen.items():
        try:
            expected[method] = reference_loss(run, surrogate, config)
        except Exception as error:
            run.add("engines", {"net": name, "method": method, "note": reason(error)})
    fast = [("cudagraph", "triton"), ("eager", "triton"), ("eager", "reference")]
    # In the reference's convex hull LAPACK may wait for the device: then its capture fails, and every later one.
    rounds: list[tuple[int, tuple[str, ...], list[tuple[str, str]], float]] = [
        (1, ("ga", "opom"), fast, 0.0),
        (64, ("ga", "opom"), fast, 0.0),
        (16, ("ga", "opom"), fast, 0.0),
        (1, ("ga",), [("cudagraph", "reference")], 0.0),
        (64, ("ga",), [("cudagraph", "reference")], 0.0),
        (64, ("ga",), [("compile", "triton")], COMPILE_SECONDS),
    ]
    if run.dry_run:
        rounds = [(1, ("ga", "opom"), [("eager", "reference")], 0.0)]
    for persons, methods, options, needs in rounds:
        for method in methods:
            compared(run, name, surrogate, chosen[method], persons, flops, expected[method], options, needs)


def compared(
    run: Run,
    name: str,
    surrogate: Surrogate,
    config: FitConfig,
    persons: int,
    flops: int,
    expected: float,
    options: list[tuple[str, str]],
    needs: float,
) -> None:
    """Rows of `engines`: one for each (engine, backend)."""
    ready: dict[str, Measured] = {}
    whats: dict[str, Row] = {}
    for engine, backend in options:
        key = f"{engine} {backend}"
        whats[key] = described(name, surrogate, config, backend, engine, persons)
        if run.left <= needs:
            run.add("engines", {**whats[key], "note": f"skipped: {run.left:.0f} s left, needs {needs:.0f}"})
            continue
        try:
            ready[key] = set_up(
                run,
                lambda engine=engine, backend=backend: Learner(  # type: ignore[misc]
                    run, surrogate, config, backend, engine, persons
                ),
            )
        except Exception as error:
            run.add("engines", {**whats[key], "note": reason(error)})
    timings = timed(run, {key: one.learner for key, one in ready.items()}, 2 if run.dry_run else 5)
    for key, one in ready.items():
        run.add("engines", {**whats[key], **pass_row(run, one, timings[key], flops, surrogate.dtype, expected)})
    ready.clear()
    run.forget()


# ---- launches


def launches(run: Run) -> None:
    """Kernels that an inner step launches besides the network's, as the profiler sees them.

    The difference between a step of four inner steps and one of two, halved, less a forward and backward pass.
    """
    name = "tiny" if run.dry_run else "mobilefacenet"
    surrogate = surrogate_of(run, network(run, name), torch.float32)
    profiled(run, lambda: torch.ones(1, device=run.device) + 1)  # the profiler's own start
    for backend in ("reference",) if run.dry_run else ("triton", "reference"):
        for objective in ("convex_hull", "class_center", "fi_uap"):
            for normalise in (False, True) if objective == "fi_uap" else (False,):
                what: Row = {"net": name, "objective": objective, "backend": backend, "normalise": normalise}
                run.attempt("launches", what, lambda what=what: count_launches(run, surrogate, what))  # type: ignore[misc]


def count_launches(run: Run, surrogate: Surrogate, what: Row) -> Row:
    """Counts of a row of `launches`."""
    counts = []
    for inner_steps in (2, 4):
        config = FitConfig(
            objective=what["objective"], steps=1, inner_steps=inner_steps, warmup=0, normalise=what["normalise"]
        )
        learner = Learner(run, surrogate, config, what["backend"], "eager", 1)
        learner()
        (step,) = learner.loop.launchers.values()
        counts.append(profiled(run, step))
    per_inner = [(more - fewer) / 2 for fewer, more in zip(*counts, strict=True)]

    def gradient() -> None:
        x = learner.loop.pictures.flatten(0, 1).detach().requires_grad_()
        embeddings = surrogate.embed(x)
        torch.autograd.grad(embeddings, x, torch.ones_like(embeddings))

    ones = profiled(run, lambda: torch.ones(1, 4, device=run.device))
    gradient()
    network_alone = [a - b for a, b in zip(profiled(run, gradient), ones, strict=True)]
    outside = [a - b for a, b in zip(per_inner, network_alone, strict=True)]
    return {
        "per_inner_step": per_inner[0],
        "per_inner_step_outside": outside[0],
        "network": network_alone[0],
        "copies_per_inner_step_outside": outside[1],
    }


def profiled(run: Run, call: Callable[[], object]) -> tuple[int, int]:
    """Kernels and copies that a call launches; on a CPU operators called from Python, and no copies."""
    cuda = run.device.type == "cuda"
    synchronise(run.device)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as seen:
        call()
        synchronise(run.device)
    if not cuda:
        return sum(event.cpu_parent is None for event in seen.events() or ()), 0
    on_device = [event for event in seen.events() or () if event.device_type == DeviceType.CUDA]
    ours = [event.name for event in on_device if not getattr(event, "is_user_annotation", False)]
    moved = [name for name in ours if name.startswith(("Memcpy", "Memset"))]
    others = [name for name in ours if name.startswith(("ProfilerStep", "Command Buffer", "Context Sync", "Stream"))]
    return len(ours) - len(moved) - len(others), len(moved)


# ---- energy


def energy(run: Run) -> None:
    """Joules per mask, as the card's own counter has it, all that the card draws while it learns."""
    name = "tiny" if run.dry_run else "iresnet50"
    surrogate = surrogate_of(run, network(run, name), None if not run.dry_run else torch.float32)
    backend, engine = backends(run)
    idle = math.nan
    for config in configs(run).values():
        for persons in (1,) if run.dry_run else (64, 1):
            what = described(name, surrogate, config, backend, engine, persons)

            def measure(config: FitConfig = config, persons: int = persons) -> Row:
                nonlocal idle
                meter = Meter(run)
                if math.isnan(idle):
                    synchronise(run.device)
                    with meter.running():
                        time.sleep(0.1 if run.dry_run else 2.0)
                    idle = meter.joules / meter.seconds
                learner = Learner(run, surrogate, config, backend, engine, persons)
                learner()
                passes = 0
                with meter.running():
                    while passes == 0 or time.perf_counter() - meter.began < (0.1 if run.dry_run else 4.0):
                        learner()
                        passes += 1
                        synchronise(run.device)
                masks = passes * persons * config.steps / STEPS
                return {
                    "seconds": meter.seconds,
                    "masks": masks,
                    "joules_per_mask": meter.joules / masks,
                    "watts": meter.joules / meter.seconds,
                    "idle_watts": idle,
                    "image_gradients_per_joule": passes * learner.images * config.steps / meter.joules,
                    "method_of": meter.how,
                }

            run.attempt("energy", what, measure, needs=0.0 if run.dry_run else 8.0)


class Meter:
    """The card's energy counter, or its power sampled every 20 ms where it has none; on a CPU a constant watt."""

    def __init__(self, run: Run) -> None:
        """Find the card."""
        self.began = self.seconds = self.joules = 0.0
        self.how = "constant 1 W: no card"
        self._nvml: Any = None
        if run.device.type != "cuda":
            return
        import pynvml  # type: ignore[import-untyped,unused-ignore]

        self._nvml = pynvml
        pynvml.nvmlInit()
        uuid = getattr(torch.cuda.get_device_properties(), "uuid", None)
        try:
            self._card = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        except pynvml.NVMLError:
            self._card = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
        try:
            pynvml.nvmlDeviceGetTotalEnergyConsumption(self._card)
            self.how = "energy counter"
        except pynvml.NVMLError:
            self.how = "power every 20 ms"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Measures what happens inside."""
        stop, samples = threading.Event(), []

        def sample() -> None:
            while not stop.wait(0.02):
                samples.append(self._nvml.nvmlDeviceGetPowerUsage(self._card) / 1e3)

        counter = self.how == "energy counter"
        sampler = threading.Thread(target=sample) if self.how.startswith("power") else None
        self.began = time.perf_counter()
        before = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._card) if counter else 0
        if sampler is not None:
            sampler.start()
        try:
            yield
        finally:
            self.seconds = time.perf_counter() - self.began
            stop.set()
            if counter:
                self.joules = (self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._card) - before) / 1e3
            elif sampler is not None:
                sampler.join()
                self.joules = self.seconds * sum(samples) / max(len(samples), 1)
            else:
                self.joules = self.seconds


# ---- all of it

SECTIONS: dict[str, Callable[[Run], None]] = {
    "kernels": kernels,
    "ladder": ladder,
    "people": people,
    "launches": launches,
    "energy": energy,
    "engines": engines,
}


def run_section(run: Run, section: str) -> bool:
    """Runs one section in this process; whether it came to its end."""
    run.start(section)
    try:
        SECTIONS[section](run)
    except Exception as error:
        run.add(section, {"note": f"section ended: {reason(error)}"})
        return False
    return True


def spawn_section(section: str, seconds: float, options: list[str]) -> bool:
    """Runs one section in a process of its own, which is ended where it goes on too long."""
    command = [sys.executable, "-m", "bench.speed.gpu", "--section", section, "--seconds", f"{seconds:.0f}", *options]
    try:
        return subprocess.run(command, timeout=seconds + 30).returncode == 0
    except subprocess.TimeoutExpired:
        print(f"{section}: ended after {seconds + 30:.0f} s, its rows so far are kept", flush=True)
        return False


def table(folder: Path) -> str:
    """The short table of all files of rows in a folder."""
    lines: list[str] = []
    for topic, columns in SHOWN.items():
        for path in sorted(folder.glob(f"gpu_{topic}_*.csv")):
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            lines += ["", f"{topic}: {path.stem.removeprefix(f'gpu_{topic}_')}, {len(rows)} rows"]
            good = [row for row in rows if not row["note"]]
            if topic == "kernels":  # the rest is in the file
                good = [row for row in good if row["batch"] != "1" and (row["dtype"], row["layout"]) != (
                    "bfloat16", "contiguous")]  # fmt: skip
            cells = [list(columns), *([row[column] for column in columns] for row in good)]
            cells = [[rounded(cell) for cell in line] for line in cells]
            widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
            lines += [
                "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
                for line in cells
            ]
            for row in rows:
                if row["note"]:
                    lines.append(f"  not measured: {' '.join([*told_of(row, columns), row['note']])}")
    return "\n".join(lines[1:])


def told_of(row: Mapping[str, str], columns: tuple[str, ...]) -> list[str]:
    """Cells of a row that has no numbers."""
    return [row[column] for column in columns if row[column]]


def rounded(cell: str) -> str:
    """Three digits are enough in a table."""
    try:
        value = float(cell)
    except ValueError:
        return cell
    return cell if value == int(value) and abs(value) < 1e5 else f"{value:.3g}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-o", "--output", type=Path, default=Path("bench/results"), help="folder (%(default)s)")
    parser.add_argument("--seconds", type=float, default=240, help="begin no row after so long (%(default)s)")
    parser.add_argument("--section", choices=sorted(SECTIONS), help="only this one, in this process")
    parser.add_argument("--commit", default="", help="of the tree this is a copy of, with -dirty at its end if it is")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on a CPU")
    parser.add_argument(
        "--table", action="store_true", help="print the table of the rows in the folder, measure nothing"
    )
    options = parser.parse_args()
    if options.table:
        print(table(options.output))
        return 0
    if not options.dry_run and not torch.cuda.is_available():
        print("gpu_check needs a CUDA device, torch sees none; --dry-run tries it on a CPU", file=sys.stderr)
        return 1
    ends = time.monotonic() + options.seconds
    if options.section or options.dry_run:
        chosen = [options.section] if options.section else list(SHARES)
        run = Run(options.output, options.dry_run, ends, options.commit)
        results = [run_section(run, section) for section in chosen]
        return 0 if all(results) else 1
    passed_on = ["-o", str(options.output), "--commit", options.commit]
    done, shares = [], dict(SHARES)
    for section in SHARES:
        # The part of what is left that is this section's among those still to come.
        seconds = max(ends - time.monotonic(), 0) * shares[section] / sum(shares.values())
        del shares[section]
        done.append(spawn_section(section, seconds, passed_on))
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
