"""What an H100 should give, from counted bytes, operations and launches: an estimate until a card has run it.

    TRITON_INTERPRET=1 python -m bench.speed.estimate -o bench/results/estimate_h100.csv      a minute or two, no GPU

The last step of each preset, and of a tailored album, runs on fake CUDA tensors (bench/harness/fake_cuda.py), the
network in bfloat16 as a GPU gets it. Whatever is launched takes as long as the slowest of three: its bytes, each input
read and each output written once, at `BANDWIDTH`; its floating-point operations at `PEAK`; and `LAUNCH`, what a small
kernel takes in a CUDA graph. `bound` says which of the three takes most of the step. Left out are caches, which make it
faster, and the Newton steps inside hull_loss and kernels that reach no such share, which make it slower. At the `roof`
are the data sheet's peaks, and no time to launch.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from operator import itemgetter
from typing import Any

import torch
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from bench.harness import nets
from bench.harness.command import command
from bench.harness.fake_cuda import CUDA, Launches, fake_cuda, on_fake_cuda
from bench.harness.rows import Rows
from fastcloak.fitting.loop import Loop
from fastcloak.fitting.options import PRESETS, configure
from fastcloak.fitting.state import Album, Learnt, Tailoring
from fastcloak.models import Surrogate, prepare
from fastcloak.models.surrogate import FACE_SIZE, Ensemble
from fastcloak.tailoring.canvas import SIDE
from fastcloak.tailoring.options import TailorConfig

ROOF_BANDWIDTH, ROOF_PEAK = 3.35e12, 989e12
"""Bytes and dense bfloat16 operations a second: data sheet of the H100 SXM5, NVIDIA."""
BANDWIDTH, PEAK, LAUNCH = 0.8 * ROOF_BANDWIDTH, 0.5 * ROOF_PEAK, 2e-6
"""What is taken for reached: assumptions, not measurements."""
PERSONS, PHOTOS = (1, 64, 256), 10


TAILORED = "tailored"


class Work(Launches):  # type: ignore[no-untyped-call]
    """Adds up the time, the bytes and the operations of what is launched."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = self.at_roof = 0.0
        self.bytes = self.flops = 0
        self.time_by_limit: dict[str, float] = defaultdict(float)

    def launched(self, operation: Any, args: Any, kwargs: Any, result: Any) -> None:
        super().launched(operation, args, kwargs, result)
        tensors = [one for one in tree_leaves((args, kwargs, result)) if isinstance(one, torch.Tensor)]
        moved = sum(one.numel() * one.element_size() for one in {id(one): one for one in tensors}.values())
        count = flop_registry.get(operation.overloadpacket)
        flops = count(*args, **kwargs, out_val=result) if count else 0
        times = {"bandwidth": moved / BANDWIDTH, "arithmetic": flops / PEAK, "launches": LAUNCH}
        limit = max(times, key=times.__getitem__)
        self.time_by_limit[limit] += times[limit]
        self.seconds += times[limit]
        self.at_roof += max(moved / ROOF_BANDWIDTH, flops / ROOF_PEAK)
        self.bytes += moved
        self.flops += flops


def last_step(surrogate: Surrogate, recipe: str, persons: int) -> tuple[Work, int, int]:
    """What the last step of a pass takes, its image-gradients, and how many such steps a mask takes."""
    size, photos = surrogate.embedding_size, 1 if recipe == TAILORED else PHOTOS
    whole = TailorConfig().loop(grey=False) if recipe == TAILORED else configure({"preset": recipe})
    short = replace(whole, steps=2, warmup=1)
    arguments: dict[str, Any] = {}
    side, tailoring = FACE_SIZE, None
    if recipe == TAILORED:
        side, tailoring = SIDE, Tailoring(SIDE, apart=1.0)
        bound, place = torch.rand(persons, 3, SIDE, SIDE, device=CUDA), torch.rand(persons, 2, 3, device=CUDA)
        arguments["album"] = Album(bound, place, torch.ones(persons, persons, device=CUDA))
    ops = import_module("fastcloak.kernels")
    loop = Loop(surrogate, short, ops, "eager", persons, photos, tailoring)
    work = Work()
    with ExitStack() as watched:

        def keep(learnt: Learnt, state: object) -> None:
            if learnt.steps == short.steps - 1:
                watched.enter_context(work)

        faces = torch.rand(persons, photos, 3, side, side, device=CUDA)
        loop.learn(faces, torch.rand(persons, photos, size, device=CUDA), keep=keep, **arguments)
    return work, persons * short.batch(photos) * short.inner_steps, whole.steps


def row(net: str, surrogate: Surrogate, recipe: str, persons: int) -> dict[str, Any]:
    with fake_cuda():
        member = on_fake_cuda(surrogate)
        turns = recipe in ("strong", TAILORED)
        asked = Ensemble([member, on_fake_cuda(surrogate)]) if turns else member
        work, images, steps = last_step(asked, recipe, persons)
    bound, most = max(work.time_by_limit.items(), key=itemgetter(1))
    return {
        "net": net,
        "recipe": recipe,
        "persons": persons,
        "image_gradients": images,
        "launches": work.counts.total(),
        "mbytes": work.bytes / 1e6,
        "gflop": work.flops / 1e9,
        "step_ms": 1e3 * work.seconds,
        "images_per_second": images / work.seconds,
        "masks_per_hour": 3600 * persons / (steps * work.seconds),
        "roof_images_per_second": images / work.at_roof,
        "bound": bound,
        "share_of_bound": most / work.seconds,
    }


def main() -> None:
    given = command(__doc__, "output").parse_args()
    rows = Rows(given.output)
    for net in nets.NETS:
        surrogate = prepare(
            nets.surrogate(nets.NETS[net](), net), dtype=torch.bfloat16, channels_last=True, backend="triton"
        )
        for recipe in (*PRESETS, TAILORED):
            for persons in PERSONS:
                rows.add(row(net, surrogate, recipe, persons))
                print(rows.rows[-1], flush=True)


if __name__ == "__main__":
    main()
