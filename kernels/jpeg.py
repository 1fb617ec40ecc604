"""JPEG with 4:2:0 colour of pictures in two launches, and its gradient in one.

    blocks  luma = Y + rounded(Y - 128), colours = C + rounded(C)    a program for 16 x 16 of luma or of both colours
    joined  RGB of luma and of colours at twice the size             a program for a block of pixels
    back    RGB grads -> luma and colours, these blurred -> RGB      a program for a block of pixels

where rounded(x) = D^T (round(q) - q) s D, q = D x D^T / s, D the DCT of four blocks of 8 x 8 at once, s the steps.

Bytes per launch, n = 3 H W, P b pictures: blocks reads and writes P b (8 n, 2 n), joined P b (2 n, 4 n), back P b
(4 n, 4 n), and more often from caches. In PyTorch a picture and its gradient take about 140 launches. Tiles of 16 x 16
are the smallest that matrix products take; the arithmetic is float32, not TF32, since rounding follows.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-not-found"

import torch
import triton
import triton.language as tl
from fastcloak.kernels.arguments import check

LOW, HIGH = tl.constexpr(50.0), tl.constexpr(95.0)
"""Range of the quality, as `fastcloak.ops.jpeg.JPEG_QUALITY`."""
DRAWS = tl.constexpr(13)
BLOCK = 256
LAUNCH = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def _rounded(x, table_ptr, dct_ptr, percent):
    """What rounding the coefficients of four blocks adds to them, [16, 16]."""
    i, j = tl.arange(0, 16)[:, None], tl.arange(0, 16)[None, :]
    dct = tl.load(dct_ptr + i % 8 * 8 + j % 8, mask=i // 8 == j // 8, other=0.0)
    turned = tl.load(dct_ptr + j % 8 * 8 + i % 8, mask=i // 8 == j // 8, other=0.0)
    steps = tl.floor(tl.load(table_ptr + i % 8 * 8 + j % 8) * percent / 100 + 0.5)
    steps = tl.minimum(tl.maximum(steps, 1.0), 255.0)
    q = tl.dot(dct, tl.dot(x, turned, input_precision="ieee"), input_precision="ieee") / steps
    # Adding 1.5 * 2^23 leaves no bits behind the point: the nearest whole number, of two the even one.
    q = ((q + 12582912.0) - 12582912.0 - q) * steps
    return tl.dot(turned, tl.dot(q, dct, input_precision="ieee"), input_precision="ieee")


@triton.jit
def _coded(pictures_ptr, colors_ptr, o, inside, HW, row: tl.constexpr):
    """Luma (0) or a colour (1, 2) of pixels o."""
    x = 0.0
    for channel in tl.static_range(3):
        value = tl.load(pictures_ptr + channel * HW + o, mask=inside, other=0.0)
        x += tl.load(colors_ptr + row * 3 + channel) * (255 * value)
    return x


@triton.jit
def _mean(pictures_ptr, colors_ptr, o, inside, HW, W, row: tl.constexpr):
    """A colour of the squares of two by two pixels that begin at o."""
    upper = _coded(pictures_ptr, colors_ptr, o, inside, HW, row)
    upper += _coded(pictures_ptr, colors_ptr, o + 1, inside, HW, row)
    lower = _coded(pictures_ptr, colors_ptr, o + W, inside, HW, row)
    lower += _coded(pictures_ptr, colors_ptr, o + W + 1, inside, HW, row)
    return (upper + lower) / 4


@triton.jit
def _turned(colors_ptr, x, y, z, along: tl.constexpr):
    """A row (along = 1) of a matrix of colours, or a column (3), times three numbers."""
    return tl.load(colors_ptr) * x + tl.load(colors_ptr + along) * y + tl.load(colors_ptr + 2 * along) * z


@triton.jit
def _jpeg_blocks_kernel(
    pictures_ptr,  # [n, 3, H, W] float32
    draws_ptr,  # [n, DRAWS] float32
    steps_ptr,  # [2, 8, 8] float32
    dct_ptr,  # [8, 8] float32
    colors_ptr,  # [2, 3, 3] float32
    luma_ptr,  # [n, H, W] float32, out
    halved_ptr,  # [n, 2, H / 2, W / 2] float32, out
    H: tl.constexpr,
    W: tl.constexpr,
    LUMA: tl.constexpr,  # programs of luma
    LUMA_COLUMNS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    pictures_ptr += row * 3 * H * W
    quality = tl.load(draws_ptr + row * DRAWS + 6) * (HIGH - LOW) + LOW
    percent = tl.where(quality < 50, 5000 / quality, 200 - 2 * quality)
    i, j = tl.arange(0, 16)[:, None], tl.arange(0, 16)[None, :]
    if tile < LUMA:
        y, x = tile // LUMA_COLUMNS * 16 + i, tile % LUMA_COLUMNS * 16 + j
        luma = _coded(pictures_ptr, colors_ptr, y * W + x, (y < H) & (x < W), H * W, 0)
        luma += _rounded(luma - 128, steps_ptr, dct_ptr, percent)
        tl.store(luma_ptr + row * H * W + y * W + x, luma, mask=(y < H) & (x < W))
    else:
        color_tile = tile - LUMA
        y, x = color_tile // COLUMNS * 16 + i, color_tile % COLUMNS * 16 + j
        inside = (y < H // 2) & (x < W // 2)
        halved = halved_ptr + row * 2 * (H // 2) * (W // 2) + y * (W // 2) + x
        o = 2 * y * W + 2 * x
        blue = _mean(pictures_ptr, colors_ptr, o, inside, H * W, W, 1)
        red = _mean(pictures_ptr, colors_ptr, o, inside, H * W, W, 2)
        blue += _rounded(blue, steps_ptr + 64, dct_ptr, percent)
        red += _rounded(red, steps_ptr + 64, dct_ptr, percent)
        tl.store(halved, blue, mask=inside)
        tl.store(halved + (H // 2) * (W // 2), red, mask=inside)


@triton.jit
def _half(i, size: tl.constexpr):
    """Where row i of a picture lies in one of half its size."""
    at = (i.to(tl.float32) - 0.5) / 2
    return tl.minimum(tl.maximum(at, 0.0), size - 1.0)


@triton.jit
def _store(out_ptr, v0, v1, v2, inside, HW):
    tl.store(out_ptr, v0, mask=inside)
    tl.store(out_ptr + HW, v1, mask=inside)
    tl.store(out_ptr + 2 * HW, v2, mask=inside)


@triton.jit
def _jpeg_joined_kernel(
    luma_ptr,  # [n, H, W] float32
    halved_ptr,  # [n, 2, H / 2, W / 2] float32
    colors_ptr,  # [2, 3, 3] float32
    out_ptr,  # [n, 3, H, W] float32, out
    H: tl.constexpr,
    W: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = o < H * W
    y, x = _half(o // W, H // 2), _half(o % W, W // 2)
    top, left = tl.floor(y), tl.floor(x)
    y, x = y - top, x - left
    o00 = top.to(tl.int32) * (W // 2) + left.to(tl.int32)
    right = tl.where(left < W // 2 - 1, 1, 0)
    down = tl.where(top < H // 2 - 1, W // 2, 0)
    halved_ptr += row * 2 * (H // 2) * (W // 2) + o00
    luma = tl.load(luma_ptr + row * H * W + o, mask=inside, other=0.0)
    v00, v01 = tl.load(halved_ptr, mask=inside, other=0.0), tl.load(halved_ptr + right, mask=inside, other=0.0)
    v10 = tl.load(halved_ptr + down, mask=inside, other=0.0)
    v11 = tl.load(halved_ptr + down + right, mask=inside, other=0.0)
    blue = (1 - y) * ((1 - x) * v00 + x * v01) + y * ((1 - x) * v10 + x * v11)
    halved_ptr += (H // 2) * (W // 2)
    v00, v01 = tl.load(halved_ptr, mask=inside, other=0.0), tl.load(halved_ptr + right, mask=inside, other=0.0)
    v10 = tl.load(halved_ptr + down, mask=inside, other=0.0)
    v11 = tl.load(halved_ptr + down + right, mask=inside, other=0.0)
    red = (1 - y) * ((1 - x) * v00 + x * v01) + y * ((1 - x) * v10 + x * v11)
    v0 = _turned(colors_ptr + 9, luma, blue, red, 1) / 255
    v1 = _turned(colors_ptr + 12, luma, blue, red, 1) / 255
    v2 = _turned(colors_ptr + 15, luma, blue, red, 1) / 255
    _store(out_ptr + row * 3 * H * W + o, v0, v1, v2, inside, H * W)


@triton.jit
def _jpeg_gradient_kernel(
    grads_ptr,  # [n, 3, H, W] float32
    colors_ptr,  # [2, 3, 3] float32
    out_ptr,  # [n, 3, H, W] float32, out
    H: tl.constexpr,
    W: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = o < H * W
    i, j = o // W // 2, o % W // 2  # its colour, which a square of four by four pixels takes
    grads_ptr += row * 3 * H * W
    decode = colors_ptr + 9
    luma, blue, red = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for channel in tl.static_range(3):
        own = tl.load(grads_ptr + channel * H * W + o, mask=inside, other=0.0)
        luma += tl.load(decode + channel * 3) * own
        spread = tl.zeros([BLOCK], tl.float32)
        for dy in tl.static_range(-1, 3):
            y = 2 * i + dy
            wy = 1 - tl.abs(_half(y, H // 2) - i)
            along = tl.zeros([BLOCK], tl.float32)
            for dx in tl.static_range(-1, 3):
                x = 2 * j + dx
                there = inside & (y >= 0) & (y < H) & (x >= 0) & (x < W)
                value = tl.load(grads_ptr + channel * H * W + y * W + x, mask=there, other=0.0)
                along += (1 - tl.abs(_half(x, W // 2) - j)) * value
            spread += wy * along
        blue += tl.load(decode + channel * 3 + 1) * spread
        red += tl.load(decode + channel * 3 + 2) * spread
    blue, red = blue / 4, red / 4
    v0 = _turned(colors_ptr, luma, blue, red, 3)
    v1 = _turned(colors_ptr + 1, luma, blue, red, 3)
    v2 = _turned(colors_ptr + 2, luma, blue, red, 3)
    _store(out_ptr + row * 3 * H * W + o, v0, v1, v2, inside, H * W)


@torch.library.custom_op("fastcloak::jpeg_batch_", mutates_args=("out",))
def jpeg_batch_(
    pictures: torch.Tensor,
    draws: torch.Tensor,
    out: torch.Tensor,
    steps: torch.Tensor,
    dct: torch.Tensor,
    colors: torch.Tensor,
) -> None:
    """`fastcloak.ops.reference.jpeg_batch_` in two launches, of whole blocks.

    Args:
        pictures, draws, steps, dct, colors: as in the reference, copied where they are not contiguous.
        out: contiguous, overwritten.

    Raises:
        ValueError: a shape, dtype or device that the kernel cannot take, or sides that are not multiples of 16.
    """
    P, b, H, W = _checked(pictures, out, colors)
    check("draws", draws, (P, b, DRAWS.value), (torch.float32,), out.device)
    check("steps", steps, (2, 8, 8), (torch.float32,), out.device)
    check("dct", dct, (8, 8), (torch.float32,), out.device)
    luma = torch.empty(P * b, H, W, dtype=torch.float32, device=out.device)
    halved = torch.empty(P * b, 2, H // 2, W // 2, dtype=torch.float32, device=out.device)
    columns, halved_columns = W // 16, triton.cdiv(W, 32)
    tiles = H // 16 * columns
    colors = colors.contiguous()
    with torch.cuda.device_of(out):
        _jpeg_blocks_kernel[(P * b, tiles + triton.cdiv(H, 32) * halved_columns)](
            pictures.contiguous(),
            draws.contiguous(),
            steps.contiguous(),
            dct.contiguous(),
            colors,
            luma,
            halved,
            H=H,
            W=W,
            LUMA=tiles,
            LUMA_COLUMNS=columns,
            COLUMNS=halved_columns,
            **LAUNCH,
        )
        grid = (P * b, triton.cdiv(H * W, BLOCK))
        _jpeg_joined_kernel[grid](luma, halved, colors, out, H=H, W=W, BLOCK=BLOCK, **LAUNCH)


@torch.library.custom_op("fastcloak::jpeg_gradient_", mutates_args=("out",))
def jpeg_gradient_(grads: torch.Tensor, out: torch.Tensor, colors: torch.Tensor) -> None:
    """`fastcloak.ops.reference.jpeg_gradient_` in one launch.

    Args:
        grads, colors: as in the reference, copied where they are not contiguous.
        out: contiguous, overwritten.

    Raises:
        ValueError: a shape, dtype or device that the kernel cannot take, or sides that are not multiples of 16.
    """
    P, b, H, W = _checked(grads, out, colors)
    with torch.cuda.device_of(out):
        _jpeg_gradient_kernel[(P * b, triton.cdiv(H * W, BLOCK))](
            grads.contiguous(), colors.contiguous(), out, H=H, W=W, BLOCK=BLOCK, **LAUNCH
        )


def _checked(pictures, out, colors):
    check("out", out, ("P", "b", 3, "H", "W"), (torch.float32,), out.device)
    check("pictures", pictures, tuple(out.shape), (torch.float32,), out.device)
    check("colors", colors, (2, 3, 3), (torch.float32,), out.device)
    P, b, _, H, W = out.shape
    if H % 16 or W % 16 or not out.is_contiguous():
        raise ValueError(f"out must be contiguous with sides of whole blocks of 16, got {H} x {W}, {out.stride()}")
    return P, b, H, W
