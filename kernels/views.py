"""Random views in two launches: what a network takes of cloaked faces, and its gradient back to the mask.

    x = clip(faces[index] + bound * mask, 0, 1)              view_batch_, a program for a block of pixels of a view:
    x += MIX * part * (texture - face)                       gathers the four pixels around the place of each
    x = ((x - 1/2) * contrast + 1/2 + brightness)
    out = x(A pixel + t) * scale + shift

    g = scale * contrast * grads(pixel') * weight, summed    view_step_, a program for a block of pixels of the mask:
    acc += mean_b g                                          gathers the pixels' of the view that were mixed from it,
    delta_in = clip(delta_in + alpha sign(mean_b g), +-eps)  without atomics, so that sums have one order

The pixels' lie in the parallelogram A^-1 (pixel +- 1 - t): nine candidates where A turns a little, more where a place
shrinks. On the border lies all that was asked beyond it: few pixels with many candidates, in programs of their own.

Bytes per launch, n = 3 H W numbers of a picture, v of a view, e bytes per number of out and grads: view_batch_ reads
P (4 b n + 4 n) and writes P b v e, view_step_ reads P (b v e + 8 n) and writes P 8 n, each read up to nine times, from
caches. Unfused PyTorch takes about 40 launches, which pass through memory 20 times. The limit is latency: at P = 1 the
two launches move 0.5 MB.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,import-not-found"

import math

import torch
import triton
import triton.language as tl
from fastcloak.kernels.arguments import FLOATS, check, dense, is_channels_last
from fastcloak.kernels.layout import clip, per_channel, sign_of

DRAWS = tl.constexpr(13)
MIX, CONTRAST, BRIGHTNESS = tl.constexpr(0.5), tl.constexpr(0.2), tl.constexpr(0.1)
SHIFT, SCALE, ROTATION = tl.constexpr(4.0), tl.constexpr(0.06), tl.constexpr(math.radians(5.0))
TEXTURES = tl.constexpr(64)
"""As in `fastcloak.ops.augment`; there in degrees."""
TINY = tl.constexpr(1e-30)

PIXELS = 128
"""Pixels per program: 98 programs per face."""
EDGE, CANDIDATES = 4, 64
"""Pixels of the border per program, and of how many candidates each takes the gradient at a time."""
SIZES_BLOCK = 1024
# Where PyTorch rounds a product before it adds, so must the kernel.
LAUNCH = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def _at(o, channel: tl.constexpr, HW, LAST: tl.constexpr):
    """Where a channel of pixel o lies in a picture [3, H, W], channels_last if LAST."""
    if LAST:
        return o * 3 + channel
    else:
        return o + channel * HW


@triton.jit
def _drawn(draws_ptr, i: tl.constexpr):
    return 2 * tl.load(draws_ptr + i) - 1


@triton.jit
def _move(draws_ptr, place_ptr, GEOMETRY: tl.constexpr, FLIP: tl.constexpr, PLACED: tl.constexpr, H, W, h, w):
    """A and t: pixel (i, j) of the view lies at pixel (y, x) of the picture.

    x = a (j - (w - 1) / 2) + b (i - (h - 1) / 2) + tx,  y = c (j - (w - 1) / 2) + d (i - (h - 1) / 2) + ty
    """
    a, b, c, d, tx, ty = 1.0, 0.0, 0.0, 1.0, 0.0, 0.0
    if GEOMETRY:
        angle = _drawn(draws_ptr, 9) * ROTATION
        size = tl.exp(_drawn(draws_ptr, 10) * SCALE)
        # Series: of angles below 0.1 they are exact to float32, and need no tables of a library.
        square = angle * angle
        a = size * (1 - square / 2 * (1 - square / 12 * (1 - square / 30)))
        c = size * angle * (1 - square / 6 * (1 - square / 20))
        b, d = -c, a
        tx = _drawn(draws_ptr, 7) * (2 * SHIFT / w)
        ty = _drawn(draws_ptr, 8) * (2 * SHIFT / w)
    if FLIP:
        mirror = tl.where(tl.load(draws_ptr + 11) < 0.5, -1.0, 1.0)
        a, b = mirror * a, mirror * b
    if PLACED:
        p0, p1, p2 = tl.load(place_ptr), tl.load(place_ptr + 1), tl.load(place_ptr + 2)
        p3, p4, p5 = tl.load(place_ptr + 3), tl.load(place_ptr + 4), tl.load(place_ptr + 5)
        a, c = p0 * a + p1 * c, p3 * a + p4 * c
        b, d = p0 * b + p1 * d, p3 * b + p4 * d
        tx, ty = p0 * tx + p1 * ty + p2, p3 * tx + p4 * ty + p5
    # From coordinates in which a side is 2 to pixels.
    a, b, tx = a * (W / w), b * (W / h), tx * (W / 2) + (W - 1) / 2
    c, d, ty = c * (H / w), d * (H / h), ty * (H / 2) + (H - 1) / 2
    return a, b, c, d, tx, ty


@triton.jit
def _contrast(draws_ptr, COLOR: tl.constexpr):
    if COLOR:
        return 1 + _drawn(draws_ptr, 3) * CONTRAST
    else:
        return 1.0


@triton.jit
def _cloaked(
    face,
    mask,
    bound,
    texture,
    part,
    at,
    inside,
    exists,
    MASKED: tl.constexpr,
    OWN: tl.constexpr,
    BOUNDED: tl.constexpr,
    MIXED: tl.constexpr,
):
    # A photo that does not exist is NaN and never foreign memory.
    x = tl.load(face + at, mask=inside & exists, other=float("nan"))
    fade = 0.0
    if MIXED:
        fade = part * MIX * (tl.load(texture + at, mask=inside, other=0.0) - x)
    if MASKED:
        m = tl.load(mask + at, mask=inside, other=0.0)
        if BOUNDED:
            m *= tl.load(bound + at, mask=inside, other=0.0)
        x += m
        if not OWN:
            x = clip(x, 0.0, 1.0)
    if MIXED:
        x += fade
    return x


@triton.jit
def _seen(
    face, mask, bound, texture, part, o00, o01, o10, o11, x, y, inside, exists, MASKED: tl.constexpr,
    OWN: tl.constexpr, BOUNDED: tl.constexpr, MIXED: tl.constexpr, MOVED: tl.constexpr,
):  # fmt: skip
    """One channel, linear between four pixels."""
    v = _cloaked(face, mask, bound, texture, part, o00, inside, exists, MASKED, OWN, BOUNDED, MIXED)
    if MOVED:
        v01 = _cloaked(face, mask, bound, texture, part, o01, inside, exists, MASKED, OWN, BOUNDED, MIXED)
        v10 = _cloaked(face, mask, bound, texture, part, o10, inside, exists, MASKED, OWN, BOUNDED, MIXED)
        v11 = _cloaked(face, mask, bound, texture, part, o11, inside, exists, MASKED, OWN, BOUNDED, MIXED)
        v = (1 - y) * ((1 - x) * v + x * v01) + y * ((1 - x) * v10 + x * v11)
    return v


@triton.jit
def _view_batch_kernel(
    faces_ptr,  # [P, N, 3, H, W] float32
    mask_ptr,  # [P, 3, H, W] float32, [P, B, 3, H, W] if OWN, read if MASKED
    bound_ptr,  # [P, 3, H, W] float32, read if BOUNDED
    index_ptr,  # [P, B] int64, with strides, read if INDEXED
    draws_ptr,  # [P, B, DRAWS] float32
    textures_ptr,  # [TEXTURES, 3, H, W] float32, read if MIXED
    place_ptr,  # [P, 2, 3] float32, read if PLACED
    scale_ptr,  # [3] float32, read if SCALED
    shift_ptr,  # [3] float32, read if SCALED
    out_ptr,  # [P, B, 3, h, w], out
    N,
    index_stride_p,
    index_stride_b,
    B: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    h: tl.constexpr,
    w: tl.constexpr,
    LAST: tl.constexpr,  # out is channels_last
    MASKED: tl.constexpr,
    OWN: tl.constexpr,
    BOUNDED: tl.constexpr,
    INDEXED: tl.constexpr,
    MIXED: tl.constexpr,
    COLOR: tl.constexpr,
    GEOMETRY: tl.constexpr,
    FLIP: tl.constexpr,
    PLACED: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    p, k = row // B, row % B
    o = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = o < h * w
    n: tl.constexpr = 3 * H * W
    photo = k
    if INDEXED:
        photo = tl.load(index_ptr + p * index_stride_p + k * index_stride_b)
    exists = (photo >= 0) & (photo < N)
    draws_ptr += row * DRAWS
    faces_ptr += (p * N + photo) * n
    mask_ptr += (row if OWN else p) * n
    bound_ptr += p * n
    part = 0.0
    if MIXED:
        position = tl.load(draws_ptr + 12) * TEXTURES
        which = tl.minimum(tl.floor(position), TEXTURES - 1.0)  # the number may round up to 1
        part = position - which
        textures_ptr += which.to(tl.int64) * n
    if GEOMETRY or FLIP or PLACED:
        a, b, c, d, tx, ty = _move(draws_ptr, place_ptr + p * 6, GEOMETRY, FLIP, PLACED, H, W, h, w)
        i, j = (o // w).to(tl.float32) - (h - 1) / 2, (o % w).to(tl.float32) - (w - 1) / 2
        x, y = clip(a * j + b * i + tx, 0.0, W - 1.0), clip(c * j + d * i + ty, 0.0, H - 1.0)
        left, top = tl.floor(x), tl.floor(y)
        x, y = x - left, y - top
        o00 = top.to(tl.int32) * W + left.to(tl.int32)
        o01 = o00 + tl.where(left < W - 1, 1, 0)
        down = tl.where(top < H - 1, W, 0)
        o10, o11 = o00 + down, o01 + down
    moved: tl.constexpr = GEOMETRY or FLIP or PLACED
    if not moved:
        x, y, o00, o01, o10, o11 = 0.0, 0.0, o, o, o, o
    hw: tl.constexpr = H * W
    v0 = _seen(
        faces_ptr, mask_ptr, bound_ptr, textures_ptr, part, o00, o01, o10, o11, x, y, inside, exists, MASKED, OWN,
        BOUNDED, MIXED, moved,
    )  # fmt: skip
    v1 = _seen(
        faces_ptr + hw, mask_ptr + hw, bound_ptr + hw, textures_ptr + hw, part, o00, o01, o10, o11, x, y, inside,
        exists, MASKED, OWN, BOUNDED, MIXED, moved,
    )  # fmt: skip
    v2 = _seen(
        faces_ptr + 2 * hw, mask_ptr + 2 * hw, bound_ptr + 2 * hw, textures_ptr + 2 * hw, part, o00, o01, o10, o11,
        x, y, inside, exists, MASKED, OWN, BOUNDED, MIXED, moved,
    )  # fmt: skip
    if COLOR:
        contrast, brightness = _contrast(draws_ptr, COLOR), _drawn(draws_ptr, 4) * BRIGHTNESS
        v0 = (v0 - 0.5) * contrast + 0.5 + brightness
        v1 = (v1 - 0.5) * contrast + 0.5 + brightness
        v2 = (v2 - 0.5) * contrast + 0.5 + brightness
    if SCALED:
        v0 = v0 * tl.load(scale_ptr) + tl.load(shift_ptr)
        v1 = v1 * tl.load(scale_ptr + 1) + tl.load(shift_ptr + 1)
        v2 = v2 * tl.load(scale_ptr + 2) + tl.load(shift_ptr + 2)
    out_ptr += row * 3 * h * w
    dtype = out_ptr.dtype.element_ty
    tl.store(out_ptr + _at(o, 0, h * w, LAST), v0.to(dtype), mask=inside)
    tl.store(out_ptr + _at(o, 1, h * w, LAST), v1.to(dtype), mask=inside)
    tl.store(out_ptr + _at(o, 2, h * w, LAST), v2.to(dtype), mask=inside)


@triton.jit
def _sizes_kernel(
    grads_ptr,  # [P, B, 3, h, w]
    scale_ptr,  # [3] float32, read if SCALED
    sizes_ptr,  # [P, blocks] float32, out: sums of |mean_b scale grads|
    n,  # 3 h w
    hw,
    B: tl.constexpr,
    LAST: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    p, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    o = block * BLOCK + tl.arange(0, BLOCK)
    inside = o < n
    grads_ptr += p * B * n
    g = tl.zeros([BLOCK], tl.float32)
    for k in range(B):
        g += tl.load(grads_ptr + k * n + o, mask=inside, other=0.0).to(tl.float32)
    if SCALED:
        g *= tl.where(inside, per_channel(scale_ptr, o, hw, LAST), 0.0)
    tl.store(sizes_ptr + p * tl.num_programs(1) + block, tl.sum(tl.abs(g)) / B)


@triton.jit
def _gathered(g0, g1, g2, grads_ptr, i, j, x, y, mine, a, b, c, d, tx, ty, factor, H, W, h, w, LAST: tl.constexpr):
    """Adds what pixels (i, j) of a view give to pixels (y, x) of the picture."""
    mine &= (i >= 0) & (i < h) & (j >= 0) & (j < w)
    u, v = j - (w - 1) / 2, i - (h - 1) / 2
    weight = 1 - tl.abs(clip(a * u + b * v + tx, 0.0, W - 1.0) - x)
    other = 1 - tl.abs(clip(c * u + d * v + ty, 0.0, H - 1.0) - y)
    mine &= (weight > 0) & (other > 0)
    weight = tl.where(mine, weight * other * factor, 0.0)
    o = tl.where(mine, i * w + j, 0.0).to(tl.int32)
    g0 += weight * tl.load(grads_ptr + _at(o, 0, h * w, LAST), mask=mine, other=0.0).to(tl.float32)
    g1 += weight * tl.load(grads_ptr + _at(o, 1, h * w, LAST), mask=mine, other=0.0).to(tl.float32)
    g2 += weight * tl.load(grads_ptr + _at(o, 2, h * w, LAST), mask=mine, other=0.0).to(tl.float32)
    return g0, g1, g2


@triton.jit
def _inside(
    grads_ptr, draws_ptr, place_ptr, scale_ptr, sizes_ptr, acc_ptr, delta_in_ptr, alpha, eps, p, block,
    SHARED: tl.constexpr, B: tl.constexpr, H: tl.constexpr, W: tl.constexpr, h: tl.constexpr, w: tl.constexpr,
    LAST: tl.constexpr, ACC_LAST: tl.constexpr, DELTA_LAST: tl.constexpr, COLOR: tl.constexpr,
    GEOMETRY: tl.constexpr, FLIP: tl.constexpr, PLACED: tl.constexpr, SCALED: tl.constexpr, UNIT: tl.constexpr,
    GREY: tl.constexpr, STEP: tl.constexpr, BLOCKS: tl.constexpr, BLOCKS_PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pixels that are not on the border, or all where nothing moves."""
    middle_i: tl.constexpr = (h - 1) / 2
    middle_j: tl.constexpr = (w - 1) / 2
    o = block * BLOCK + tl.arange(0, BLOCK)
    mine = o < H * W
    g0, g1, g2 = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    if GEOMETRY or FLIP or PLACED:
        yi, xi = o // W, o % W
        mine &= (xi > 0) & (xi < W - 1) & (yi > 0) & (yi < H - 1)
        x, y = xi.to(tl.float32), yi.to(tl.float32)
    for k in range(B):
        contrast = _contrast(draws_ptr + k * DRAWS, COLOR)
        if GEOMETRY or FLIP or PLACED:
            a, b, c, d, tx, ty = _move(draws_ptr + k * DRAWS, place_ptr, GEOMETRY, FLIP, PLACED, H, W, h, w)
            back = 1 / (a * d - b * c)
            reach_j = (tl.abs(d) + tl.abs(b)) * tl.abs(back) + 1e-3
            reach_i = (tl.abs(c) + tl.abs(a)) * tl.abs(back) + 1e-3
            first_j = tl.ceil((d * (x - tx) - b * (y - ty)) * back + middle_j - reach_j)
            i = tl.ceil((a * (y - ty) - c * (x - tx)) * back + middle_i - reach_i)
            row = 0.0
            while row <= 2 * reach_i:
                column = 0.0
                while column <= 2 * reach_j:
                    for more in tl.static_range(3):
                        g0, g1, g2 = _gathered(
                            g0, g1, g2, grads_ptr, i, first_j + column + more, x, y, mine,
                            a, b, c, d, tx, ty, contrast, H, W, h, w, LAST,
                        )  # fmt: skip
                    column += 3
                i += 1
                row += 1
        else:
            g0 += contrast * tl.load(grads_ptr + _at(o, 0, h * w, LAST), mask=mine, other=0.0).to(tl.float32)
            g1 += contrast * tl.load(grads_ptr + _at(o, 1, h * w, LAST), mask=mine, other=0.0).to(tl.float32)
            g2 += contrast * tl.load(grads_ptr + _at(o, 2, h * w, LAST), mask=mine, other=0.0).to(tl.float32)
        grads_ptr += 3 * h * w
    _finish(
        g0, g1, g2, o, mine, p, scale_ptr, sizes_ptr, acc_ptr, delta_in_ptr, alpha, eps, SHARED, B, H, W, h, w,
        ACC_LAST, DELTA_LAST, SCALED, UNIT, GREY, STEP, BLOCKS, BLOCKS_PADDED,
    )  # fmt: skip


