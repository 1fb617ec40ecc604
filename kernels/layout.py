"""What the three element-wise kernels share: memory format, block size, sign and clamp.

A picture [3, H, W] is n = 3 H W numbers, in memory either channel by channel (contiguous) or pixel by pixel
(channels_last). A kernel walks these n numbers in memory order, eight a thread: one 16-byte access in half precision,
two in float32. If every tensor of a call has the same format, the same offset serves them all; a tensor in the other
format costs a division per element and 4-byte accesses.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-not-found"

import triton
import triton.language as tl

BLOCK = 512
"""Elements per program. 112 x 112 x 3 make 74 programs per person: small, so that one person fills half of an H100."""

# 8 elements per thread, the fewest that give 16-byte accesses to bfloat16. Where PyTorch rounds a product before it
# adds, so must the kernel: no fused multiply-add.
LAUNCH = {"BLOCK": BLOCK, "num_warps": BLOCK // (8 * 32), "enable_fp_fusion": False}


@triton.jit
def sign_of(g):
    """Sign, but NaN for NaN and Inf as in the reference: torch.sign would hide a NaN."""
    sign = tl.where(g > 0, 1.0, tl.where(g < 0, -1.0, 0.0))
    return tl.where(tl.abs(g) < float("inf"), sign, float("nan"))


@triton.jit
def clip(x, low, high):
    """Clamp that lets NaN through; whether tl.minimum and tl.maximum do differs between Triton's versions."""
    x = tl.where(x < low, low, x)
    return tl.where(x > high, high, x)


@triton.jit
def offset(o, HW, LAST: tl.constexpr, TO_LAST: tl.constexpr):
    """Where number o of a picture (channels_last if LAST) lies in another one (channels_last if TO_LAST)."""
    if LAST == TO_LAST:
        return o
    elif LAST:
        return (o % 3) * HW + o // 3
    else:
        return (o % HW) * 3 + o // HW


@triton.jit
def per_channel(values_ptr, o, HW, LAST: tl.constexpr):
    """The value of each offset's channel, from [3] float32."""
    # Three uniform loads and two selects: a gather by channel would be one 4-byte load per element.
    channel = o % 3 if LAST else o // HW
    rest = tl.where(channel == 1, tl.load(values_ptr + 1), tl.load(values_ptr + 2))
    return tl.where(channel == 0, tl.load(values_ptr), rest)
