"""Seconds a photo and peak memory of tailoring, for several numbers of photos, next to the same photos one by one.

    python -m bench.speed.tailoring -o bench/results/tailor_cpu.csv     needs the extra faces: SFace and dlib's network
    python -m bench.speed.tailoring --models mobilefacenet -o CSV       random weights (bench.harness.nets), no extra

Photos are faces of 112 pixels of noise, bounds are even, and everything but learning is left out: reading, finding
faces, saving. A pass has at most as many faces as `tailor` gives it. Every number of photos and threads runs in a
process of its own. Its first passes are in `setup_seconds`; then passes and one by one are timed in turns, and
`times_one_by_one` says how many times as fast a photo is. Peak memory is that above what the process held before: on a
CPU the resident one, on CUDA what torch allocated.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from bench.harness import nets
from bench.harness.command import command
from bench.harness.machine import interleaved, peak_memory
from bench.harness.rows import Rows
from fastcloak import enrol, load_model
from fastcloak.models import Surrogate
from fastcloak.photos.alignment import ALIGNED_FACE
from fastcloak.system.device import resolve_device
from fastcloak.tailoring.canvas import canvas_of
from fastcloak.tailoring.options import TailorConfig
from fastcloak.tailoring.tailor import Tailor

ONE_BY_ONE, PASS = "one by one", "pass"
ENROLLED = 10


def network(name: str) -> Surrogate:
    """A network of `bench.harness.nets` with random weights, or one of `load_model`."""
    return nets.surrogate(nets.NETS[name](), name) if name in nets.NETS else load_model(name)


def point(models: Sequence[str], photos: int, gradients: int, repeats: int) -> list[dict[str, Any]]:
    """Rows of one number of photos, in this process."""
    device = resolve_device("auto")
    surrogate = load_model([network(name) for name in models])
    me = enrol(nets.faces(ENROLLED), surrogate, threshold=0.0)
    pixels = (255 * nets.faces(photos, seed=1)).permute(0, 2, 3, 1).numpy()
    canvases = [canvas_of(face, ALIGNED_FACE) for face in pixels]
    calls: dict[str, Callable[[], object]] = {}
    rows: dict[str, dict[str, Any]] = {}
    # One by one first: memory only ever peaks higher.
    for how in (ONE_BY_ONE, PASS) if photos > 1 else (PASS,):
        before, began = peak_memory(device), time.perf_counter()
        tailor = Tailor(me, surrogate, look="even", gradients=gradients)
        size = tailor.faces_per_pass if how == PASS else 1
        parts = [canvases[first : first + size] for first in range(0, photos, size)]

        def call(tailor: Tailor = tailor, parts: Sequence[Any] = parts) -> None:
            for part in parts:
                tailor.masks(part)

        call()
        calls[how] = call
        made_by = tailor.made_by()
        rows[how] = {
            "models": surrogate.name,
            "how": how,
            "photos": photos,
            "gradients": gradients,
            "threads": torch.get_num_threads(),
            **{column: made_by[column] for column in ("engine", "backend", "dtype")},
            "setup_seconds": time.perf_counter() - began,
            "peak_mb": round((peak_memory(device) - before) / 2**20, 1),
        }
    timings = interleaved(calls, repeats, device, warm_up=False)
    for how, timing in timings.items():
        rows[how] |= timing.columns("seconds_per_photo", photos)
        rows[how]["times_one_by_one"] = timings.get(ONE_BY_ONE, timing).over(timing)
    return list(rows.values())


def measured(threads: int | None, *arguments: Any) -> list[dict[str, Any]]:
    """What `point` gives in a process of its own; with N threads, or as many as torch takes."""
    before = os.environ.get("OMP_NUM_THREADS")
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as own:
            return own.submit(point, *arguments).result()
    finally:
        if threads is not None:
            os.environ.pop("OMP_NUM_THREADS")
            os.environ.update({} if before is None else {"OMP_NUM_THREADS": before})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command(__doc__, "output", "dry_run")
    parser.add_argument("--models", nargs="+", default=["sface", "dlib"], help="learnt on together (%(default)s)")
    parser.add_argument("--photos", nargs="+", type=int, default=[1, 8, 32], help="(%(default)s)")
    parser.add_argument("--threads", nargs="+", type=int, default=[None], help="of a CPU (those torch takes)")
    parser.add_argument("--gradients", type=int, default=TailorConfig().gradients, help="of a photo (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="(%(default)s)")
    given = parser.parse_args(arguments)
    sizes = (given.gradients, given.repeats) if not given.dry_run else (2, 1)
    rows = Rows(given.output)
    for threads in given.threads:
        for photos in given.photos if not given.dry_run else [2]:
            for row in measured(threads, given.models, photos, *sizes):
                rows.add(row)
                print({column: value for column, value in row.items() if value != ""}, flush=True)


if __name__ == "__main__":
    main()
