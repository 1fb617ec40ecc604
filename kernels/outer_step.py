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
from fastcloak.kernels.layout import (
    BLOCK,
    LAUNCH,
    check_state,
    clip,
    is_channels_last,
    other_offset,
    scale_free,
    sign_of,
    sum_of_partials,
)


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
    LAST: tl.constexpr,  # delta is channels_last, and so is the walk
    ACC_SAME: tl.constexpr,  # acc has the format of delta
    VELOCITY_SAME: tl.constexpr,
    DELTA_IN_SAME: tl.constexpr,
    MOMENTUM: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCKS_PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    p = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = o < n

    acc_o = p * n + (o if ACC_SAME else other_offset(o, HW, LAST))
    g = tl.load(acc_ptr + acc_o, mask=inside, other=0.0)
    if MOMENTUM:
        g = scale_free(g, sum_of_partials(partial_ptr, p, BLOCKS, BLOCKS_PADDED), n)
        velocity_o = p * n + (o if VELOCITY_SAME else other_offset(o, HW, LAST))
        g = decay * tl.load(velocity_ptr + velocity_o, mask=inside, other=0.0) + g
        tl.store(velocity_ptr + velocity_o, g, mask=inside)

    delta = tl.load(delta_ptr + p * n + o, mask=inside, other=0.0)
    delta = clip(delta + alpha * sign_of(g), -eps, eps)
    tl.store(delta_ptr + p * n + o, delta, mask=inside)
    delta_in_o = p * n + (o if DELTA_IN_SAME else other_offset(o, HW, LAST))
    tl.store(delta_in_ptr + delta_in_o, delta, mask=inside)
    tl.store(acc_ptr + acc_o, tl.zeros([BLOCK], tl.float32), mask=inside)


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
    torch.ops.fastcloak.outer_step_(acc, velocity, delta, delta_in, alpha, eps, decay)


@torch.library.custom_op(
    "fastcloak::outer_step_",
    mutates_args=("acc", "velocity", "delta", "delta_in"),
    schema="(Tensor(a!) acc, Tensor(b!) velocity, Tensor(c!) delta, Tensor(d!) delta_in, float alpha, float eps, "
    "float decay) -> ()",
)
def _launch(
    acc: torch.Tensor,
    velocity: torch.Tensor,
    delta: torch.Tensor,
    delta_in: torch.Tensor,
    alpha: float,
    eps: float,
    decay: float,
) -> None:
    check_state(delta=delta, acc=acc, velocity=velocity, delta_in=delta_in)
    last = is_channels_last("delta", delta)
    P, _, H, W = delta.shape
    n = 3 * H * W
    blocks = triton.cdiv(n, BLOCK)
    partial = acc
    with torch.cuda.device_of(delta):
        if decay:
            partial = acc.new_empty((P, blocks))
            _partial_sums_kernel[(P, blocks)](acc, partial, n, BLOCK=BLOCK, **LAUNCH)
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
            LAST=last,
            ACC_SAME=is_channels_last("acc", acc) == last,
            VELOCITY_SAME=is_channels_last("velocity", velocity) == last,
            DELTA_IN_SAME=is_channels_last("delta_in", delta_in) == last,
            MOMENTUM=decay != 0,
            BLOCKS=blocks,
            BLOCKS_PADDED=triton.next_power_of_2(blocks),
            BLOCK=BLOCK,
            **LAUNCH,
        )


@_launch.register_fake
def _fake(
    acc: torch.Tensor,
    velocity: torch.Tensor,
    delta: torch.Tensor,
    delta_in: torch.Tensor,
    alpha: float,
    eps: float,
    decay: float,
) -> None:
    return None
