"""What a measurement ran on, what that machine can do at most, and how to time several things fairly."""

from __future__ import annotations

import datetime
import os
import platform
import resource
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "triton", "numpy", "fastcloak")


def row_context(device: str | torch.device = "auto") -> dict[str, Any]:
    """Where a row was measured; the GPU is named if `device` is CUDA, or "auto" and there is one."""
    cuda = torch.cuda.is_available() if device == "auto" else torch.device(device).type == "cuda"
    row: dict[str, Any] = {"cpu": _cpu_model(), "cores": len(os.sched_getaffinity(0))}
    row |= {"threads": torch.get_num_threads(), "load": round(os.getloadavg()[0], 2)}
    row |= {"gpu": torch.cuda.get_device_name() if cuda else "", "python": platform.python_version()}
    row |= {name: next((one.version for one in metadata.distributions(name=name)), "") for name in PACKAGES}
    return {**row, **_commit(), "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    # Several generations call themselves "AMD EPYC": family and model tell them apart.
    generation = f"family {names.get('cpu family')}, model {names.get('model')}"
    return f"{names.get('model name', platform.machine())} ({generation})"


def _commit() -> dict[str, Any]:
    def git(*arguments: str) -> str:
        program = ["git", "--no-optional-locks", *arguments]
        return subprocess.check_output(program, cwd=ROOT, stderr=subprocess.DEVNULL, text=True, timeout=10).strip()

    try:
        return {"commit": git("rev-parse", "--short=12", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):  # no git, or no repository: a copy of the tree
        return {"commit": "", "dirty": None}


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """Largest number of bytes so far: resident ones of this process, or what torch allocated on CUDA."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_flops(dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> float:
    """Operations per second of a large matrix product, the fastest of several: the roof of convolutions.

    float32 on a GPU runs as TF32, as convolutions do by default.
    """
    device = torch.device(device)
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        return 2 * side**3 / _fastest(lambda: torch.mm(a, b, out=out), device)
    finally:
        torch.set_float32_matmul_precision(before)


def copy_bandwidth(device: str | torch.device = "cpu") -> float:
    """Bytes per second, read and written, of a copy that no cache holds, the fastest of several."""
    device = torch.device(device)
    source = torch.ones(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * source.element_size() / _fastest(lambda: target.copy_(source), device)


def _fastest(call: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    call()
    return min(seconds_of(call, device) for _ in range(repeats))


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Of one call until the device has done it; by events on CUDA."""
    synchronise(device)
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


@dataclass(frozen=True)
class Timing:
    """Seconds of one thing, measured several times, in order."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """20th and 80th percentile."""
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        fifths = quantiles(self.seconds, n=5, method="inclusive")
        return fifths[0], fifths[-1]

    def columns(self, name: str, units: float = 1) -> dict[str, float]:
        """Columns of a row: the median of one unit of several as `name`, its spread, and how often it was measured."""
        low, high = self.spread
        return {name: self.median / units, "low": low / units, "high": high / units, "repeats": len(self.seconds)}

    def over(self, other: Timing) -> float:
        """Median of this divided by the other, pair by pair where both were measured in turns."""
        if len(self.seconds) == len(other.seconds):
            return median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))
        return self.median / other.median


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    repeats: int = 5,
    device: str | torch.device = "cpu",
    *,
    warm_up: bool = True,
) -> dict[str, Timing]:
    """Times several things in turns, A B A B ..., so that a machine that slows down slows all of them.

    With `warm_up` every call is made once before.
    """
    for call in calls.values() if warm_up else ():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            seconds[name].append(seconds_of(call, torch.device(device)))
    return {name: Timing(tuple(measured)) for name, measured in seconds.items()}


class StepClock:
    """A `progress` function for `fastcloak.fit` that keeps when each step ended.

    The first step, and with it all setting up and warm-up, is left out.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.ends: list[float] = []

    def __call__(self, done: int, total: int) -> None:
        synchronise(self.device)
        self.ends.append(time.perf_counter())

    def timing(self) -> Timing:
        if len(self.ends) < 2:
            raise ValueError(f"a StepClock needs 2 steps or more, got {len(self.ends)}")
        return Timing(tuple(after - before for before, after in zip(self.ends, self.ends[1:], strict=False)))
