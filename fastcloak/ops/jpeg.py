"""JPEG with 4:2:0 colour as a function of a picture: what decoding gives, and the gradient of it.

What rounding adds is a constant in the gradient (Shin and Song, NIPS workshop 2017). The DCT, there and back, is
orthonormal: what is left of it has the identity as its gradient, and only colours, at half the resolution, are blurred.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

JPEG_QUALITY = (50.0, 95.0)

_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)

_ENCODE = ((0.299, 0.587, 0.114), (-0.168636, -0.331068, 0.499704), (0.499813, -0.418531, -0.081282))
_DECODE = ((1.0, 0.0, 1.402), (1.0, -0.344, -0.714), (1.0, 1.772, 0.0))
"""RGB to luma, blue and red difference, and back, as in JFIF; with blue 0.564 (B - Y) and red 0.713 (R - Y)."""


class Tables(NamedTuple):
    """The constants of JPEG on a device.

    Attributes:
        steps: [2, 8, 8], the steps of luma and of colours at quality 50.
        dct: [8, 8], orthonormal rows.
        colors: [2, 3, 3], RGB to luma and colours, and back.
    """

    steps: Tensor
    dct: Tensor
    colors: Tensor


def jpeg_tables(device: torch.device, dtype: torch.dtype = torch.float32) -> Tables:
    """The constants of JPEG on a device."""
    k = torch.arange(8, dtype=torch.float64)
    dct = torch.cos(math.pi * k[:, None] * (2 * k + 1) / 16) / 2
    dct[0] /= math.sqrt(2)
    steps, colors = (torch.tensor(pair, dtype=dtype) for pair in ((_LUMINANCE, _CHROMINANCE), (_ENCODE, _DECODE)))
    return Tables(steps.to(device), dct.to(device, dtype), colors.to(device))


def decoded(x: Tensor, draws: Tensor, steps: Tensor, dct: Tensor, colors: Tensor) -> Tensor:
    """Pictures as they come out of a file, [n, 3, H, W] in [0, 1], with the numbers of their views, [n, DRAWS].

    The others are of `Tables`.
    """
    encode, decode = colors
    low, high = JPEG_QUALITY
    quality, (height, width) = low + (high - low) * draws[:, 6], x.shape[-2:]
    coded = _mixed(encode, _whole_blocks(255 * x))
    luma, color = coded[:, :1], coded[:, 1:]
    (rows, double_rows), (columns, double_columns) = (_halving(side, x) for side in coded.shape[-2:])
    color = rows @ color @ columns.mT
    luma = luma + _rounding(luma - 128, steps[0], dct, quality)
    color = color + _rounding(color, steps[1], dct, quality)
    shown = _mixed(decode, torch.cat((luma, double_rows @ color @ double_columns.mT), 1)) / 255
    return shown[..., :height, :width]


def decoded_gradient(grads: Tensor, colors: Tensor) -> Tensor:
    """The gradient with respect to the pictures, [n, 3, H, W] of whole blocks, from that with respect to `decoded`."""
    encode, decode = colors
    coded = _mixed(decode.mT, grads)
    luma, color = coded[:, :1], coded[:, 1:]
    (rows, double_rows), (columns, double_columns) = (_halving(side, grads) for side in grads.shape[-2:])
    color = rows.mT @ (double_rows.mT @ color @ double_columns) @ columns
    return _mixed(encode.mT, torch.cat((luma, color), 1))


def _whole_blocks(x: Tensor) -> Tensor:  # of 16 x 16: at half the resolution colours need whole blocks too
    beyond = 0, -x.shape[-1] % 16, 0, -x.shape[-2] % 16
    return F.pad(x, beyond, mode="replicate") if any(beyond) else x


def _mixed(matrix: Tensor, x: Tensor) -> Tensor:  # channels of [n, 3, H, W]
    return (matrix @ x.flatten(2)).view(x.shape)


def _halving(side: int, like: Tensor) -> tuple[Tensor, Tensor]:  # mean of two [side / 2, side], linear [side, side / 2]
    i = torch.arange(side, device=like.device, dtype=like.dtype)
    k = i[: side // 2]
    half = (torch.div(i, 2, rounding_mode="floor") == k[:, None]).to(like.dtype) / 2
    position = ((i - 0.5) / 2).clamp(0, side // 2 - 1)
    return half, (1 - (position[:, None] - k).abs()).clamp_min(0)


# what it adds to x, [n, c, H, W]
def _rounding(x: Tensor, table: Tensor, dct: Tensor, quality: Tensor) -> Tensor:
    n, _, _, width = x.shape
    q = quality.view(-1, 1, 1)
    percent = torch.where(q < 50, 5000 / q, 200 - 2 * q)
    steps = (table * percent / 100).add(0.5).floor().clamp(1, 255).repeat(1, 1, width // 8)[:, None]  # [n, 1, 8, W]
    along = (x.reshape(-1, 8) @ dct.mT).view(-1, 8, width)
    coefficients = (dct @ along).view(n, -1, 8, width) / steps
    added = coefficients.round().sub_(coefficients).mul_(steps)
    along = dct.mT @ added.view(-1, 8, width)
    return (along.view(-1, 8) @ dct).view(x.shape)
