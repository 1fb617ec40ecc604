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

import functools
import gc
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.harness import nets
from bench.harness.command import command
from bench.harness.machine import Timing, copy_bandwidth, interleaved, peak_flops, row_context, seconds_of, synchronise
from bench.harness.rows import Rows, laid_out, read
from bench.speed import ladder
from bench.speed.operations import Operation, hull_operations, picture_operations
from bench.speed.passes import Pass, network_gradient
from fastcloak.fitting.options import PRESETS, FitConfig, configure
from fastcloak.models import Surrogate, prepare
from fastcloak.ops import reference
from fastcloak.ops.backend import resolve_backend

PEOPLE = (1, 4, 16, 64, 256, 1024)
COMPILE_SECONDS = 25.0  # that must be left for torch.compile to be begun; it is ended 30 s after the end

SHARES = {"kernels": 0.18, "ladder": 0.2, "people": 0.28, "launches": 0.06, "energy": 0.1, "engines": 0.18}
"""Sections in their order and what part of the time each may take. What one leaves goes to the later ones."""

SHOWN = {
    "kernels": ("operation", "variant", "persons", "batch", "dtype", "layout", "seconds", "gb_per_s", "share",
                "reference_over_triton", "agrees"),
    "ladder": ("net", "rung", "seconds_per_image_gradient", "times_faster_than_published", "share_of_peak", "agrees"),
    "people": ("net", "recipe", "folded", "persons", "images_per_second", "masks_per_hour", "share",
               "peak_reserved_mb", "agrees"),
    "engines": ("net", "recipe", "persons", "engine", "backend", "setup_seconds", "seconds_per_step", "agrees"),
    "launches": ("recipe", "objective", "backend", "per_inner_step_outside", "copies_per_inner_step_outside",
                 "network"),
    "energy": ("net", "recipe", "persons", "joules_per_mask", "watts", "idle_watts"),
}  # fmt: skip
"""What the table at the end shows."""

Row = dict[str, Any]


class Run:
    """Where rows go, and until when: no row is begun after `ends` of `time.monotonic()`."""

    def __init__(self, folder: Path, dry_run: bool, ends: float, commit: str = "") -> None:
        """Look at the machine; `commit` names the tree this is a copy of, with "-dirty" if it has changes."""
        self.folder, self.dry_run, self.ends = folder, dry_run, ends
        self.device = torch.device("cpu" if dry_run else "cuda")
        self.card = "cpu_dry_run" if dry_run else torch.cuda.get_device_name()
        self.context: Row = {"card": self.card, "dry_run": dry_run, **row_context(self.device)}
        if commit:
            self.context |= {"commit": commit.removesuffix("-dirty"), "dirty": commit.endswith("-dirty")}
        self.files: dict[str, Rows] = {}
        self.roof = functools.cache(partial(peak_flops, device=self.device))
        self.photos = 3 if dry_run else 10
        # In a dry run the plain ones: the interpreter would take minutes.
        self.backend, self.engine = ("reference", "eager") if dry_run else ("triton", "cudagraph")
        self.networks = ("tiny",) if dry_run else ("iresnet50", "mobilefacenet")

    def left(self) -> float:
        return self.ends - time.monotonic()

    def add(self, topic: str, row: Row) -> None:
        if topic not in self.files:
            path = self.folder / f"gpu_{topic}_{re.sub('[^A-Za-z0-9]+', '_', self.card)}.csv"
            self.files[topic] = Rows(path, lambda: {"note": "", **self.context})
        self.files[topic].add(row)
        shown = {key: row.get(key) for key in (*SHOWN[topic], "note")}
        said = [f"{key}={rounded(str(value))}" for key, value in shown.items() if value not in (None, "")]
        print(f"{topic}: {' '.join(said)}", flush=True)

    def attempt(self, topic: str, what: Row, measure: Callable[[], Row], needs: float = 0.0) -> None:
        """Add the columns `what` and those that `measure` returns; where there is no time, or it fails, the reason.

        `needs` are the seconds that it may take.
        """
        if self.left() < needs or self.left() <= 0:
            row = {**what, "note": f"skipped: {max(self.left(), 0):.0f} s left, needs {needs:.0f}"}
        else:
            try:
                row = {**what, **measure()}
            except Exception as error:  # whatever one row meets, the others go on
                row = {**what, "note": reason(error)}
        self.add(topic, row)
        self.forget()

    def forget(self) -> None:
        """Free what no row holds any more."""
        gc.collect()
        if self.device.type == "cuda":
            try:
                torch.cuda.empty_cache()
            except RuntimeError as error:  # torch 2.11 after a failed capture
                print(f"empty_cache: {reason(error)}", flush=True)

    def network(self, name: str) -> nn.Module:
        if name != "tiny":
            return nets.NETS[name]().to(self.device)
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 4, 14, 14), nn.BatchNorm2d(4), nn.PReLU(4), nn.Flatten(), nn.Linear(256, 16)
        return nn.Sequential(*layers).eval()

    def prepared(self, net: nn.Module, dtype: torch.dtype | None = None) -> Surrogate:
        """As fit prepares it, in its own choice of dtype; float32 in a dry run."""
        return prepare(nets.surrogate(net, "net"), device=self.device, dtype=torch.float32 if self.dry_run else dtype)


def reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


# ---- kernels


def kernels(run: Run) -> None:
    """Achieved bytes per second of every kernel against a copy, and against the reference."""
    triton = resolve_backend("triton", run.device)[1]
    copied = copy_bandwidth(run.device)
    for operation in operations(run):
        what = {"operation": operation.name, "variant": operation.variant, **operation.what}
        run.attempt("kernels", what, partial(measure_kernel, run, operation, triton, copied))


def operations(run: Run) -> Iterator[Operation]:
    """What a fit uses first: bfloat16 in channels_last, then float32 contiguous, then the rest."""
    formats = [(torch.bfloat16, True), (torch.float32, False), (torch.float32, True), (torch.bfloat16, False)]
    sizes = [(1, 2)] if run.dry_run else [(1, 10), (256, 10), (1, 1), (64, 1)]
    for dtype, last in formats[: 2 if run.dry_run else 4]:
        for P, b in sizes:
            side = 6 if run.dry_run else 112
            yield from picture_operations(P, b, dtype, last, run.device, side=side, photos=run.photos)
            # The layout of pictures does not matter to features; the convex hull is slow in the interpreter.
            if run.dry_run and last:
                yield from hull_operations(1, 1, dtype, run.device, photos=2, size=16)
            elif not run.dry_run and last == (dtype == torch.bfloat16):
                yield from hull_operations(P, b, dtype, run.device)


