"""What the faces of an album are driven away from, in one launch: out = c + strength * sum_j w_j u_j / sum_j w_j.

    w_j = there_j exp((<u_i, u_j> - 1) / sharpness),  u = f / |f|

A program is one face: it reads the features of all others in blocks of rows, and sums weights and weighted rows in one
pass, since a cosine is at most 1 and no exponent overflows.

Bytes per launch: reads P (P + E) D 4, from caches but for the first program, and writes P D 4. PyTorch takes about 18
launches. The limit is latency: 128 faces with D = 512 are 50 MB of cached reads over 128 programs.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-not-found"

import torch
import triton
import triton.language as tl
from fastcloak.kernels.arguments import FLOATS, check

TINY = tl.constexpr(1e-30)
SHORTEST = tl.constexpr(1e-12)
"""Least length that a feature is divided by, as in torch.nn.functional.normalize."""
ELEMENTS = 8192
"""Numbers of features that a program holds at a time."""


@triton.jit
def _units(features_ptr, j, count, D: tl.constexpr, BLOCK_D: tl.constexpr):
    d = tl.arange(0, BLOCK_D)[None, :]
    inside = (j[:, None] < count) & (d < D)
    f = tl.load(features_ptr + j[:, None] * D + d, mask=inside, other=0.0).to(tl.float32)
    length = tl.sqrt(tl.sum(f * f, axis=1))
    return f / tl.where(length < SHORTEST, SHORTEST, length)[:, None]


@triton.jit
def _added(total, mean, own, features_ptr, there_ptr, count: tl.constexpr, sharpness, D, BLOCK_D, ROWS: tl.constexpr):
    for first in range(0, count, ROWS):
        j = first + tl.arange(0, ROWS)
        rows = _units(features_ptr, j, count, D, BLOCK_D)
        weight = tl.exp((tl.sum(rows * own, axis=1) - 1) / sharpness)
        weight *= tl.load(there_ptr + j, mask=j < count, other=0.0)
        total += tl.sum(weight, axis=0)
        mean += tl.sum(weight[:, None] * rows, axis=0)
    return total, mean


@triton.jit
def _apart_kernel(
    features_ptr,  # [P, D]
    earlier_ptr,  # [E, D] float32
    together_ptr,  # [P, P] float32
    known_ptr,  # [P, E] float32
    center_ptr,  # [P, D] float32
    out_ptr,  # [P, D] float32, out
    strength,
    sharpness,
    P: tl.constexpr,
    E: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    own = _units(features_ptr, i + tl.zeros([1], tl.int64), P, D, BLOCK_D)  # [1, BLOCK_D]
    total, mean = tl.sum(0 * own), tl.zeros([BLOCK_D], tl.float32)
    total, mean = _added(total, mean, own, features_ptr, together_ptr + i * P, P, sharpness, D, BLOCK_D, ROWS)
    total, mean = _added(total, mean, own, earlier_ptr, known_ptr + i * E, E, sharpness, D, BLOCK_D, ROWS)
    total = tl.where(total < TINY, TINY, total)
    d = tl.arange(0, BLOCK_D)
    center = tl.load(center_ptr + i * D + d, mask=d < D, other=0.0)
    tl.store(out_ptr + i * D + d, center + strength * mean / total, mask=d < D)


@torch.library.custom_op("fastcloak::apart_center", mutates_args=())
def apart_center(
    features: torch.Tensor,
    earlier: torch.Tensor,
    together: torch.Tensor,
    known: torch.Tensor,
    center: torch.Tensor,
    strength: float,
    sharpness: float,
) -> torch.Tensor:
    """`fastcloak.ops.reference.apart_center` in one launch.

    Args:
        features: [P, D] float32, bfloat16 or float16, copied where it is not contiguous, as the others are.
        earlier, together, known, center, strength, sharpness: as in the reference, float32.

    Raises:
        ValueError: a shape, dtype or device that the kernel cannot take.
    """
    check("features", features, ("P", "D"), FLOATS, features.device)
    P, D = features.shape
    wanted = {"earlier": (earlier, ("E", D)), "together": (together, (P, P)), "center": (center, (P, D))}
    wanted["known"] = (known, (P, earlier.shape[0]))
    for name, (tensor, shape) in wanted.items():
        check(name, tensor, shape, (torch.float32,), features.device)
    out = torch.empty(P, D, dtype=torch.float32, device=features.device)
    width = triton.next_power_of_2(D)
    with torch.cuda.device_of(features):
        _apart_kernel[(P,)](
            features.contiguous(),
            earlier.contiguous(),
            together.contiguous(),
            known.contiguous(),
            center.contiguous(),
            out,
            strength,
            sharpness,
            P=P,
            E=earlier.shape[0],
            D=D,
            BLOCK_D=width,
            ROWS=max(1, min(16, ELEMENTS // width)),
            num_warps=8,
        )
    return out


@apart_center.register_fake
def _(features, earlier, together, known, center, strength, sharpness):
    return torch.empty_like(features, dtype=torch.float32, memory_format=torch.contiguous_format)
