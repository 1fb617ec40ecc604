"""Pictures resampled into a photo and back, R x C^T with R and C banded and symmetric, in one launch.

    R[i, j] = pitch / width^2 sum_k tent(i - c_k) tent(j - c_k),  c_k = (k + phase) pitch - 1/2,  width = max(pitch, 1)

A program takes a block of pixels, finds its rows of R and C from at most `TAPS` pixels of the photo, and sums over the
square of `2 BAND + 1` pixels a side around each. R = R^T: the gradient is the same operation.

Bytes per launch, n = 3 H W, P b pictures: reads P b 4 n (8 n with faces and masks) and writes P b 4 n, more often from
caches. In PyTorch both matrices take 30 launches, and the products four.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-not-found"

import math

import torch
import triton
import triton.language as tl
from fastcloak.kernels.arguments import check
from fastcloak.kernels.layout import clip

DRAWS = tl.constexpr(13)
LOW, HIGH = tl.constexpr(56.0), tl.constexpr(224.0)
"""Sides of faces in photos, in pixels, as `fastcloak.ops.augment.FACE_PIXELS`."""
OCTAVES = tl.constexpr(math.log(224.0 / 56.0))
PIXELS = 128
LAUNCH = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def _pitch(draws_ptr, side: tl.constexpr):
    return tl.exp(-tl.load(draws_ptr) * OCTAVES) * (side / LOW)


@triton.jit
def _entry(i, j, pitch, phase, TAPS: tl.constexpr):
    """R[i, j] of any i and j: the pixels of the photo around i that reach j."""
    width = tl.maximum(pitch, 1.0)
    first = tl.ceil((i - width + 0.5) / pitch - phase)
    total = tl.zeros_like(i)
    for tap in tl.static_range(TAPS):
        k = first + tap
        centre = (k + phase) * pitch - 0.5
        both = tl.maximum(1 - tl.abs(i - centre) / width, 0.0) * tl.maximum(1 - tl.abs(j - centre) / width, 0.0)
        total += tl.where((k >= -2) & (k < HIGH + 2), both, 0.0)
    return total * (pitch / (width * width))


@triton.jit
def _photo_kernel(
    pictures_ptr,  # [P, N, 3, H, W] float32: faces if CLOAKED, else what is resampled, N = B
    mask_ptr,  # [P, 3, H, W] float32, [P, B, 3, H, W] if OWN, read if CLOAKED
    bound_ptr,  # [P, 3, H, W] float32, read if BOUNDED
    index_ptr,  # [P, B] int64, with strides, read if CLOAKED
    draws_ptr,  # [P, B, DRAWS] float32
    out_ptr,  # [P, B, 3, H, W] float32, out
    N,
    index_stride_p,
    index_stride_b,
    B: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    CLOAKED: tl.constexpr,
    OWN: tl.constexpr,
    BOUNDED: tl.constexpr,
    BAND: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    p, k = row // B, row % B
    o = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mine = o < H * W
    n: tl.constexpr = 3 * H * W
    draws_ptr += row * DRAWS
    photo = k
    if CLOAKED:
        photo = tl.load(index_ptr + p * index_stride_p + k * index_stride_b)
    exists = (photo >= 0) & (photo < N)
    pictures_ptr += (p * N + photo) * n
    mask_ptr += (row if OWN else p) * n
    bound_ptr += p * n
    yi, xi = o // W, o % W
    y, x = yi.to(tl.float32), xi.to(tl.float32)
    pitch_y, pitch_x = _pitch(draws_ptr, H), _pitch(draws_ptr, W)
    phase_y, phase_x = tl.load(draws_ptr + 1), tl.load(draws_ptr + 2)
    total0, total1, total2 = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for dy in range(-BAND, BAND + 1):
        at_y = _entry(y, y + dy, pitch_y, phase_y, TAPS)
        for dx in range(-BAND, BAND + 1):
            weight = at_y * _entry(x, x + dx, pitch_x, phase_x, TAPS)
            inside = mine & (yi + dy >= 0) & (yi + dy < H) & (xi + dx >= 0) & (xi + dx < W) & (weight > 0)
            at = tl.where(inside, o + dy * W + dx, 0)
            total0 += weight * _change(pictures_ptr, mask_ptr, bound_ptr, at, inside, exists, CLOAKED, OWN, BOUNDED)
            total1 += weight * _change(
                pictures_ptr, mask_ptr, bound_ptr, at + H * W, inside, exists, CLOAKED, OWN, BOUNDED
            )
            total2 += weight * _change(
                pictures_ptr, mask_ptr, bound_ptr, at + 2 * H * W, inside, exists, CLOAKED, OWN, BOUNDED
            )
    out_ptr += row * n + o
    tl.store(out_ptr, total0, mask=mine)
    tl.store(out_ptr + H * W, total1, mask=mine)
    tl.store(out_ptr + 2 * H * W, total2, mask=mine)


@triton.jit
def _change(
    pictures_ptr, mask_ptr, bound_ptr, at, inside, exists, CLOAKED: tl.constexpr, OWN: tl.constexpr,
    BOUNDED: tl.constexpr,
):  # fmt: skip
    """What the mask changes of the face, or the number itself."""
    if CLOAKED:
        mask = tl.load(mask_ptr + at, mask=inside, other=0.0)
        # A photo that does not exist is NaN and never foreign memory.
        face = tl.load(pictures_ptr + at, mask=inside & exists, other=0.0)
        face = tl.where(exists, face, float("nan"))
        if BOUNDED:
            mask *= tl.load(bound_ptr + at, mask=inside, other=0.0)
        change = face + mask
        if not OWN:
            change = clip(change, 0.0, 1.0)
        return change - face
    else:
        return tl.load(pictures_ptr + at, mask=inside, other=0.0)


@torch.library.custom_op("fastcloak::photo_batch_", mutates_args=("out",))
def photo_batch_(
    faces: torch.Tensor,
    mask: torch.Tensor,
    index: torch.Tensor,
    draws: torch.Tensor,
    out: torch.Tensor,
    bound: torch.Tensor | None = None,
) -> None:
    """`fastcloak.ops.reference.photo_batch_` in one launch. An index outside [0, N) makes its picture NaN.

    Args:
        faces, mask, draws, bound: as in the reference, copied where they are not contiguous.
        index: any strides.
        out: contiguous, overwritten.

    Raises:
        ValueError: a shape, dtype, device or memory format that the kernel cannot take.
    """
    P, b, _, H, W = _checked(out, draws)
    check("faces", faces, (P, "N", 3, H, W), (torch.float32,), out.device)
    check("mask", mask, (P, b, 3, H, W) if mask.dim() == 5 else (P, 3, H, W), (torch.float32,), out.device)
    check("index", index, (P, b), (torch.int64,), out.device)
    if bound is not None:
        check("bound", bound, (P, 3, H, W), (torch.float32,), out.device)
    _launch(faces, mask, bound, index, draws, out)


@torch.library.custom_op("fastcloak::photo_gradient_", mutates_args=("out",))
def photo_gradient_(grads: torch.Tensor, draws: torch.Tensor, out: torch.Tensor) -> None:
    """`fastcloak.ops.reference.photo_gradient_` in one launch.

    Args:
        grads, draws: as in the reference, copied where they are not contiguous.
        out: contiguous, overwritten.

    Raises:
        ValueError: a shape, dtype, device or memory format that the kernel cannot take.
    """
    _checked(out, draws)
    check("grads", grads, tuple(out.shape), (torch.float32,), out.device)
    _launch(grads, None, None, None, draws, out)


def _checked(out, draws):
    check("out", out, ("P", "b", 3, "H", "W"), (torch.float32,), out.device)
    check("draws", draws, (*out.shape[:2], DRAWS.value), (torch.float32,), out.device)
    if not out.is_contiguous():
        raise ValueError(f"out must be contiguous, got strides {out.stride()}; make it .contiguous()")
    return out.shape


def _launch(pictures, mask, bound, index, draws, out):
    P, b, _, H, W = out.shape
    own, pictures = mask is not None and mask.dim() == 5, pictures.contiguous()
    # The photo's pixels are widest at the smallest face, and closest at the largest one.
    widest, closest = max(1.0, max(H, W) / LOW.value), min(H, W) / HIGH.value
    with torch.cuda.device_of(out):
        _photo_kernel[(P * b, triton.cdiv(H * W, PIXELS))](
            pictures,
            pictures if mask is None else mask.contiguous(),
            pictures if bound is None else bound.contiguous(),
            draws if index is None else index,
            draws.contiguous(),
            out,
            pictures.shape[1],
            *((0, 0) if index is None else index.stride()),
            B=b,
            H=H,
            W=W,
            CLOAKED=mask is not None,
            OWN=own,
            BOUNDED=bound is not None and not own,
            BAND=math.ceil(2 * widest) - 1,
            TAPS=math.floor(2 * max(1.0, 1 / closest)) + 1,
            BLOCK=PIXELS,
            **LAUNCH,
        )
