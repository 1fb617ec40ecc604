"""The hot operations with the inputs of a fit, the bytes that each must move, and when two results agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fastcloak.ops.hull import build_hull

EPS, ALPHA = 8 / 255, 1 / 255


@dataclass(frozen=True)
class Operation:
    """One call of a hot operation.

    Attributes:
        name: of the function in a backend's module.
        variant: objective or option.
        what: persons, batch, dtype and layout.
        arguments: of the call.
        moved: bytes, each input read once and each output written once.
    """

    name: str
    variant: str
    what: dict[str, Any]
    arguments: tuple[Any, ...]
    moved: int

    def __str__(self) -> str:
        return " ".join(map(str, (self.name, self.variant, *self.what.values()))).replace("  ", " ")

    def call_of(self, module: ModuleType, dtype: torch.dtype | None = None) -> tuple[Callable[[], Any], list[Any]]:
        """A call of a backend's operation, and its arguments: copies, floats of this dtype if one is given."""
        copies = [
            (a.to(dtype) if dtype is not None and a.is_floating_point() else a.clone()) if isinstance(a, Tensor) else a
            for a in self.arguments
        ]
        return lambda: getattr(module, self.name)(*copies), copies

    def compared(self, results: Any, arguments: list[Any], expected: Any, theirs: list[Any]) -> tuple[float, bool]:
        """`agreement` of two calls: hull_loss returns its results, the others change their arguments."""
        if self.name == "hull_loss":
            return agreement(list(zip(results, expected, strict=True)))
        pairs = [(a, b) for a, b in zip(arguments, theirs, strict=True) if isinstance(a, Tensor)]
        return agreement(pairs, turned=1e-3)


def agreement(pairs: Sequence[tuple[Tensor, Tensor]], turned: float = 0.0) -> tuple[float, bool]:
    """Largest difference over the largest number, and whether it is rounding in all but a share `turned` of numbers.

    A gradient that rounds across zero turns the sign of a step.
    """
    worst, agrees = 0.0, True
    for actual, expected in pairs:
        if not expected.is_floating_point():
            continue
        a, e = actual.double(), expected.double()
        difference = (a - e).abs() / e.abs().max().clamp_min(1e-9)
        rounding = max(1e-5, *(2 * torch.finfo(one.dtype).eps for one in (actual, expected)))
        worst = max(worst, float(difference.max()))
        agrees = agrees and float((~(difference <= rounding)).double().mean()) <= turned
    return worst, agrees


def picture_operations(
    P: int, b: int, dtype: torch.dtype, last: bool, device: torch.device, *, side: int = 112, photos: int = 10
) -> Iterator[Operation]:
    """The three element-wise operations; `last`: pictures in channels_last."""
    n, e = 3 * side * side, dtype.itemsize
    generator = torch.Generator(device).manual_seed(0)

    def pictures(*size: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
        flat = torch.rand(math.prod(size), 3, side, side, device=device, generator=generator) * scale
        layout = torch.channels_last if last else torch.contiguous_format
        return flat.to(dtype=dtype, memory_format=layout).view(*size, 3, side, side)

    def state() -> Tensor:
        return pictures(P, scale=2 * EPS) - EPS

    what = {"persons": P, "batch": b, "dtype": str(dtype).removeprefix("torch.")}
    what["layout"] = "channels_last" if last else "contiguous"
    index = torch.arange(b, device=device).expand(P, b) % photos
    scale, shift = (torch.full((3,), value, device=device) for value in (2.0, -1.0))
    arguments: tuple[Any, ...] = (pictures(P, photos), state(), index, pictures(P, b, dtype=dtype), scale, shift)
    moved = P * (4 * min(b, photos) * n + 4 * n + 8 * b + b * n * e) + 24
    yield Operation("cloak_batch_", "", what, arguments, moved)
    yield Operation("cloak_batch_", "bound", what, (*arguments, pictures(P)), moved + P * 4 * n)

    grads = (pictures(P, b, scale=2) - 1).to(dtype)
    arguments = (grads, state(), state(), EPS / 2, EPS, scale)
    yield Operation("accumulate_step_", "", what, arguments, P * (b * n * e + 16 * n) + 12)

    if dtype == torch.float32 or last:  # the state is float32 whatever the network takes
        for variant, decay in (("", 0.0), ("momentum", 1.0)):
            arguments = (state(), state(), state(), state(), ALPHA, EPS, decay)
            yield Operation(
                "outer_step_", variant, {**what, "dtype": "float32"}, arguments, P * n * (28 if decay else 20)
            )


def hull_operations(
    P: int, b: int, dtype: torch.dtype, device: torch.device, *, photos: int = 10, size: int = 512
) -> Iterator[Operation]:
    """The objectives; fi_uap_plus is class_center with less."""
    generator = torch.Generator(device).manual_seed(1)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, generator=generator)

    clean = normalize(randn(P, 1, size) + 0.7 * randn(P, photos, size), dim=-1)
    index = torch.arange(b, device=device).expand(P, b) % photos
    features = (20 * clean.gather(1, index[..., None].expand(-1, -1, size)) + 0.4 * randn(P, b, size)).to(dtype)
    read = {"fi_uap": 4 * min(b, photos) * size + 8 * b, "class_center": 0, "affine_hull": 4 * photos * size}
    read["convex_hull"] = read["affine_hull"] + 8 * photos * photos
    what = {"persons": P, "batch": b, "dtype": str(dtype).removeprefix("torch.")}
    for objective, of_hull in reversed(read.items()):
        hull = build_hull(clean, objective)
        arguments = (features, hull.points, hull.gram, hull.center, index, objective)
        moved = P * (2 * b * size * dtype.itemsize + 4 * size + of_hull + 8 * b)
        yield Operation("hull_loss", objective, what, arguments, moved)
