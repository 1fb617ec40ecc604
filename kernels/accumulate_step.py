"""One inner step in place: g = scale mean_b grads; delta_in = clip(delta_in + alpha sign(g), +-eps); acc += g.

Bytes per launch, n = 3 H W, e bytes per element of grads: reads P (b n e + 8 n), writes P 8 n. Every tensor passes
through the registers once. Unfused PyTorch (mean, mul, sign, 0 * g, add, add_, clamp_, add_) reads P (b n e + 40 n)
and writes P 32 n in eight launches when grads are float32, and one conversion more otherwise. With `normalise` the mean
of |g| must be known before acc changes: the first launch writes g and one partial sum per program, the second reads
both; grads are still read once.

The limit is the latency of one pass: at P = 1, b = 10, 112 x 112 float32 it moves 2.1 MB, under 1 us of an H100's
memory. Hence small programs (many at once) and a loop over the photos that is unrolled (their loads in flight at once).
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-not-found"

import torch
import triton
import triton.language as tl
from fastcloak.kernels.layout import (
    BLOCK,
    LAUNCH,
    UNROLL,
    check_per_channel,
    check_pictures,
    check_state,
    clip,
    dense,
    is_channels_last,
    other_offset,
    per_channel,
    scale_free,
    sign_of,
    sum_of_partials,
)


@triton.jit
def _accumulate_step_kernel(
    grads_ptr,  # [P, B, 3, H, W], gradient of each photo
    acc_ptr,  # [P, 3, H, W] float32, += g in place; NORMALISE: not touched
    delta_in_ptr,  # [P, 3, H, W] float32, look-ahead, in place
    scale_ptr,  # [3] float32, read if SCALED
    g_ptr,  # [P, n] float32, out if NORMALISE: g in the format of acc
    partial_ptr,  # [P, blocks] float32, out if NORMALISE: sum |g| of a program
    n,  # 3 H W
    HW,
    alpha,
    eps,
    B: tl.constexpr,
    LAST: tl.constexpr,  # grads are channels_last, and so is the walk
    ACC_SAME: tl.constexpr,  # acc has the format of grads
    DELTA_SAME: tl.constexpr,
    SCALED: tl.constexpr,
    NORMALISE: tl.constexpr,
    UNROLLED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    p = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    o = block * BLOCK + tl.arange(0, BLOCK)
    inside = o < n

    grads_ptr += p * B * n
    g = tl.zeros([BLOCK], tl.float32)
    if UNROLLED:
        for i in tl.static_range(B):
            g += tl.load(grads_ptr + i * n + o, mask=inside, other=0.0).to(tl.float32)
    else:
        for i in range(B):
            g += tl.load(grads_ptr + i * n + o, mask=inside, other=0.0).to(tl.float32)
    if B > 1:
        g = tl.div_rn(g, B * 1.0)
    if SCALED:
        g = g * per_channel(scale_ptr, o, HW, LAST)

    delta_o = p * n + (o if DELTA_SAME else other_offset(o, HW, LAST))
    delta_in = tl.load(delta_in_ptr + delta_o, mask=inside, other=0.0)
    tl.store(delta_in_ptr + delta_o, clip(delta_in + alpha * sign_of(g), -eps, eps), mask=inside)

    acc_o = p * n + (o if ACC_SAME else other_offset(o, HW, LAST))
    if NORMALISE:
        tl.store(g_ptr + acc_o, g, mask=inside)
        # Where grads end, g is 0 unless a NaN scale made it NaN.
        total = tl.sum(tl.where(inside, tl.abs(g), 0.0), axis=0)
        tl.store(partial_ptr + p * tl.num_programs(1) + block, total)
    else:
        acc = tl.load(acc_ptr + acc_o, mask=inside, other=0.0)
        tl.store(acc_ptr + acc_o, acc + g, mask=inside)


@triton.jit
def _add_scale_free_kernel(
    acc_ptr,  # [P, n] float32, += g / mean|g| in place
    g_ptr,  # [P, n] float32, in the format of acc
    partial_ptr,  # [P, blocks] float32, partial sums of |g|
    n,
    BLOCKS: tl.constexpr,
    BLOCKS_PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    p = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = o < n
    g = tl.load(g_ptr + p * n + o, mask=inside, other=0.0)
    acc = tl.load(acc_ptr + p * n + o, mask=inside, other=0.0)
    total = sum_of_partials(partial_ptr, p, BLOCKS, BLOCKS_PADDED)
    tl.store(acc_ptr + p * n + o, acc + scale_free(g, total, n), mask=inside)


def accumulate_step_(
    grads: torch.Tensor,
    acc: torch.Tensor,
    delta_in: torch.Tensor,
    alpha: float,
    eps: float,
    normalise: bool = False,
    scale: torch.Tensor | None = None,
) -> None:
    """`fastcloak.ops.reference.accumulate_step_` in one launch, two with `normalise`.

    Args:
        grads: [P, b, 3, H, W] float32, bfloat16 or float16, contiguous or channels_last (otherwise copied).
        acc: [P, 3, H, W] float32, contiguous or channels_last, changed in place.
        delta_in: the same.
        alpha, eps, normalise, scale: as in the reference.

    Raises:
        ValueError: a shape, dtype, device or memory format that the kernel cannot take.
    """
    torch.ops.fastcloak.accumulate_step_(grads, acc, delta_in, alpha, eps, normalise, scale)


@torch.library.custom_op(
    "fastcloak::accumulate_step_",
    mutates_args=("acc", "delta_in"),
    schema="(Tensor grads, Tensor(a!) acc, Tensor(b!) delta_in, float alpha, float eps, bool normalise, "
    "Tensor? scale) -> ()",
)
def _launch(
    grads: torch.Tensor,
    acc: torch.Tensor,
    delta_in: torch.Tensor,
    alpha: float,
    eps: float,
    normalise: bool,
    scale: torch.Tensor | None,
) -> None:
    check_state(acc=acc, delta_in=delta_in)
    check_pictures("grads", grads, acc)
    if scale is not None:
        check_per_channel("scale", scale, acc)
        scale = scale.contiguous()
    grads = dense(grads)
    last = is_channels_last("grads", grads)
    P, _, H, W = acc.shape
    n = 3 * H * W
    blocks = triton.cdiv(n, BLOCK)
    # Pointers that a variant does not read still need a tensor.
    g = acc.new_empty((P, n)) if normalise else acc
    partial = acc.new_empty((P, blocks)) if normalise else acc
    with torch.cuda.device_of(acc):
        _accumulate_step_kernel[(P, blocks)](
            grads,
            acc,
            delta_in,
            acc if scale is None else scale,
            g,
            partial,
            n,
            H * W,
            alpha,
            eps,
            B=grads.shape[1],
            LAST=last,
            ACC_SAME=is_channels_last("acc", acc) == last,
            DELTA_SAME=is_channels_last("delta_in", delta_in) == last,
            SCALED=scale is not None,
            NORMALISE=normalise,
            UNROLLED=grads.shape[1] <= UNROLL,
            BLOCK=BLOCK,
            **LAUNCH,
        )
        if normalise:
            _add_scale_free_kernel[(P, blocks)](
                acc,
                g,
                partial,
                n,
                BLOCKS=blocks,
                BLOCKS_PADDED=triton.next_power_of_2(blocks),
                BLOCK=BLOCK,
                **LAUNCH,
            )


@_launch.register_fake
def _fake(
    grads: torch.Tensor,
    acc: torch.Tensor,
    delta_in: torch.Tensor,
    alpha: float,
    eps: float,
    normalise: bool,
    scale: torch.Tensor | None,
) -> None:
    return None
