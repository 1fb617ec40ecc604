"""One inner step in place: g = scale mean_b grads; delta_in = clip(delta_in + alpha sign(g), +-eps); acc += g.

Bytes per launch, n = 3 H W, e bytes per element of grads: reads P (b n e + 8 n), writes P 8 n. Every tensor passes
through the registers once. Unfused PyTorch (mean, mul, sign, 0 * g, add, add_, clamp_, add_) reads P (b n e + 40 n)
and writes P 32 n in eight launches when grads are float32, and one conversion more otherwise.

The limit is the latency of one pass: at P = 1, b = 10, 112 x 112 float32 it moves 2.1 MB, under 1 us of an H100's
memory. Hence small programs (many at once) and a loop over the photos that is unrolled (their loads in flight at once).
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-not-found"

import torch
import triton
import triton.language as tl
from fastcloak.kernels.arguments import FLOATS, check, dense, is_channels_last
from fastcloak.kernels.layout import BLOCK, LAUNCH, clip, offset, per_channel, sign_of

UNROLL = 16
"""Photos of a batch up to which the loop over them is unrolled, so that their loads overlap."""


@triton.jit
def _accumulate_step_kernel(
    grads_ptr,  # [P, B, 3, H, W], gradient of each photo
    acc_ptr,  # [P, 3, H, W] float32, += g in place
    delta_in_ptr,  # [P, 3, H, W] float32, look-ahead, in place
    scale_ptr,  # [3] float32, read if SCALED
    n,  # 3 H W
    HW,
    alpha,
    eps,
    B: tl.constexpr,
    LAST: tl.constexpr,  # grads are channels_last, and so is the walk
    ACC_LAST: tl.constexpr,
    DELTA_LAST: tl.constexpr,
    SCALED: tl.constexpr,
    UNROLLED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    p = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = o < n

    # All loads before the first store, behind which no compiler may move them up.
    acc_o = p * n + offset(o, HW, LAST, ACC_LAST)
    acc = tl.load(acc_ptr + acc_o, mask=inside, other=0.0)
    delta_o = p * n + offset(o, HW, LAST, DELTA_LAST)
    delta_in = tl.load(delta_in_ptr + delta_o, mask=inside, other=0.0)
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

    tl.store(delta_in_ptr + delta_o, clip(delta_in + alpha * sign_of(g), -eps, eps), mask=inside)
    tl.store(acc_ptr + acc_o, acc + g, mask=inside)


@torch.library.custom_op("fastcloak::accumulate_step_", mutates_args=("acc", "delta_in"))
def accumulate_step_(
    grads: torch.Tensor,
    acc: torch.Tensor,
    delta_in: torch.Tensor,
    alpha: float,
    eps: float,
    scale: torch.Tensor | None = None,
) -> None:
    """`fastcloak.ops.reference.accumulate_step_` in one launch.

    Args:
        grads: [P, b, 3, H, W] float32, bfloat16 or float16, contiguous or channels_last (otherwise copied).
        acc, delta_in: [P, 3, H, W] float32, contiguous or channels_last, changed in place.
        alpha, eps, scale: as in the reference.

    Raises:
        ValueError: a shape, dtype, device or memory format that the kernel cannot take.
    """
    check("acc", acc, ("P", 3, "H", "W"), (torch.float32,), acc.device)
    P, _, H, W = acc.shape
    check("delta_in", delta_in, (P, 3, H, W), (torch.float32,), acc.device)
    check("grads", grads, (P, "b", 3, H, W), FLOATS, acc.device)
    if scale is not None:
        check("scale", scale, (3,), (torch.float32,), acc.device)
        scale = scale.contiguous()
    grads = dense(grads)
    with torch.cuda.device_of(acc):
        _accumulate_step_kernel[(P, triton.cdiv(3 * H * W, BLOCK))](
            grads,
            acc,
            delta_in,
            acc if scale is None else scale,  # a pointer that is not read still needs a tensor
            3 * H * W,
            H * W,
            alpha,
            eps,
            B=grads.shape[1],
            LAST=is_channels_last("grads", grads),
            ACC_LAST=is_channels_last("acc", acc),
            DELTA_LAST=is_channels_last("delta_in", delta_in),
            SCALED=scale is not None,
            UNROLLED=grads.shape[1] <= UNROLL,
            **LAUNCH,
        )
