"""One outer step in place: delta = clip(delta + alpha sign(g), +-eps), delta_in = delta, acc = 0, g = acc.

With momentum (decay > 0): velocity = decay velocity + acc / mean|acc|, and g = velocity.

Bytes per launch, n = 3 H W: reads P 8 n, writes P 12 n; with momentum a first launch reads P 4 n for the sum of |acc|
and the second reads and writes P 4 n more each. Unfused PyTorch reads P 32 n and writes P 28 n in seven launches (sign,
0 * g, add, add_, clamp_, copy_, zero_); with momentum P 24 n and P 16 n more in six more (abs, mean, clamp_min, div,
mul_, add_).

The limit is the launch itself: 0.8 MB at P = 1, 112 x 112. The mean is a two-stage sum without atomics, so that equal
inputs give equal bits.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-not-found"

import torch
import triton
import triton.language as tl
from fastcloak.kernels.arguments import check, is_channels_last
from fastcloak.kernels.layout import BLOCK, LAUNCH, clip, offset, sign_of


@triton.jit
def _partial_sums_kernel(
    acc_ptr,  # [P, n] float32, in any order
    partial_ptr,  # [P, blocks] float32, out: sum |acc| of a program
    n,
    BLOCK: tl.constexpr,
):
    p = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    o = block * BLOCK + tl.arange(0, BLOCK)
    acc = tl.load(acc_ptr + p * n + o, mask=o < n, other=0.0)
    tl.store(partial_ptr + p * tl.num_programs(1) + block, tl.sum(tl.abs(acc), axis=0))


@triton.jit
def _outer_step_kernel(
    acc_ptr,  # [P, 3, H, W] float32, read and set to 0
    velocity_ptr,  # [P, 3, H, W] float32, in place if MOMENTUM
    delta_ptr,  # [P, 3, H, W] float32, the mask, in place
    delta_in_ptr,  # [P, 3, H, W] float32, out: delta
    partial_ptr,  # [P, BLOCKS] float32, partial sums of |acc|, read if MOMENTUM
    n,  # 3 H W
    HW,
    alpha,
    eps,
    decay,
    DELTA_LAST: tl.constexpr,  # delta is channels_last, and so is the walk
    ACC_LAST: tl.constexpr,
    VELOCITY_LAST: tl.constexpr,
    DELTA_IN_LAST: tl.constexpr,
    MOMENTUM: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCKS_PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    p = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = o < n

    acc_o = p * n + offset(o, HW, DELTA_LAST, ACC_LAST)
    g = tl.load(acc_ptr + acc_o, mask=inside, other=0.0)
    delta = tl.load(delta_ptr + p * n + o, mask=inside, other=0.0)
    if MOMENTUM:
        # Second stage of the sum: every program adds the same numbers in the same order.
        i = tl.arange(0, BLOCKS_PADDED)
        total = tl.sum(tl.load(partial_ptr + p * BLOCKS + i, mask=i < BLOCKS, other=0.0), axis=0)
        mean = tl.div_rn(total, n.to(tl.float32))
        # 1e-30 is the reference's TINY; a NaN mean is not below it.
        g = tl.div_rn(g, tl.where(mean < 1e-30, 1e-30, mean))
        velocity_o = p * n + offset(o, HW, DELTA_LAST, VELOCITY_LAST)
        g = decay * tl.load(velocity_ptr + velocity_o, mask=inside, other=0.0) + g
        tl.store(velocity_ptr + velocity_o, g, mask=inside)

    delta = clip(delta + alpha * sign_of(g), -eps, eps)
    tl.store(delta_ptr + p * n + o, delta, mask=inside)
    delta_in_o = p * n + offset(o, HW, DELTA_LAST, DELTA_IN_LAST)
    tl.store(delta_in_ptr + delta_in_o, delta, mask=inside)
    tl.store(acc_ptr + acc_o, tl.zeros([BLOCK], tl.float32), mask=inside)


@torch.library.custom_op("fastcloak::outer_step_", mutates_args=("acc", "velocity", "delta", "delta_in"))
def outer_step_(
    acc: torch.Tensor,
    velocity: torch.Tensor,
    delta: torch.Tensor,
    delta_in: torch.Tensor,
    alpha: float,
    eps: float,
    decay: float = 0.0,
) -> None:
    """`fastcloak.ops.reference.outer_step_` in one launch, two with momentum.

    Args:
        acc, velocity, delta, delta_in: [P, 3, H, W] float32, contiguous or channels_last, changed in place.
        alpha, eps, decay: as in the reference.

    Raises:
        ValueError: a shape, dtype, device or memory format that the kernel cannot take.
    """
    check("delta", delta, ("P", 3, "H", "W"), (torch.float32,), delta.device)
    P, _, H, W = delta.shape
    formats = {}
    for name, tensor in (("delta", delta), ("acc", acc), ("velocity", velocity), ("delta_in", delta_in)):
        check(name, tensor, (P, 3, H, W), (torch.float32,), delta.device)
        formats[f"{name.upper()}_LAST"] = is_channels_last(name, tensor)
    n = 3 * H * W
    blocks = triton.cdiv(n, BLOCK)
    partial = acc
    with torch.cuda.device_of(delta):
        if decay:
            partial = acc.new_empty((P, blocks))
            _partial_sums_kernel[(P, blocks)](acc, partial, n, **LAUNCH)
        _outer_step_kernel[(P, blocks)](
            acc,
            velocity,
            delta,
            delta_in,
            partial,
            n,
            H * W,
            alpha,
            eps,
            decay,
            MOMENTUM=decay != 0,
            BLOCKS=blocks,
            BLOCKS_PADDED=triton.next_power_of_2(blocks),
            **formats,
            **LAUNCH,
        )
