"""What the three element-wise kernels share: memory format, block size, sign and clamp.

A picture [3, H, W] is n = 3 H W numbers, in memory either channel by channel (contiguous) or pixel by pixel
(channels_last). A kernel walks these n numbers in memory order, eight a thread: one 16-byte access in half precision,
two in float32. If every tensor of a call has the same format, the same offset serves them all; a tensor in the other
format costs a division per element and 4-byte accesses.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-not-found"

import torch
import triton
import triton.language as tl

BLOCK = 512
"""Elements per program. 112 x 112 x 3 make 74 programs per person: small, so that one person fills half of an H100."""

WARPS = 2
"""BLOCK / (32 WARPS) = 8 elements per thread, the fewest that give 16-byte accesses to bfloat16."""

UNROLL = 16
"""Photos of a batch up to which the loop over them is unrolled, so that their loads overlap."""

PICTURE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

LAUNCH = {"num_warps": WARPS, "enable_fp_fusion": False}
"""Where PyTorch rounds a product before it adds, so must the kernel: no fused multiply-add."""


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
def other_offset(o, HW, LAST: tl.constexpr):
    """Where the number at offset o of a picture lies in the other format; LAST: o is channels_last."""
    return (o % 3) * HW + o // 3 if LAST else (o % HW) * 3 + o // HW


@triton.jit
def per_channel(values_ptr, o, HW, LAST: tl.constexpr):
    """The value of each offset's channel, from [3] float32."""
    # Three uniform loads and two selects: a gather by channel would be one 4-byte load per element.
    channel = o % 3 if LAST else o // HW
    rest = tl.where(channel == 1, tl.load(values_ptr + 1), tl.load(values_ptr + 2))
    return tl.where(channel == 0, tl.load(values_ptr), rest)


@triton.jit
def sum_of_partials(partial_ptr, p, BLOCKS: tl.constexpr, BLOCKS_PADDED: tl.constexpr):
    """Second stage of a sum over a person: every program adds the same numbers in the same order, no atomics."""
    i = tl.arange(0, BLOCKS_PADDED)
    return tl.sum(tl.load(partial_ptr + p * BLOCKS + i, mask=i < BLOCKS, other=0.0), axis=0)


@triton.jit
def scale_free(g, total, n):
    """G / mean|g| as in the reference."""
    # 1e-30 is the reference's TINY; a NaN mean is not below it.
    mean = tl.div_rn(total, n.to(tl.float32))
    return tl.div_rn(g, tl.where(mean < 1e-30, 1e-30, mean))


def is_channels_last(name: str, tensor: torch.Tensor) -> bool:
    """Whether a dense [.., 3, H, W] tensor lies pixel by pixel; False where both formats are the same.

    Raises:
        ValueError: it is in neither format.
    """
    if tensor.is_contiguous():
        return False
    if _is_dense_channels_last(tensor):
        return True
    raise ValueError(
        f"{name} must be contiguous or channels_last, got strides {tuple(tensor.stride())} for shape "
        f"{tuple(tensor.shape)}; make it .contiguous() where it is allocated"
    )


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """An input as it is where a kernel can read it, otherwise a contiguous copy."""
    return tensor if tensor.is_contiguous() or _is_dense_channels_last(tensor) else tensor.contiguous()


def _is_dense_channels_last(tensor: torch.Tensor) -> bool:
    *_, C, H, W = tensor.shape
    strides = [C * H * W, 1, C * W, C]
    for size in reversed(tensor.shape[1:-3]):
        strides.insert(0, strides[0] * size)
    actual = zip(tensor.shape, tensor.stride(), strides, strict=True)
    return all(size == 1 or stride == wanted for size, stride, wanted in actual)


def check_state(**tensors: torch.Tensor) -> None:
    """Masks and accumulated gradients: [P, 3, H, W] float32, all of one shape and on one device."""
    first = next(iter(tensors.values()))
    for name, tensor in tensors.items():
        if tensor.dim() != 4 or tensor.shape[1] != 3 or tensor.shape != first.shape:
            raise ValueError(
                f"{name} must be [P, 3, H, W] and all state of one shape, got {tuple(tensor.shape)}; "
                "allocate it like delta"
            )
        if tensor.dtype != torch.float32:
            raise ValueError(f"{name} must be float32, got {tensor.dtype}; convert it, or use backend 'reference'")
        if tensor.device != first.device:
            raise ValueError(f"{name} must be on {first.device} like the rest, got {tensor.device}; move it there")


def check_pictures(name: str, tensor: torch.Tensor, like: torch.Tensor) -> None:
    """Batches of pictures: [P, n, 3, H, W] in a dtype of `PICTURE_DTYPES`, of the persons and size of `like`."""
    P, C, H, W = like.shape
    if tensor.dim() != 5 or tensor.shape[0] != P or tensor.shape[2:] != like.shape[1:]:
        raise ValueError(f"{name} must be [{P}, b, {C}, {H}, {W}], got {tuple(tensor.shape)}; reshape it")
    if tensor.dtype not in PICTURE_DTYPES:
        raise ValueError(
            f"{name} must be float32, bfloat16 or float16, got {tensor.dtype}; convert it, or use backend 'reference'"
        )
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on {like.device} like the state, got {tensor.device}; move it there")


def check_per_channel(name: str, tensor: torch.Tensor, like: torch.Tensor) -> None:
    """Scale and shift: [3] float32."""
    if tensor.shape != (3,) or tensor.dtype != torch.float32 or tensor.device != like.device:
        raise ValueError(
            f"{name} must be [3] float32 on {like.device}, got {tuple(tensor.shape)} {tensor.dtype} on "
            f"{tensor.device}; convert it"
        )