@triton.jit
def _border(
    grads_ptr, draws_ptr, place_ptr, scale_ptr, sizes_ptr, acc_ptr, delta_in_ptr, alpha, eps, p, block,
    SHARED: tl.constexpr, B: tl.constexpr, H: tl.constexpr, W: tl.constexpr, h: tl.constexpr, w: tl.constexpr,
    LAST: tl.constexpr, ACC_LAST: tl.constexpr, DELTA_LAST: tl.constexpr, COLOR: tl.constexpr,
    GEOMETRY: tl.constexpr, FLIP: tl.constexpr, PLACED: tl.constexpr, SCALED: tl.constexpr, UNIT: tl.constexpr,
    GREY: tl.constexpr, STEP: tl.constexpr, BLOCKS: tl.constexpr, BLOCKS_PADDED: tl.constexpr,
    EDGE: tl.constexpr, CANDIDATES: tl.constexpr,
):  # fmt: skip
    """Pixels of the border, onto which what lies beyond is clamped."""
    middle_i: tl.constexpr = (h - 1) / 2
    middle_j: tl.constexpr = (w - 1) / 2
    # The border in one line: first row, last row, then both ends of each row between.
    e = block * EDGE + tl.arange(0, EDGE)
    mine = e < 2 * (H + W) - 4
    between = e - 2 * W
    xi = tl.where(e < W, e, tl.where(e < 2 * W, e - W, tl.where(between % 2 == 0, 0, W - 1)))
    yi = tl.where(e < W, 0, tl.where(e < 2 * W, H - 1, 1 + between // 2))
    x, y = xi.to(tl.float32), yi.to(tl.float32)
    candidate = tl.arange(0, CANDIDATES)
    g0, g1, g2 = tl.zeros([EDGE], tl.float32), tl.zeros([EDGE], tl.float32), tl.zeros([EDGE], tl.float32)
    for k in range(B):
        contrast = _contrast(draws_ptr + k * DRAWS, COLOR)
        a, b, c, d, tx, ty = _move(draws_ptr + k * DRAWS, place_ptr, GEOMETRY, FLIP, PLACED, H, W, h, w)
        back = 1 / (a * d - b * c)
        # How far beyond the border the view asks, and so the box around what this pixel stands for.
        wide, high = tl.abs(a) * middle_j + tl.abs(b) * middle_i, tl.abs(c) * middle_j + tl.abs(d) * middle_i
        x0 = tl.where(xi == 0, tl.minimum(tx - wide, -1.0), x - 1)
        x1 = tl.where(xi == W - 1, tl.maximum(tx + wide, W * 1.0), x + 1)
        y0 = tl.where(yi == 0, tl.minimum(ty - high, -1.0), y - 1)
        y1 = tl.where(yi == H - 1, tl.maximum(ty + high, H * 1.0), y + 1)
        half_x, half_y = (x1 - x0) / 2, (y1 - y0) / 2
        reach_j = (tl.abs(d) * half_x + tl.abs(b) * half_y) * tl.abs(back) + 1e-3
        reach_i = (tl.abs(c) * half_x + tl.abs(a) * half_y) * tl.abs(back) + 1e-3
        from_x, from_y = (x0 + x1) / 2 - tx, (y0 + y1) / 2 - ty
        j = (d * from_x - b * from_y) * back + middle_j
        i = (a * from_y - c * from_x) * back + middle_i
        first_j = tl.maximum(tl.ceil(j - reach_j), 0.0)
        first_i = tl.maximum(tl.ceil(i - reach_i), 0.0)
        columns = tl.maximum(tl.minimum(tl.floor(j + reach_j), w - 1.0) - first_j + 1, 0.0)
        rows = tl.maximum(tl.minimum(tl.floor(i + reach_i), h - 1.0) - first_i + 1, 0.0)
        columns = tl.where(mine, columns, 0.0).to(tl.int32)
        count = columns * rows.to(tl.int32)
        most, done = tl.max(count, axis=0), 0
        while done < most:
            at = (done + candidate)[None, :]
            row = at // tl.maximum(columns, 1)[:, None]
            at_i = first_i[:, None] + row
            at_j = first_j[:, None] + (at - row * columns[:, None])
            wide0 = tl.zeros([EDGE, CANDIDATES], tl.float32)
            wide0, wide1, wide2 = _gathered(
                wide0, wide0, wide0, grads_ptr, at_i, at_j, x[:, None], y[:, None], at < count[:, None],
                a, b, c, d, tx, ty, contrast, H, W, h, w, LAST,
            )  # fmt: skip
            g0 += tl.sum(wide0, axis=1)
            g1 += tl.sum(wide1, axis=1)
            g2 += tl.sum(wide2, axis=1)
            done += CANDIDATES
        grads_ptr += 3 * h * w
    _finish(
        g0, g1, g2, yi * W + xi, mine, p, scale_ptr, sizes_ptr, acc_ptr, delta_in_ptr, alpha, eps, SHARED, B,
        H, W, h, w, ACC_LAST, DELTA_LAST, SCALED, UNIT, GREY, STEP, BLOCKS, BLOCKS_PADDED,
    )  # fmt: skip


@triton.jit
def _view_step_kernel(
    grads_ptr,  # [P, B, 3, h, w], gradient of each view
    draws_ptr,  # [P, B, DRAWS] float32
    place_ptr,  # [P // SHARED, 2, 3] float32, read if PLACED
    scale_ptr,  # [3] float32, read if SCALED
    sizes_ptr,  # [P // SHARED, BLOCKS] float32, read if UNIT
    acc_ptr,  # [P, 3, H, W] float32, += g in place if STEP, else out
    delta_in_ptr,  # [P, 3, H, W] float32, look-ahead, in place if STEP
    alpha,
    eps,
    SHARED: tl.constexpr,  # how many pictures share a place and a size
    B: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    h: tl.constexpr,
    w: tl.constexpr,
    LAST: tl.constexpr,  # grads are channels_last
    ACC_LAST: tl.constexpr,
    DELTA_LAST: tl.constexpr,
    COLOR: tl.constexpr,
    GEOMETRY: tl.constexpr,
    FLIP: tl.constexpr,
    PLACED: tl.constexpr,
    SCALED: tl.constexpr,
    UNIT: tl.constexpr,
    GREY: tl.constexpr,
    STEP: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCKS_PADDED: tl.constexpr,
    INNER: tl.constexpr,  # programs of pixels that are not on the border
    BLOCK: tl.constexpr,
    EDGE: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    p, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    draws_ptr += p * B * DRAWS
    place_ptr += p // SHARED * 6
    grads_ptr += p * B * 3 * h * w
    if block < INNER:
        _inside(
            grads_ptr, draws_ptr, place_ptr, scale_ptr, sizes_ptr, acc_ptr, delta_in_ptr, alpha, eps, p, block, SHARED,
            B, H, W, h, w, LAST, ACC_LAST, DELTA_LAST, COLOR, GEOMETRY, FLIP, PLACED, SCALED, UNIT, GREY, STEP, BLOCKS,
            BLOCKS_PADDED, BLOCK,
        )  # fmt: skip
    else:
        _border(
            grads_ptr, draws_ptr, place_ptr, scale_ptr, sizes_ptr, acc_ptr, delta_in_ptr, alpha, eps, p,
            block - INNER, SHARED, B, H, W, h, w, LAST, ACC_LAST, DELTA_LAST, COLOR, GEOMETRY, FLIP, PLACED,
            SCALED, UNIT, GREY, STEP, BLOCKS,
            BLOCKS_PADDED, EDGE, CANDIDATES,
        )  # fmt: skip


@triton.jit
def _finish(
    g0, g1, g2, o, mine, p, scale_ptr, sizes_ptr, acc_ptr, delta_in_ptr, alpha, eps, SHARED: tl.constexpr,
    B: tl.constexpr, H: tl.constexpr, W: tl.constexpr, h: tl.constexpr, w: tl.constexpr, ACC_LAST: tl.constexpr,
    DELTA_LAST: tl.constexpr, SCALED: tl.constexpr, UNIT: tl.constexpr, GREY: tl.constexpr, STEP: tl.constexpr,
    BLOCKS: tl.constexpr, BLOCKS_PADDED: tl.constexpr,
):  # fmt: skip
    """The step with the summed gradients of pixels o, or what they are."""
    if SCALED:
        g0 *= tl.load(scale_ptr)
        g1 *= tl.load(scale_ptr + 1)
        g2 *= tl.load(scale_ptr + 2)
    if UNIT:
        block = tl.arange(0, BLOCKS_PADDED)
        parts = tl.load(sizes_ptr + p // SHARED * BLOCKS + block, mask=block < BLOCKS, other=0.0)
        size = tl.sum(parts) / (3 * h * w)
        size = tl.where(size < TINY, TINY, size)
        g0, g1, g2 = g0 / size, g1 / size, g2 / size
    if GREY:
        g0 = (g0 + g1 + g2) / 3
        g1, g2 = g0, g0
    if B > 1:
        g0, g1, g2 = g0 / B, g1 / B, g2 / B
    acc_ptr += p * 3 * H * W
    delta_in_ptr += p * 3 * H * W
    HW: tl.constexpr = H * W
    at0, at1, at2 = _at(o, 0, HW, ACC_LAST), _at(o, 1, HW, ACC_LAST), _at(o, 2, HW, ACC_LAST)
    if STEP:
        to0, to1, to2 = _at(o, 0, HW, DELTA_LAST), _at(o, 1, HW, DELTA_LAST), _at(o, 2, HW, DELTA_LAST)
        delta0 = tl.load(delta_in_ptr + to0, mask=mine, other=0.0)
        delta1 = tl.load(delta_in_ptr + to1, mask=mine, other=0.0)
        delta2 = tl.load(delta_in_ptr + to2, mask=mine, other=0.0)
        acc0 = tl.load(acc_ptr + at0, mask=mine, other=0.0)
        acc1 = tl.load(acc_ptr + at1, mask=mine, other=0.0)
        acc2 = tl.load(acc_ptr + at2, mask=mine, other=0.0)
        tl.store(delta_in_ptr + to0, clip(delta0 + alpha * sign_of(g0), -eps, eps), mask=mine)
        tl.store(delta_in_ptr + to1, clip(delta1 + alpha * sign_of(g1), -eps, eps), mask=mine)
        tl.store(delta_in_ptr + to2, clip(delta2 + alpha * sign_of(g2), -eps, eps), mask=mine)
        g0, g1, g2 = acc0 + g0, acc1 + g1, acc2 + g2
    tl.store(acc_ptr + at0, g0, mask=mine)
    tl.store(acc_ptr + at1, g1, mask=mine)
    tl.store(acc_ptr + at2, g2, mask=mine)


@torch.library.custom_op("fastcloak::view_batch_", mutates_args=("out",))
def view_batch_(
    faces: torch.Tensor,
    mask: torch.Tensor | None,
    index: torch.Tensor | None,
    draws: torch.Tensor,
    out: torch.Tensor,
    color: bool = False,
    geometry: bool = False,
    flip: bool = False,
    textures: torch.Tensor | None = None,
    place: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    bound: torch.Tensor | None = None,
) -> None:
    """`fastcloak.ops.reference.view_batch_` in one launch. An index outside [0, N) makes its picture NaN.

    Args:
        faces, mask, draws, textures, place, bound: as in the reference, copied where they are not contiguous.
        index: any strides.
        out: contiguous or channels_last, overwritten.

    Raises:
        ValueError: a shape, dtype, device or memory format that the kernel cannot take.
    """
    check("out", out, ("P", "b", 3, "h", "w"), FLOATS, out.device)
    P, b, _, h, w = out.shape
    size = ("H", "W") if place is not None else (h, w)
    check("faces", faces, (P, "N" if index is not None else b, 3, *size), (torch.float32,), out.device)
    H, W = faces.shape[3:]
    own = mask is not None and mask.dim() == 5
    wanted = {
        "mask": (mask, (P, b, 3, H, W) if own else (P, 3, H, W)),
        "draws": (draws, (P, b, DRAWS.value)),
        "textures": (textures, (TEXTURES.value, 3, H, W)),
        "place": (place, (P, 2, 3)),
        "scale": (scale, (3,)),
        "shift": (shift, (3,)),
        "bound": (bound, (P, 3, H, W)),
    }
    given = _given(wanted, out.device)
    if index is not None:
        check("index", index, (P, b), (torch.int64,), out.device)
    unread = given["draws"]  # pointers that are not read still need a tensor
    with torch.cuda.device_of(out):
        _view_batch_kernel[(P * b, triton.cdiv(h * w, PIXELS))](
            faces.contiguous(),
            given.get("mask", unread),
            given.get("bound", unread),
            unread if index is None else index,
            unread,
            given.get("textures", unread),
            given.get("place", unread),
            given.get("scale", unread),
            given.get("shift", unread),
            out,
            faces.shape[1],
            *((0, 0) if index is None else index.stride()),
            B=b,
            H=H,
            W=W,
            h=h,
            w=w,
            LAST=is_channels_last("out", out),
            MASKED=mask is not None,
            OWN=own,
            BOUNDED=bound is not None and not own,
            INDEXED=index is not None,
            MIXED=textures is not None,
            COLOR=color,
            GEOMETRY=geometry,
            FLIP=flip,
            PLACED=place is not None,
            SCALED=scale is not None and shift is not None,
            BLOCK=PIXELS,
            **LAUNCH,
        )


@torch.library.custom_op("fastcloak::view_gradient_", mutates_args=("out",))
def view_gradient_(
    grads: torch.Tensor,
    draws: torch.Tensor,
    out: torch.Tensor,
    color: bool = False,
    geometry: bool = False,
    flip: bool = False,
    place: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    unit: bool = False,
) -> None:
    """`fastcloak.ops.reference.view_gradient_` in one launch, two if `unit`.

    Args:
        grads, draws, place: as in the reference, copied where they are not in a format that the kernel reads.
        out: [P, b, 3, H, W] float32, contiguous or channels_last, overwritten.

    Raises:
        ValueError: a shape, dtype, device or memory format that the kernel cannot take.
    """
    check("out", out, ("P", "b", 3, "H", "W"), (torch.float32,), out.device)
    _launch(grads, draws, out, None, 0.0, 0.0, color, geometry, flip, place, scale, unit, False)


@torch.library.custom_op("fastcloak::view_step_", mutates_args=("acc", "delta_in"))
def view_step_(
    grads: torch.Tensor,
    draws: torch.Tensor,
    acc: torch.Tensor,
    delta_in: torch.Tensor,
    alpha: float,
    eps: float,
    color: bool = False,
    geometry: bool = False,
    flip: bool = False,
    place: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    unit: bool = False,
    grey: bool = False,
) -> None:
    """`fastcloak.ops.reference.view_step_` in one launch, two if `unit`.

    Args:
        grads, draws, place: as in the reference, copied where they are not in a format that the kernel reads.
        acc, delta_in: [P, 3, H, W] float32, contiguous or channels_last, changed in place.

    Raises:
        ValueError: a shape, dtype, device or memory format that the kernel cannot take.
    """
    check("acc", acc, ("P", 3, "H", "W"), (torch.float32,), acc.device)
    check("delta_in", delta_in, tuple(acc.shape), (torch.float32,), acc.device)
    _launch(grads, draws, acc, delta_in, alpha, eps, color, geometry, flip, place, scale, unit, grey)


def _launch(grads, draws, acc, delta_in, alpha, eps, color, geometry, flip, place, scale, unit, grey):
    """Launches `_view_step_kernel`; without delta_in acc is [P, b, 3, H, W], and overwritten."""
    H, W = acc.shape[-2:]
    moved = geometry or flip or place is not None
    size = ("h", "w") if place is not None else (H, W)
    check("grads", grads, (acc.shape[0], "b" if delta_in is not None else acc.shape[1], 3, *size), FLOATS, acc.device)
    P, b, _, h, w = grads.shape
    wanted = {"draws": (draws, (P, b, DRAWS.value)), "place": (place, (P, 2, 3)), "scale": (scale, (3,))}
    given = _given(wanted, acc.device)
    grads = dense(grads)
    last, unread = is_channels_last("grads", grads), given["draws"]
    blocks, sizes = triton.cdiv(3 * h * w, SIZES_BLOCK), unread
    programs = triton.cdiv(H * W, PIXELS)
    edges = triton.cdiv(2 * (H + W) - 4, EDGE) if moved else 0
    with torch.cuda.device_of(acc):
        if unit:
            sizes = torch.empty(P, blocks, dtype=torch.float32, device=acc.device)
            _sizes_kernel[(P, blocks)](
                grads,
                given.get("scale", unread),
                sizes,
                3 * h * w,
                h * w,
                B=b,
                LAST=last,
                SCALED=scale is not None,
                BLOCK=SIZES_BLOCK,
                **LAUNCH,
            )
        step = delta_in is not None
        _view_step_kernel[(P if step else P * b, programs + edges)](
            grads,
            given["draws"],
            given.get("place", unread),
            given.get("scale", unread),
            sizes,
            acc,
            delta_in if step else acc,
            alpha,
            eps,
            SHARED=1 if step else b,
            B=b if step else 1,
            H=H,
            W=W,
            h=h,
            w=w,
            LAST=last,
            ACC_LAST=is_channels_last("acc" if step else "out", acc),
            DELTA_LAST=step and is_channels_last("delta_in", delta_in),
            COLOR=color,
            GEOMETRY=geometry,
            FLIP=flip,
            PLACED=place is not None,
            SCALED=scale is not None,
            UNIT=unit,
            GREY=grey,
            STEP=step,
            BLOCKS=blocks,
            BLOCKS_PADDED=triton.next_power_of_2(blocks),
            INNER=programs,
            BLOCK=PIXELS,
            EDGE=EDGE,
            CANDIDATES=CANDIDATES,
            **LAUNCH,
        )


def _given(wanted, device):
    """Those that are not None, checked and contiguous."""
    for name, (tensor, shape) in wanted.items():
        if tensor is not None:
            check(name, tensor, shape, (torch.float32,), device)
    return {name: tensor.contiguous() for name, (tensor, _) in wanted.items() if tensor is not None}
