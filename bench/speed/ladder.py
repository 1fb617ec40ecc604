"""From the published loop to ours, one change at a time: seconds of an image-gradient on the same network and photos.

    python -m bench.speed.ladder -o bench/results/ladder_cpu.csv [--net mobilefacenet iresnet50] [--threads 1 2]

    published      the loop as released, see bench/speed/published.py
    cached         clean features without a graph: their backward pass falls away
    frozen         the gradient of the pictures alone: that of the weights falls away
    folded         batch normalisations folded, float32, contiguous
    prepared       what `fastcloak.models.prepare` makes in float32: layout, PReLU without its slope's gradient
    fit            the loop of `fastcloak.fit` on that: hull, accumulation, sign
    bfloat16       the same in bfloat16, where the device has it (--bfloat16 forces it)
    fused          the same with the Triton kernels; on CUDA alone, as both of cudagraph
    people         the same for several persons in one pass
    compile        one person, the network through torch.compile (--compile: it takes minutes)
    cudagraph      several persons, the step captured, and one person

All rungs take ten photos of a person, the objective given and `--steps` steps, and are timed in turns. `convex_hull`
rows have the published one's cvxpy problems in them, and none of the rungs between that loop and ours, which know no
hull. `signs_differ` is the share of pixels in which the mask is not the published one: after one step, the share of
gradients with another sign. `reached_over_published` compares what fi_uap the masks reach. A rung that fails has the
reason in `note`.
"""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import normalize

from bench.harness import nets
from bench.harness.command import command
from bench.harness.machine import Timing, interleaved, peak_flops, row_context, seconds_of, synchronise
from bench.harness.rows import Rows
from bench.speed import published
from bench.speed.passes import Pass
from bench.speed.published import ALPHA, EPS
from fastcloak.fitting.options import FitConfig
from fastcloak.models import prepare
from fastcloak.models.rewrites.fold import fold
from fastcloak.system.device import has_fast_bfloat16, resolve_device


@dataclass(frozen=True)
class Rung:
    """One rung: `make` sets it up and gives a call that fits masks and returns that of the first person."""

    make: Callable[[], Callable[[], Tensor]]
    persons: int = 1
    dtype: torch.dtype = torch.float32
    runs: str = ""


def plain_fit(net: nn.Module, faces: Tensor, units: Tensor, steps: int, weights: bool) -> Tensor:
    """The published loop of fi_uap less what it does in vain; `weights`: with their gradients."""
    cloaked = faces + published.start_noise(len(faces)).to(faces.device)
    delta = torch.zeros_like(faces[:1])
    for _ in range(steps):
        x = cloaked.detach().requires_grad_()
        loss = (normalize(net(x)) - units).square().mean()
        if weights:
            net.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        gradient = x.grad if weights else torch.autograd.grad(loss, x)[0]
        assert gradient is not None
        delta = (x.detach() + ALPHA * gradient.mean(0, keepdim=True).sign() - faces).mean(0, keepdim=True)
        delta = delta.clamp(-EPS, EPS)
        cloaked = (faces + delta).clamp(0, 1)
    return delta[0]


def folded(net: nn.Module, faces: Tensor) -> nn.Module:
    """A copy of the network with its batch normalisations folded, and nothing else done to it."""
    traced = fx.symbolic_trace(copy.deepcopy(net).requires_grad_(False))
    fold(traced, faces[:1])
    return traced.float()


def rungs_of(
    net: nn.Module, faces: Tensor, objective: str, steps: int, persons: int, compiled: bool, bfloat16: bool
) -> dict[str, Rung]:
    device, plain, model = faces.device, nets.OnFaces(net), nets.surrogate(net, "net")
    config = FitConfig(method="opom", objective=objective, warmup=0, steps=steps)

    def as_published() -> Callable[[], Tensor]:
        clean = published.clean_features(plain.requires_grad_(True), faces)
        return lambda: published.published_fit(plain, faces, objective, steps, warmup=0, clean=clean)

    def plainly(change: Callable[[], nn.Module], weights: bool = False) -> Rung:
        def make() -> Callable[[], Tensor]:
            own = change()
            with torch.no_grad():
                units = normalize(own(faces))
            return lambda: plain_fit(own, faces, units, steps, weights)

        return Rung(make)

    def ours(backend: str, dtype: torch.dtype, engine: str = "eager", persons: int = 1) -> Rung:
        def make() -> Callable[[], Tensor]:
            one = Pass(prepare(model, device=device, dtype=dtype), config, backend, engine, persons, len(faces))
            return lambda: one().delta[0]

        return Rung(make, persons, dtype, f"{engine}, {backend}, {dtype}".replace("torch.", ""))

    rungs = {"published": Rung(as_published)}
    if objective == "fi_uap":
        rungs["cached"] = plainly(lambda: copy.deepcopy(plain).requires_grad_(True), weights=True)
        rungs["frozen"] = plainly(lambda: copy.deepcopy(plain).requires_grad_(False))
        rungs["folded"] = plainly(lambda: folded(plain, faces))
        rungs["prepared"] = plainly(lambda: prepare(model, device=device, dtype=torch.float32))
    rungs["fit"] = ours("reference", torch.float32)
    cuda, half = device.type == "cuda", bfloat16 or has_fast_bfloat16(device)
    if half:
        rungs["bfloat16"] = ours("reference", torch.bfloat16)
    backend, dtype = "triton" if cuda else "reference", torch.bfloat16 if cuda and half else torch.float32
    if cuda:
        rungs["fused"] = ours(backend, dtype)
    if persons > 1:
        rungs["people"] = ours(backend, dtype, persons=persons)
    if compiled:
        rungs["compile"] = ours(backend, dtype, "compile")
    if cuda:
        rungs["cudagraph"] = ours(backend, dtype, "cudagraph", persons)
        rungs["cudagraph, one person"] = ours(backend, dtype, "cudagraph")
    return rungs


