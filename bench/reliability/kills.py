"""kill -9 at random moments, while cloaks are saved and while fits keep checkpoints."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastcloak
from bench.reliability import damage
from bench.reliability.fuzz import EXACT, Tally
from fastcloak.fitting import checkpoint as checkpoints


def killed_after(seconds: float, work: Callable[[], None]) -> bool:
    """Run `work` in a forked process and kill it with SIGKILL after a while; whether it was still at work."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            if status:
                raise RuntimeError(f"the work failed with status {status}")
            return False
        time.sleep(min(0.01, max(0.0, deadline - time.perf_counter())))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def litter(folder: Path) -> list[Path]:
    """The temporary files that a kill left: all are hidden, and named .fastcloak-*.tmp."""
    return sorted(folder.glob(".fastcloak-*.tmp"))


def save_kills(folder: Path, kills: int, seed: int = 0) -> tuple[Tally, int]:
    """Kill a process that saves one cloak over the other, at random moments.

    Returns:
        What came of it (exact_loads: the file was one of the two cloaks, whole), and how many temporary files are left.
    """
    rng = np.random.default_rng(seed)
    tally, path, originals = Tally(), folder / "me.safetensors", damage.cloaks()
    allowed = [damage.Allowed.of(one.delta, one.eps, one.info) for one in originals]
    originals[0].save(path)

    def save_for_ever() -> None:
        while True:
            for cloak in originals[::-1]:
                cloak.save(path)

    for kill in range(kills):
        began = time.perf_counter()
        killed_after(float(rng.uniform(0, 0.05)), save_for_ever)
        others = {file.name for file in folder.iterdir()} - {path.name, *(file.name for file in litter(folder))}
        try:
            whole, why = any(one.equals(fastcloak.load(path)) for one in allowed), f"files {others}"
        except (ValueError, OSError) as error:
            whole, why = False, str(error)
        outcome = EXACT if whole and not others else "wrong"
        tally.add(outcome, time.perf_counter() - began, f"kill {kill}: {why}")
    return tally, len(litter(folder))


def small_network() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [torch.nn.Conv2d(3, 8, 7, stride=4), torch.nn.PReLU(8), torch.nn.Flatten(), torch.nn.Linear(5832, 16)]
        return torch.nn.Sequential(*layers).eval()


def fit_kills(
    folder: Path, kills: int, seed: int = 0, every_step: bool = False, steps: int | None = None, before: float = 0.6
) -> tuple[Tally, int]:
    """Kill fits with a checkpoint at random moments, and go on until one is done.

    Args:
        folder: for checkpoints, an empty one.
        kills: how many, at least: the last fit is brought to its end.
        seed: of the moments.
        every_step: save the state after every step, so that many kills meet a write; else as often as fits do.
        steps: of the fit; 60 with every_step, else 1,200.
        before: share of a fit's time within which the kills come. Below 1 only a fit that resumes comes to its end;
            where setting up takes most of the time, as with few steps, none would.

    Returns:
        What came of each kill (exact_loads: the cloak in the end was bit for bit that of a fit without a kill), and how
        many temporary files are left.
    """
    torch.set_num_threads(1)  # a forked child would wait for the threads of OpenMP, which stay in its parent
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    faces = torch.nn.functional.interpolate(torch.rand(4, 3, 14, 14, generator=generator), (112, 112), mode="bilinear")
    options: dict[str, Any] = {"preset": "plain", "decay": 0.9, "average": 0.5, "augment": "flip", "inner_steps": 1}
    options["steps"] = steps or (60 if every_step else 1200)

    def fit(checkpoint: Path | None, result: Path) -> None:
        if every_step:
            checkpoints.SECONDS, checkpoints.SHARE = 0.0, 1.0
        fastcloak.fit(faces, small_network(), checkpoint=checkpoint, **options).save(result)

    expected, done = folder / "expected.safetensors", folder / "done.safetensors"
    killed_after(3600, partial(fit, None, expected))
    began = time.perf_counter()
    killed_after(3600, partial(fit, folder / "timed", done))
    whole = time.perf_counter() - began
    tally, left, rounds = Tally(), 0, 0
    while tally.counts["runs"] < kills:
        checkpoint, spent = folder / f"checkpoint{rounds}", []
        done.unlink(missing_ok=True)
        began = time.perf_counter()
        while killed_after(float(rng.uniform(0, before * whole)), partial(fit, checkpoint, done)):
            spent.append(time.perf_counter() - began)
            began = time.perf_counter()
            if len(spent) > 200:
                raise RuntimeError("200 kills, and the fit is not done: nothing is kept")
        same = fastcloak.load(done).delta.equal(fastcloak.load(expected).delta)
        for i, seconds in enumerate(spent):
            tally.add(EXACT if same else "wrong", seconds, f"round {rounds}, kill {i}: another cloak")
        left += len(litter(checkpoint))
        rounds += 1
    return tally, left
