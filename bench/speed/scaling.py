"""Time and peak memory of fitting against the number of people in a pass, photos, steps and photos in a batch.

    python -m bench.speed.scaling -o bench/results/scaling_cpu.csv [--net mobilefacenet]

One curve each, the others held at P = 1 person, N = 10 photos, b = 10 photos in a batch, 4 steps, class_center. Every
point runs in a process of its own, so that its peak memory is its own: on a CPU the resident memory above that before
the fit, on CUDA what torch allocated. Seconds are those of a step after the first.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from bench.harness import nets
from bench.harness.command import command
from bench.harness.machine import StepClock, peak_memory
from bench.harness.rows import Rows
from fastcloak import fit_many
from fastcloak.system.device import resolve_device

BASE = {"people": 1, "photos": 10, "batch": 10, "steps": 4}
CURVES = {"people": (1, 2, 4, 8, 16), "photos": (10, 20, 40, 80), "batch": (1, 2, 5, 10, 20), "steps": (2, 4, 8, 16)}
UNBOUNDED = 2**50


def point(net: str, people: int, photos: int, batch: int, steps: int) -> dict[str, Any]:
    device = resolve_device("auto")
    surrogate = nets.surrogate(nets.NETS[net]())
    photos = max(photos, batch)
    everyone = {str(i): nets.faces(photos, seed=i) for i in range(people)}
    before = peak_memory(device)
    clock = StepClock(device)
    options: dict[str, Any] = {
        "preset": "plain",
        "objective": "class_center",
        "batch_size": batch,
        "inner_steps": 1,
        "steps": steps,
    }
    cloaks = fit_many(everyone, surrogate, device=device, memory_budget=UNBOUNDED, progress=clock, **options)
    cost = sum(cloak.info["image_gradients"] for cloak in cloaks.values())
    assert len(cloaks) == people
    assert cost == people * batch * steps
    assert all(cloak.delta.any() for cloak in cloaks.values())
    step = clock.timing().median
    what = {"people": people, "photos": photos, "batch": batch, "steps": steps, "image_gradients": cost}
    return what | {
        "seconds_per_step": step,
        "seconds_per_image_gradient": step / (people * batch),
        "seconds_in_all": clock.ends[-1] - clock.ends[0] + step,
        "peak_mb": round((peak_memory(device) - before) / 2**20, 1),
        **{name: cloaks["0"].info[name] for name in ("engine", "backend", "dtype")},
    }


def main() -> None:
    given = command(__doc__, "net", "output").parse_args()
    rows = Rows(given.output)
    for curve, values in CURVES.items():
        for value in values:
            sizes = {**BASE, curve: value}
            # In a process of its own, so that its peak memory is its own.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as own:
                measured = own.submit(point, given.net, **sizes).result()
            rows.add({"curve": curve, "net": given.net, **measured})


if __name__ == "__main__":
    main()