def measure(
    name: str,
    net: nn.Module,
    objective: str = "fi_uap",
    *,
    photos: int = 10,
    steps: int = 1,
    persons: int = 2,
    repeats: int = 5,
    compiled: bool = False,
    bfloat16: bool = False,
    left: Callable[[], float] = lambda: math.inf,
) -> Iterator[dict[str, Any]]:
    """A row per rung.

    Args:
        name: of the network.
        net: takes normalised pictures; its device is that of all rungs.
        objective: as for `fastcloak.fit`.
        photos: of a person.
        steps: of a fit.
        persons: in the rungs `people` and `cudagraph`.
        repeats: at most; fewer where less time is `left`.
        compiled: with the rung `compile`.
        bfloat16: that rung also where the processor emulates it.
        left: seconds that may still be used.
    """
    device = next(net.parameters()).device
    faces = nets.faces(photos).to(device)
    rungs = rungs_of(net, faces, objective, steps, persons, compiled, bfloat16)
    calls: dict[str, Callable[[], Tensor]] = {}
    masks: dict[str, Tensor] = {}
    setup: dict[str, float] = {}

    def what(rung: str) -> dict[str, Any]:
        row = {"net": name, "objective": objective, "rung": rung, "runs": rungs[rung].runs, "device": device.type}
        return {**row, "photos_per_pass": rungs[rung].persons * photos, "steps": steps}

    for rung, of in rungs.items():
        try:
            if left() < 5:
                raise TimeoutError(f"skipped: {left():.0f} s left")
            began = time.perf_counter()
            call = of.make()
            masks[rung] = call().float()
            synchronise(device)
            setup[rung], calls[rung] = time.perf_counter() - began, call
        except Exception as error:  # whatever one rung meets, the others go on
            yield {**what(rung), "note": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    if calls and math.isfinite(left()):  # the published loop takes longest by far: as many turns as the time allows
        repeats = max(1, min(repeats, int(left() / 2 / sum(seconds_of(call, device) for call in calls.values()))))
    timings = interleaved(calls, repeats, device, warm_up=False)
    plain = nets.OnFaces(net)

    def reached(mask: Tensor) -> float:
        with torch.no_grad():
            return float((normalize(plain((faces + mask).clamp(0, 1))) - normalize(plain(faces))).square().mean())

    roof = functools.cache(functools.partial(peak_flops, device=device))
    operations = 2 * nets.flops(net)  # forward, and as much again to the pictures
    for rung, timing in timings.items():
        images = rungs[rung].persons * photos * steps
        row: dict[str, Any] = dict(timing.columns("seconds_per_image_gradient", images))
        peak = roof(rungs[rung].dtype) * row["seconds_per_image_gradient"]
        row |= {"share_of_peak": operations / peak, "setup_seconds": setup[rung]}
        if "published" in timings:
            base = Timing(tuple(s * rungs[rung].persons for s in timings["published"].seconds))
            share = reached(masks[rung]) / reached(masks["published"])
            row |= {"times_faster_than_published": base.over(timing), "reached_over_published": share}
            row |= {"agrees": abs(share - 1) < 0.1}
            if rung != "published":
                row["signs_differ"] = (masks[rung] - masks["published"]).abs().gt(1e-6).float().mean().item()
        yield {**what(rung), **row}


def main() -> None:
    parser = command(__doc__, "output")
    parser.add_argument("--net", nargs="+", choices=sorted(nets.NETS), default=["mobilefacenet", "iresnet50"])
    parser.add_argument("--objective", nargs="+", default=["fi_uap", "convex_hull"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", nargs="+", type=int, default=[torch.get_num_threads()])
    parser.add_argument("--persons", type=int, default=2, help="in the rungs `people`, `cudagraph` (%(default)s)")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bfloat16", action="store_true", help="also where the processor emulates it")
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()
    device = resolve_device(given.device)
    rows = Rows(given.output, lambda: row_context(device))
    for threads in given.threads:
        torch.set_num_threads(threads)
        for name in given.net:
            for objective in given.objective:
                options: dict[str, Any] = {"steps": given.steps, "persons": given.persons, "repeats": given.repeats}
                options |= {"compiled": given.compile, "bfloat16": given.bfloat16}
                for row in measure(name, nets.NETS[name]().to(device), objective, **options):
                    rows.add(row)


if __name__ == "__main__":
    main()
