"""From the published loop to ours, one change at a time: seconds of an image-gradient on the same network and photos.

    python -m bench.speed.ladder -o bench/results/ladder_cpu.csv [--net mobilefacenet iresnet50] [--threads 1 2]

    published      the loop as released, see bench/speed/published.py
    cached         clean features without a graph: their backward pass falls away
    frozen         the gradient of the pictures alone: that of the weights falls away
    folded         batch normalisations folded, float32, contiguous
    prepared       what `fastcloak.models.prepare` makes for this device: layout, PReLU without its slope's gradient
    fit            the whole step of `fastcloak.fit` on that: hull, accumulation, sign
    bfloat16       the same in bfloat16, where the processor has it (--bfloat16 forces it)
    people         the same for several persons in one pass
    compile        one person, the network through torch.compile (--compile: it takes minutes)
    cudagraph      several persons, the step captured; on CUDA alone

All rungs take ten photos of a person and the objective given, and are timed in turns; `fit` onwards use the backend
that "auto" chooses. `convex_hull` rows have the published one's cvxpy problems in them. Every rung's gradient of fi_uap
is first compared with the published one: `signs_differ` is the share of pixels whose sign is another.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import normalize

from bench.harness import nets
from bench.harness.machine import Timing, interleaved, peak_flops, row_context
from bench.speed import published
from fastcloak.fitting.loop import Loop
from fastcloak.fitting.options import FitConfig
from fastcloak.models import Surrogate, prepare, unit_features
from fastcloak.models.rewrites.fold import fold
from fastcloak.ops.backend import resolve_backend
from fastcloak.ops.engine import resolve_engine
from fastcloak.system.device import has_fast_bfloat16, resolve_device

PHOTOS = 10
EPS = 8 / 255


def plain_gradient(net: nn.Module, pictures: Tensor, clean: Tensor, weights: bool) -> Tensor:
    """Gradient of fi_uap with respect to the pictures, [n, 3, 112, 112], with or without those of the weights."""
    x = pictures.detach().requires_grad_()
    loss = (normalize(net(x)) - clean).square().mean()
    if weights:
        net.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        assert x.grad is not None
        return x.grad
    return torch.autograd.grad(loss, x)[0]


def folded(net: nn.Module, pictures: Tensor) -> nn.Module:
    """The network with its batch normalisations folded, and nothing else done to it."""
    traced = fx.symbolic_trace(net.requires_grad_(False))
    fold(traced, pictures[:1])
    return traced.float()


def signs_differ(a: Tensor, b: Tensor) -> float:
    """Share of pixels in which the mean of two gradients [n, 3, 112, 112] has another sign."""
    return (a.float().mean(0).sign() != b.float().mean(0).sign()).float().mean().item()


def loop_of(
    surrogate: Surrogate, faces: Tensor, objective: str, engine: str, persons: int
) -> tuple[Loop, Callable[[], None], str]:
    """An opom loop for so many persons with the same photos, its steady step, and the backend in use."""
    backend, ops = resolve_backend("auto", surrogate.device)
    config = FitConfig(method="opom", objective=objective, warmup=0, steps=2)
    loop = Loop(surrogate, config, ops, resolve_engine(engine, surrogate.device), persons, len(faces))
    features = unit_features(surrogate, faces)
    loop.learn(faces.expand(persons, *faces.shape), features.expand(persons, *features.shape), lambda: None)
    return loop, loop.launchers[(objective, False, 0)], backend


class Rungs:
    """The rungs of one network and objective: a call for each, photos per call, and what it says of itself."""

    def __init__(self, net_name: str, objective: str, device: torch.device, arguments: argparse.Namespace) -> None:
        faces = nets.faces(PHOTOS).to(device)
        raw = nets.NETS[net_name]().to(device)
        model = nets.surrogate(raw)
        net = nets.OnFaces(raw)
        cloaked = (faces + published.start_noise(PHOTOS).to(device)).clamp(0, 1)
        clean = published.clean_features(net, faces)
        units = normalize(clean.detach())
        self.calls: dict[str, Callable[[], object]] = {}
        self.photos: dict[str, int] = {}
        self.notes: dict[str, str] = {}
        self.signs: dict[str, float | str] = {}
        plain = objective == "fi_uap"  # the rungs between the released loop and ours know no hull

        def add(name: str, call: Callable[[], object], photos: int, note: str = "", signs: float | str = "") -> None:
            self.calls[name], self.photos[name], self.notes[name], self.signs[name] = call, photos, note, signs

        add("published", lambda: published.published_step(net, faces, clean, cloaked, objective), PHOTOS)
        expected = plain_gradient(net, cloaked, units, weights=True).clone()

        def plain_rung(name: str, network: nn.Module, weights: bool) -> None:
            add(
                name,
                lambda: plain_gradient(network, cloaked, units, weights),
                PHOTOS,
                signs=signs_differ(plain_gradient(network, cloaked, units, weights), expected),
            )

        frozen = nets.OnFaces(nets.NETS[net_name]().to(device))
        ready = prepare(model, device=device)
        if plain:
            plain_rung("cached", net, True)
            plain_rung("frozen", frozen.requires_grad_(False), False)
            plain_rung("folded", folded(nets.OnFaces(nets.NETS[net_name]().to(device)), faces), False)
            plain_rung("prepared", ready, False)

        def loop_rung(name: str, surrogate: Surrogate, engine: str, persons: int) -> None:
            loop, step, backend = loop_of(surrogate, faces, objective, engine, persons)
            note = f"{loop.engine}, {backend}, {surrogate.dtype}".replace("torch.", "")
            signs: float | str = ""
            if plain:
                loop.pictures.copy_(surrogate.normalise(cloaked))
                gradient = loop._gradient(loop.members, loop.index[0], loop.chance[0], objective)[2][0]
                signs = signs_differ(gradient, expected)
            add(name, step, PHOTOS * persons, note, signs)

        loop_rung("fit", ready, "eager", 1)
        fastest = ready
        if arguments.bfloat16 or has_fast_bfloat16(device):
            fastest = prepare(model, device=device, dtype=torch.bfloat16)
            loop_rung("bfloat16", fastest, "eager", 1)
        if arguments.persons > 1:
            loop_rung("people", fastest if device.type == "cuda" else ready, "eager", arguments.persons)
        if arguments.compile:
            loop_rung("compile", fastest if device.type == "cuda" else ready, "compile", 1)
        if device.type == "cuda":
            loop_rung("cudagraph", fastest, "cudagraph", arguments.persons)


def measure(
    net_name: str, objective: str, device: torch.device, arguments: argparse.Namespace
) -> list[dict[str, object]]:
    """One row per rung."""
    rungs = Rungs(net_name, objective, device, arguments)
    timings = interleaved(rungs.calls, arguments.repeats, device)
    operations = 2 * nets.flops(nets.NETS[net_name]())  # forward, and as much again to the pictures
    each = {name: Timing(tuple(s / rungs.photos[name] for s in timing.seconds)) for name, timing in timings.items()}
    rows: list[dict[str, object]] = []
    for name, timing in each.items():
        dtype = torch.bfloat16 if "bfloat16" in rungs.notes[name] else torch.float32
        low, high = timing.spread
        rows.append(
            {
                "net": net_name,
                "objective": objective,
                "rung": name,
                "runs": rungs.notes[name],
                "photos_per_pass": rungs.photos[name],
                "seconds_per_image_gradient": f"{timing.median:.5g}",
                "low": f"{low:.5g}",
                "high": f"{high:.5g}",
                "times_faster_than_published": f"{each['published'].over(timing):.3g}",
                "share_of_peak": f"{operations / timing.median / peak_flops(dtype, device):.3g}",
                "signs_differ": f"{rungs.signs[name]:.2g}" if rungs.signs[name] != "" else "",
                "device": device.type,
                **row_context(device),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--net", nargs="+", choices=sorted(nets.NETS), default=["mobilefacenet", "iresnet50"])
    parser.add_argument("--objective", nargs="+", default=["fi_uap", "convex_hull"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", nargs="+", type=int, default=[torch.get_num_threads()])
    parser.add_argument("--persons", type=int, default=2, help="in the rung `people` (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bfloat16", action="store_true", help="also where the processor emulates it")
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    rows: list[dict[str, object]] = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for net_name in arguments.net:
            for objective in arguments.objective:
                rows += measure(net_name, objective, resolve_device(arguments.device), arguments)
                with open(arguments.output, "w", newline="") as file:  # what is there survives an interruption
                    table = csv.DictWriter(file, list(rows[0]))
                    table.writeheader()
                    table.writerows(rows)


if __name__ == "__main__":
    main()
