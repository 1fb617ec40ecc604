"""The batch a network takes: out = clip(faces[index] + bound * delta_in, 0, 1) * scale + shift, in out's dtype.

Bytes per launch, n = 3 H W, e bytes per element of out: reads P (4 b n + 4 n + 8 b), writes P b n e. Unfused PyTorch
(arange, gather, add, clamp_, mul_, add_, copy_) reads P (24 b n + 4 n) and writes P b n (20 + e) in seven launches.
A bound adds P 4 n read here; in PyTorch P 8 n read, P 4 n written and an eighth launch.

The limit is memory: 1.66 MB read and 0.75 MB written at P = 1, b = 10, 112 x 112, bfloat16. A program takes one block
of the mask, times its bound, and adds it to that block of every photo, so that both are read once. It takes the photos
in groups, each one tile: all loads of a group stand before its first store, behind which no compiler may move them up.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-not-found"

import torch
import triton
import triton.language as tl
from fastcloak.kernels.arguments import FLOATS, check, dense, is_channels_last
from fastcloak.kernels.layout import BLOCK, LAUNCH, clip, offset, per_channel

GROUP = 8
"""Photos of a group at most: 64 numbers per thread, so that 8 programs share an SM."""


@triton.jit
def _cloak_batch_kernel(
    faces_ptr,  # [P, N, 3, H, W] float32
    delta_in_ptr,  # [P, 3, H, W] float32
    bound_ptr,  # [P, 3, H, W] float32, read if BOUNDED
    index_ptr,  # [P, B] int64, with strides
    out_ptr,  # [P, B, 3, H, W], out
    scale_ptr,  # [3] float32, read if SCALED
    shift_ptr,  # [3] float32, read if SCALED
    n,  # 3 H W
    HW,
    N,
    index_stride_p,
    index_stride_b,
    B: tl.constexpr,
    LAST: tl.constexpr,  # out is channels_last, and so is the walk
    FACES_LAST: tl.constexpr,
    DELTA_LAST: tl.constexpr,
    BOUND_LAST: tl.constexpr,
    BOUNDED: tl.constexpr,
    SCALED: tl.constexpr,
    GROUP: tl.constexpr,  # photos whose loads are in flight at once
    BLOCK: tl.constexpr,
):
    p = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = o < n
    faces_o = offset(o, HW, LAST, FACES_LAST)
    delta = tl.load(delta_in_ptr + p * n + offset(o, HW, LAST, DELTA_LAST), mask=inside, other=0.0)
    if BOUNDED:
        delta *= tl.load(bound_ptr + p * n + offset(o, HW, LAST, BOUND_LAST), mask=inside, other=0.0)
    if SCALED:
        scale = per_channel(scale_ptr, o, HW, LAST)
        shift = per_channel(shift_ptr, o, HW, LAST)
    faces_ptr += p * N * n
    out_ptr += p * B * n
    index_ptr += p * index_stride_p
    for first in range(0, B, GROUP):
        i = first + tl.arange(0, GROUP)
        photo = tl.load(index_ptr + i * index_stride_b, mask=i < B, other=-1)
        # A photo that does not exist is NaN and never foreign memory.
        exists = (photo >= 0) & (photo < N)
        mask = exists[:, None] & inside[None, :]
        face = tl.load(faces_ptr + photo[:, None] * n + faces_o[None, :], mask=mask, other=float("nan"))
        picture = clip(face + delta[None, :], 0.0, 1.0)
        if SCALED:
            picture = picture * scale[None, :] + shift[None, :]
        to = out_ptr + i.to(tl.int64)[:, None] * n + o[None, :]
        tl.store(to, picture.to(out_ptr.dtype.element_ty), mask=(i < B)[:, None] & inside[None, :])


@torch.library.custom_op("fastcloak::cloak_batch_", mutates_args=("out",))
def cloak_batch_(
    faces: torch.Tensor,
    delta_in: torch.Tensor,
    index: torch.Tensor,
    out: torch.Tensor,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    bound: torch.Tensor | None = None,
) -> None:
    """`fastcloak.ops.reference.cloak_batch_` in one launch. An index outside [0, N) makes its picture NaN.

    Args:
        faces: [P, N, 3, H, W] float32, contiguous or channels_last (otherwise copied).
        delta_in: [P, 3, H, W] float32, the same.
        index: [P, b] int64, any strides.
        out: [P, b, 3, H, W] float32, bfloat16 or float16, contiguous or channels_last, overwritten.
        scale, shift: as in the reference.
        bound: [P, 3, H, W] float32, contiguous or channels_last (otherwise copied), or None.

    Raises:
        ValueError: a shape, dtype, device or memory format that the kernel cannot take.
    """
    check("out", out, ("P", "b", 3, "H", "W"), FLOATS, out.device)
    P, b, _, H, W = out.shape
    check("faces", faces, (P, "N", 3, H, W), (torch.float32,), out.device)
    check("delta_in", delta_in, (P, 3, H, W), (torch.float32,), out.device)
    check("index", index, (P, b), (torch.int64,), out.device)
    faces, delta_in = dense(faces), dense(delta_in)
    scaled = scale is not None and shift is not None
    pair = [delta_in, delta_in]  # pointers that are not read still need a tensor
    if scale is not None and shift is not None:
        check("scale", scale, (3,), (torch.float32,), out.device)
        check("shift", shift, (3,), (torch.float32,), out.device)
        pair = [scale.contiguous(), shift.contiguous()]
    if bound is not None:
        check("bound", bound, (P, 3, H, W), (torch.float32,), out.device)
    limit = delta_in if bound is None else dense(bound)
    with torch.cuda.device_of(out):
        _cloak_batch_kernel[(P, triton.cdiv(3 * H * W, BLOCK))](
            faces,
            delta_in,
            limit,
            index,
            out,
            *pair,
            3 * H * W,
            H * W,
            faces.shape[1],
            *index.stride(),
            B=b,
            LAST=is_channels_last("out", out),
            FACES_LAST=is_channels_last("faces", faces),
            DELTA_LAST=is_channels_last("delta_in", delta_in),
            BOUND_LAST=is_channels_last("bound", limit),
            BOUNDED=bound is not None,
            SCALED=scaled,
            GROUP=min(GROUP, triton.next_power_of_2(b)),
            **LAUNCH,
        )
