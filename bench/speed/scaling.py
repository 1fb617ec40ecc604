"""Time and peak memory of fitting against the number of people in a pass, photos, steps and photos in a batch.

    python -m bench.speed.scaling -o bench/results/scaling_cpu.csv [--net mobilefacenet]

One curve each, the others held at P = 1 person, N = 10 photos, b = 10 photos in a batch, 4 steps, class_center. Every
point runs in a process of its own, so that its peak memory is its own: on a CPU the resident memory above that before
the fit, on CUDA what torch allocated. Seconds are those of a step after the first.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import subprocess
import sys
from pathlib import Path

import torch

from bench.harness import nets
from bench.harness.machine import StepClock, row_context
from fastcloak import fit_many
from fastcloak.system.device import resolve_device

BASE = {"people": 1, "photos": 10, "batch": 10, "steps": 4}
CURVES = {
    "people": (1, 2, 4, 8, 16),
    "photos": (10, 20, 40, 80),
    "batch": (1, 2, 5, 10, 20),
    "steps": (2, 4, 8, 16),
}
UNBOUNDED = 2**50


def point(net: str, people: int, photos: int, batch: int, steps: int) -> dict[str, object]:
    """One fit of all people in one pass."""
    device = resolve_device("auto")
    surrogate = nets.surrogate(nets.NETS[net]())
    photos = max(photos, batch)
    everyone = {str(i): nets.faces(photos, seed=i) for i in range(people)}
    before = _peak(device)
    clock = StepClock(device)
    cloaks = fit_many(
        everyone,
        surrogate,
        preset="plain",
        objective="class_center",
        batch_size=batch,
        inner_steps=1,
        steps=steps,
        device=device,
        memory_budget=UNBOUNDED,
        progress=clock,
    )
    cost = sum(cloak.info["image_gradients"] for cloak in cloaks.values())
    assert len(cloaks) == people
    assert cost == people * batch * steps
    assert all(cloak.delta.any() for cloak in cloaks.values())
    step = clock.timing().median
    return {
        "people": people,
        "photos": photos,
        "batch": batch,
        "steps": steps,
        "image_gradients": cost,
        "seconds_per_step": f"{step:.5g}",
        "seconds_per_image_gradient": f"{step / (people * batch):.5g}",
        "seconds_in_all": f"{clock.ends[-1] - clock.ends[0] + step:.5g}",
        "peak_mb": round((_peak(device) - before) / 2**20, 1),
        "engine": cloaks["0"].info["engine"],
        "backend": cloaks["0"].info["backend"],
        "dtype": cloaks["0"].info["dtype"],
    }


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--net", choices=sorted(nets.NETS), default="mobilefacenet")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.point is not None:
        print(json.dumps(point(arguments.net, **arguments.point)))
        return
    if arguments.output is None:
        parser.error("-o is missing")
    rows: list[dict[str, object]] = []
    for curve, values in CURVES.items():
        for value in values:
            options = json.dumps({**BASE, curve: value})
            command = [sys.executable, "-m", "bench.speed.scaling", "--net", arguments.net, "--point", options]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            measured = json.loads(done.stdout.splitlines()[-1])
            rows.append({"curve": curve, "net": arguments.net, **measured, **row_context()})
            with open(arguments.output, "w", newline="") as file:
                table = csv.DictWriter(file, list(rows[0]))
                table.writeheader()
                table.writerows(rows)


if __name__ == "__main__":
    main()