def measure_kernel(run: Run, operation: Operation, triton: ModuleType, copied: float) -> Row:
    """Check against the reference, then time both."""
    (ours, mine), (theirs, their) = operation.call_of(triton), operation.call_of(reference)
    results: list[Any] = []
    setup = seconds_of(lambda: results.append(ours()), run.device)
    error, agrees = operation.compared(results[0], mine, theirs(), their)

    # The reference's convex hull may wait for the device inside LAPACK: a capture of it would fail.
    capture = operation.variant != "convex_hull"
    source = torch.ones(max(operation.moved // 8, 1), device=run.device)
    target = torch.empty_like(source)
    calls = {
        "triton": several(run, ours, capture=True),
        "reference": several(run, theirs, capture=capture, count=10 if capture else 2),
        "copy": several(run, lambda: target.copy_(source), capture=True),
    }
    repeats = 1 if run.dry_run else 9
    timings = interleaved({name: call for name, (call, _) in calls.items()}, repeats, run.device, warm_up=False)
    each = {name: Timing(tuple(s / calls[name][1] for s in timing.seconds)) for name, timing in timings.items()}
    alone, unfused, copy = (each[name] for name in ("triton", "reference", "copy"))
    cuda = run.device.type == "cuda"
    row: Row = {**alone.columns("seconds"), "bytes": operation.moved, "setup_seconds": setup}
    row |= {"error": error, "agrees": agrees}
    row |= {"gb_per_s": operation.moved / alone.median / 1e9, "share": operation.moved / alone.median / copied}
    row |= {"copy_seconds": copy.median, "share_of_equal_copy": copy.over(alone)}
    row |= {"reference_seconds": unfused.median, "reference_over_triton": unfused.over(alone)}
    cache = getattr(torch.cuda.get_device_properties(), "L2_cache_size", 0) if cuda else 0
    return row | {"fits_l2": operation.moved < cache, "reference_launched": "graph" if capture and cuda else "eager"}


def several(run: Run, call: Callable[[], Any], *, capture: bool, count: int = 20) -> tuple[Callable[[], object], int]:
    """Several calls as one, replayed from a CUDA graph if `capture`, so that launching them costs the host nothing."""
    cuda = run.device.type == "cuda"

    def loop() -> None:
        for _ in range(count if cuda else 1):
            call()

    if not (cuda and capture):
        return loop, count if cuda else 1
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        loop()
    graph.replay()
    return graph.replay, count


# ---- passes of the fit


@dataclass(frozen=True)
class Subject:
    """A prepared network and the options of a fit, of which a few steps are timed.

    `steps` are those of a whole fit; `expected` is the loss of the first person by the reference.
    """

    run: Run
    name: str
    surrogate: Surrogate
    recipe: str
    config: FitConfig
    steps: int
    flops: int
    expected: float = math.nan

    def what(self, backend: str, engine: str, persons: int) -> Row:
        config, surrogate = self.config, self.surrogate
        batch, dtype = config.batch(self.run.photos), str(surrogate.dtype).removeprefix("torch.")
        row: Row = {"net": self.name, "recipe": self.recipe, "objective": config.objective, "persons": persons}
        row |= {"batch": batch, "inner_steps": config.inner_steps, "dtype": dtype, "folded": surrogate.folded}
        row["channels_last"] = surrogate.memory_format == torch.channels_last
        return row | {"backend": backend, "engine": engine}

    def of(self, backend: str, engine: str, persons: int) -> Pass:
        return Pass(self.surrogate, self.config, backend, engine, persons, self.run.photos)

    def row(self, one: Pass, timing: Timing) -> Row:
        steps, losses = self.config.steps, one.learnt.losses
        row: Row = {"setup_seconds": one.setup, **timing.columns("seconds_per_step", steps)}
        rate, loss = one.images / row["seconds_per_step"], float(losses[-1, 0])
        row |= {"images_per_second": rate, "share": rate * 2 * self.flops / self.run.roof(self.surrogate.dtype)}
        row["masks_per_hour"] = 3600 * one.persons / (self.steps * row["seconds_per_step"])
        row |= {f"peak_{kind}_mb": n / 1e6 for kind, n in zip(("allocated", "reserved"), one.memory, strict=True)}
        finite = bool(losses.isfinite().all() and one.learnt.delta.isfinite().all())
        # Rounding turns signs of gradients near zero, and later steps build on that.
        agrees = finite and abs(loss / self.expected - 1) < 0.2
        return row | {"loss": loss, "loss_over_reference": loss / self.expected, "agrees": agrees}


RECIPES = ("fast", "opom")
"""The default of fit, which is the headline, and the method of the other paper."""


def options_of(recipe: str) -> Row:
    """The options of a preset, or of opom as published."""
    return {"method": "opom"} if recipe == "opom" else {"preset": recipe}


def subjects(run: Run, topic: str, networks: tuple[str, ...], *, expect: bool = True) -> Iterator[Subject]:
    """Each network with both recipes, all steps with the hull (the slowest objective), few steps."""
    few: Row = {"steps": 2 if run.dry_run else 5, "warmup": 0}  # the fourth is captured
    for name in networks:
        net = run.network(name)
        flops, surrogate = nets.flops(net), run.prepared(net)
        for recipe in RECIPES:
            whole, config = configure(options_of(recipe)), configure({**options_of(recipe), **few})
            subject = Subject(run, name, surrogate, recipe, config, whole.steps, flops)
            if expect:
                try:
                    subject = replace(subject, expected=float(subject.of("reference", "eager", 1)().losses[-1, 0]))
                except Exception as error:
                    run.add(topic, {"net": name, "recipe": recipe, "note": reason(error)})
            yield subject


def set_up(run: Run, make: Callable[[], Pass]) -> Pass:
    """Make a pass and call it; measures its first call, and the memory that it took beyond what was there before."""

    def memory(kind: str) -> Iterator[int]:
        for way in ("allocated", "reserved"):
            yield getattr(torch.cuda, f"{kind}memory_{way}")() if run.device.type == "cuda" else 0

    run.forget()
    before = tuple(memory(""))
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    one = make()
    one.setup = seconds_of(one, run.device)
    allocated, reserved = (after - had for after, had in zip(memory("max_"), before, strict=True))
    one.memory = (allocated, reserved)
    return one


def climb(run: Run) -> None:
    steps, persons, repeats = (2, 2, 2) if run.dry_run else (FitConfig().steps, 32, 5)
    sizes: Row = {"photos": run.photos, "steps": steps, "persons": persons, "repeats": repeats}
    for name in run.networks:
        try:
            for row in ladder.measure(name, run.network(name), "fi_uap", left=run.left, **sizes):
                run.add("ladder", row)
        except Exception as error:
            run.add("ladder", {"net": name, "note": reason(error)})
        run.forget()


def people(run: Run) -> None:
    """Images and masks per second, and memory, against the number of people per pass."""
    for subject in subjects(run, "people", run.networks):
        before, seconds, memory = 0, 0.0, 0.0  # people, seconds and memory of the pass before
        for persons in (1, 2) if run.dry_run else PEOPLE:
            what = subject.what(run.backend, run.engine, persons)
            if before:
                memory *= persons / before
                seconds *= persons / before if before >= 16 else 1
            before = persons
            free = torch.cuda.mem_get_info()[0] if run.device.type == "cuda" else math.inf
            if memory > 0.95 * free:
                note = f"skipped: needs {memory / 1e9:.0f} GB, {free / 1e9:.0f} GB are free"
                run.add("people", {**what, "note": note})
                continue
            took: list[tuple[float, float]] = []

            def measure(subject: Subject = subject, persons: int = persons, took: Any = took) -> Row:
                began = time.perf_counter()
                one = set_up(run, partial(subject.of, run.backend, run.engine, persons))
                again = seconds_of(one, run.device)
                repeats = 2 if run.dry_run else max(1, min(5, int(min(run.left(), 6.0) / again)))
                timing = interleaved({"pass": one}, repeats, run.device, warm_up=False)["pass"]
                took.append((time.perf_counter() - began, float(one.memory[1])))
                return subject.row(one, timing)

            run.attempt("people", what, measure, needs=seconds)
            seconds, memory = took[0] if took else (seconds, memory)


def engines(run: Run) -> None:
    """Engines and backends on the same passes, in turns; what may break the process comes last."""
    chosen = {subject.recipe: subject for subject in subjects(run, "engines", run.networks[:1])}
    fast = [("cudagraph", "triton"), ("eager", "triton"), ("eager", "reference")]
    # In the reference's convex hull LAPACK may wait for the device: then its capture fails, and every later one.
    rounds: list[tuple[int, tuple[str, ...], list[tuple[str, str]], float]] = [
        (1, RECIPES, fast, 0.0),
        (64, RECIPES, fast, 0.0),
        (16, RECIPES, fast, 0.0),
        (1, ("fast",), [("cudagraph", "reference")], 0.0),
        (64, ("fast",), [("cudagraph", "reference")], 0.0),
        (64, ("fast",), [("compile", "triton")], COMPILE_SECONDS),
    ]
    if run.dry_run:
        rounds = [(1, RECIPES, [("eager", "reference")], 0.0)]
    for persons, recipes, options, needs in rounds:
        for recipe in recipes:
            compared(run, chosen[recipe], persons, options, needs)
            run.forget()


def compared(run: Run, subject: Subject, persons: int, options: list[tuple[str, str]], needs: float) -> None:
    ready: dict[tuple[str, str], Pass] = {}
    for engine, backend in options:
        what = subject.what(backend, engine, persons)
        if run.left() <= needs:
            run.add("engines", {**what, "note": f"skipped: {run.left():.0f} s left, needs {needs:.0f}"})
            continue
        try:
            ready[engine, backend] = set_up(run, partial(subject.of, backend, engine, persons))
        except Exception as error:
            run.add("engines", {**what, "note": reason(error)})
    calls = {" ".join(key): one for key, one in ready.items()}
    timings = interleaved(calls, 2 if run.dry_run else 5, run.device, warm_up=False)
    for (engine, backend), one in ready.items():
        row = subject.row(one, timings[f"{engine} {backend}"])
        run.add("engines", {**subject.what(backend, engine, persons), **row})


# ---- launches


def launches(run: Run) -> None:
    """Kernels that an inner step launches besides the network's, as the profiler sees them.

    The difference between a step of four inner steps and one of two, halved, less a forward and backward pass.
    """
    name = run.networks[-1]
    surrogate = run.prepared(run.network(name), torch.float32)
    profiled(run, lambda: torch.ones(1, device=run.device) + 1)  # the profiler's own start
    wanted: list[Row] = [{"preset": preset} for preset in PRESETS]
    wanted += [{"preset": "fast", "augment": f"+{view}"} for view in ("jpeg", "photo")]
    wanted += [{"preset": "plain", "objective": objective} for objective in ("class_center", "fi_uap")]
    for backend in ("reference",) if run.dry_run else ("triton", "reference"):
        for options in wanted:
            recipe = "".join(str(options[key]) for key in ("preset", "augment") if key in options)
            objective = options.get("objective", FitConfig().objective)
            what: Row = {"net": name, "recipe": recipe, "objective": objective, "backend": backend}
            run.attempt("launches", what, partial(count_launches, run, surrogate, backend, options))


def count_launches(run: Run, surrogate: Surrogate, backend: str, options: Row) -> Row:
    counts = []
    for inner_steps in (2, 4):
        config = configure({**options, "steps": 1, "inner_steps": inner_steps, "warmup": 0})
        one = Pass(surrogate, config, backend, "eager", 1, run.photos)
        one()
        step = partial(one.loop.launch, 0)
        counts.append(profiled(run, step))
    per_inner = [(more - fewer) / 2 for fewer, more in zip(*counts, strict=True)]
    gradient = partial(network_gradient, surrogate, one.loop.turns[0].pictures.flatten(0, 1))
    ones = profiled(run, lambda: torch.ones(1, 4, device=run.device))
    gradient()
    network_alone = [a - b for a, b in zip(profiled(run, gradient), ones, strict=True)]
    outside = [a - b for a, b in zip(per_inner, network_alone, strict=True)]
    row = {"per_inner_step": per_inner[0], "per_inner_step_outside": outside[0], "network": network_alone[0]}
    return row | {"copies_per_inner_step_outside": outside[1]}


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
    """Joules per mask, as the card's own counter has it, all that the card draws while it fits."""
    idle: list[float] = []
    for subject in subjects(run, "energy", run.networks[:1], expect=False):
        for persons in (1,) if run.dry_run else (64, 1):
            what = subject.what(run.backend, run.engine, persons)
            needs = 0.0 if run.dry_run else 8.0
            run.attempt("energy", what, partial(measure_energy, run, subject, persons, idle), needs)


def measure_energy(run: Run, subject: Subject, persons: int, idle: list[float]) -> Row:
    """Of passes for four seconds; `idle` keeps the watts of the card at rest."""
    meter = Meter(run)
    if not idle:
        synchronise(run.device)
        with meter.running():
            time.sleep(0.1 if run.dry_run else 2.0)
        idle.append(meter.joules / meter.seconds)
    one = subject.of(run.backend, run.engine, persons)
    one()
    passes = 0
    with meter.running():
        while passes == 0 or time.perf_counter() - meter.began < (0.1 if run.dry_run else 4.0):
            one()
            passes += 1
            synchronise(run.device)
    masks = passes * persons * subject.config.steps / subject.steps
    gradients = passes * one.images * subject.config.steps
    row: Row = {"seconds": meter.seconds, "masks": masks, "joules_per_mask": meter.joules / masks}
    row |= {"watts": meter.joules / meter.seconds, "idle_watts": idle[0]}
    return row | {"image_gradients_per_joule": gradients / meter.joules, "method_of": meter.how}


class Meter:
    """The card's energy counter, which every card has that the kernels run on; on a CPU a constant watt."""

    def __init__(self, run: Run) -> None:
        """Find the card."""
        self.began = self.seconds = self.joules = 0.0
        self.how, self._counter = "constant 1 W: no card", time.perf_counter
        if run.device.type == "cuda":
            import pynvml  # type: ignore[import-untyped,unused-ignore]

            pynvml.nvmlInit()
            uuid = getattr(torch.cuda.get_device_properties(), "uuid", None)
            try:
                card = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            except pynvml.NVMLError:
                card = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
            self.how = "energy counter"
            self._counter = lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(card)) / 1e3

    @contextmanager
    def running(self) -> Iterator[None]:
        self.began, before = time.perf_counter(), self._counter()
        try:
            yield
        finally:
            self.seconds, self.joules = time.perf_counter() - self.began, self._counter() - before


# ---- all of it

SECTIONS: dict[str, Callable[[Run], None]] = dict(
    zip(SHARES, (kernels, climb, people, launches, energy, engines), strict=True)
)


def run_section(run: Run, section: str) -> bool:
    try:
        SECTIONS[section](run)
    except Exception as error:
        run.add(section, {"note": f"section ended: {reason(error)}"})
        return False
    return True


def spawn_section(section: str, seconds: float, options: list[str]) -> bool:
    """Run one section in a process of its own, which is ended where it goes on too long."""
    program = [sys.executable, "-m", "bench.speed.gpu", "--section", section, "--seconds", f"{seconds:.0f}", *options]
    try:
        return subprocess.run(program, timeout=seconds + 30).returncode == 0
    except subprocess.TimeoutExpired:
        print(f"{section}: ended after {seconds + 30:.0f} s, its rows so far are kept", flush=True)
        return False


def table(folder: Path) -> str:
    parts: list[str] = []
    for topic, columns in SHOWN.items():
        for path in sorted(folder.glob(f"gpu_{topic}_*.csv")):
            rows = read(path)
            good = [row for row in rows if not row["note"]]
            if topic == "kernels":  # the rest is in the file
                rare = ("bfloat16", "contiguous")
                good = [row for row in good if row["batch"] != "1" and (row["dtype"], row["layout"]) != rare]
            cells = [[rounded(row.get(column, "")) for column in columns] for row in good]
            parts.append(f"{topic}: {path.stem.removeprefix(f'gpu_{topic}_')}, {len(rows)} rows")
            parts.append(laid_out([columns, *cells]))
            for row in rows:
                if row["note"]:
                    named = [row[column] for column in columns if row.get(column)]
                    parts.append(f"  not measured: {' '.join([*named, row['note']])}")
            parts.append("")
    return "\n".join(parts[:-1])


def rounded(cell: str) -> str:
    try:
        value = float(cell)
    except ValueError:
        return cell
    return cell if value == int(value) and abs(value) < 1e5 else f"{value:.3g}"


def main() -> int:
    parser = command(__doc__, "dry_run")
    parser.add_argument("-o", "--output", type=Path, default=Path("bench/results"), help="folder (%(default)s)")
    parser.add_argument("--seconds", type=float, default=240, help="begin no row after so long (%(default)s)")
    parser.add_argument("--section", choices=sorted(SECTIONS), help="only this one, in this process")
    parser.add_argument("--commit", default="", help="of the tree this is a copy of, with -dirty at its end if it is")
    parser.add_argument("--table", action="store_true", help="print the table of the rows there, measure nothing")
    given = parser.parse_args()
    if given.table:
        print(table(given.output))
        return 0
    if not given.dry_run and not torch.cuda.is_available():
        print("gpu_check needs a CUDA device, torch sees none; --dry-run tries it on a CPU", file=sys.stderr)
        return 1
    ends = time.monotonic() + given.seconds
    if given.section or given.dry_run:
        run = Run(given.output, given.dry_run, ends, given.commit)
        results = [run_section(run, section) for section in ([given.section] if given.section else SHARES)]
        return 0 if all(results) else 1
    options = ["-o", str(given.output), "--commit", given.commit]
    done, shares = [], dict(SHARES)
    for section in SHARES:
        # The part of what is left that is this section's among those still to come.
        seconds = max(ends - time.monotonic(), 0) * shares[section] / sum(shares.values())
        del shares[section]
        done.append(spawn_section(section, seconds, options))
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
