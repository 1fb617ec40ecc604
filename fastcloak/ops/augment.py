"""What may happen to a cloaked face before a network sees it, drawn again for every picture of every inner step.

A cloak that is fitted through random views holds in more of them, and on more networks (docs/method.md has what each
gains). Every view is a differentiable function of the picture and of a few numbers drawn beforehand, without a decision
on the host, so that a step with views can be captured like any other. A view costs no image-gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["DRAWS", "Views", "blur_matrix"]

MIX = 0.5
FACE_SIZE = 112
TEXTURES, TEXTURE_SIZE = 64, FACE_SIZE
"""How many, and their side in pixels: that of aligned faces."""
FACE_PIXELS = (56.0, 224.0)
CONTRAST, BRIGHTNESS = 0.2, 0.1
BLUR = 1.0
JPEG_QUALITY = (50.0, 95.0)
SHIFT, SCALE, ROTATION = 4.0, 0.06, 5.0
"""Largest change: pixels, share, degrees."""

DRAWS = 13
"""Numbers in [0, 1) that one picture's view takes, whichever augmentations are on."""

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


class Views:
    """Random views of pictures, by the names of `AUGMENTATIONS`, whose order does not matter."""

    def __init__(self, names: tuple[str, ...], device: torch.device) -> None:
        self.names = names
        # Of a JPEG, on the device before the first step: a step that copies from the host cannot be captured.
        self.tables = tuple(
            torch.tensor(table, dtype=torch.float32, device=device)
            for table in (_LUMINANCE, _CHROMINANCE, _ENCODE, _DECODE)
        )
        self.textures = _textures(TEXTURES, TEXTURE_SIZE).to(device) if "mix" in names else None

    def __call__(self, pictures: Tensor, faces: Tensor, draws: Tensor, place: Tensor | None = None) -> Tensor:
        """One view of each picture.

        Args:
            pictures: [n, 3, H, W] float32 in [0, 1], cloaked; with "mix", H = W = `TEXTURE_SIZE`.
            faces: [n, 3, H, W] float32 in [0, 1], the same without the cloak; read by "mix" and "photo" only.
            draws: [n, DRAWS] float32 in [0, 1), uniform; the same numbers give the same view.
            place: [n, 2, 3] float32, where in a picture the aligned face lies, as `affine_grid` takes it. None: the
                pictures are aligned faces.

        Returns:
            Aligned faces, [n, 3, H, W], with `place` [n, 3, 112, 112], float32, differentiable with respect to
            `pictures`; "color" may leave [0, 1].
        """
        x, names = pictures, self.names
        centred = 2 * draws - 1
        if self.textures is not None:
            position = TEXTURES * draws[:, 12]
            which = position.long().clamp_max(TEXTURES - 1)  # the number may round up to 1
            fade = MIX * (position - which).view(-1, 1, 1, 1) * (self.textures[which] - faces)
            x, faces = x + fade, faces + fade
        if "photo" in names:
            rows, columns = (_round_trip(draws[:, 0], draws[:, i], x.shape[-3 + i]) for i in (1, 2))
            x = faces + rows[:, None] @ (x - faces) @ columns.mT[:, None]
        if "color" in names:
            contrast, brightness = (centred[:, i].view(-1, 1, 1, 1) for i in (3, 4))
            x = (x - 0.5) * (1 + CONTRAST * contrast) + 0.5 + BRIGHTNESS * brightness
        if "blur" in names:
            rows, columns = (blur_matrix(BLUR * draws[:, 5], side) for side in x.shape[-2:])
            x = rows[:, None] @ x @ columns.mT[:, None]
        if "jpeg" in names:
            low, high = JPEG_QUALITY
            x = _jpeg(x, low + (high - low) * draws[:, 6], *self.tables)
        if place is not None or "geometry" in names or "flip" in names:
            moves = centred[:, 7:11] if "geometry" in names else torch.zeros_like(centred[:, 7:11])
            mirror = 1 - 2 * (draws[:, 11] < 0.5).to(x.dtype) if "flip" in names else torch.ones_like(draws[:, 11])
            x = _moved(x, moves, mirror, place)
        return x


def blur_matrix(sigma: Tensor, size: int) -> Tensor:
    """Gaussian blur of one axis as a matrix with rows of sum 1: rows @ picture @ columns.T blurs both.

    Args:
        sigma: [n] float, in pixels; 0 is no blur.
        size: of the axis.

    Returns:
        [n, size, size] float.
    """
    i = torch.arange(size, device=sigma.device, dtype=sigma.dtype)
    distance = i[:, None] - i
    weights = torch.exp(-(distance**2) / (2 * sigma.view(-1, 1, 1) ** 2 + 1e-6))
    return weights / weights.sum(-1, keepdim=True)


def _textures(count: int, side: int) -> Tensor:  # [count, 3, side, side] in [0, 1], the same in every process
    """Noise whose amplitude falls with frequency as in photos, most of it in common to the three channels."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)
    frequency = (rows**2 + columns**2).sqrt()
    amplitude = frequency.clamp_min(1 / side) ** -1.3
    amplitude[0, 0] = 0

    def noise(channels: int) -> Tensor:
        white = torch.randn(count, channels, side, side, generator=generator)
        colored = torch.fft.irfft2(amplitude * torch.fft.rfft2(white), s=(side, side))
        scaled: Tensor = colored / colored.std((2, 3), keepdim=True)
        return scaled

    textures: Tensor = (0.5 + 0.18 * noise(1) + 0.08 * noise(3)).clamp(0, 1)
    return textures


def _round_trip(size: Tensor, phase: Tensor, side: int) -> Tensor:  # [n], [n] in [0, 1) -> [n, side, side]
    low, high = FACE_PIXELS
    pitch = side / (low * (high / low) ** size)  # of the photo's pixels, in pixels of the crop
    pixels = math.ceil(high) + 4
    k = torch.arange(-2, pixels - 2, device=size.device, dtype=size.dtype)
    centres = (k + phase[:, None]) * pitch[:, None] - 0.5  # [n, pixels]
    width = pitch.clamp_min(1)[:, None, None]
    i = torch.arange(side, device=size.device, dtype=size.dtype)
    # Linear interpolation to the finer grid and the same kernel as anti-aliasing to the coarser one.
    tent = (1 - (i[:, None] - centres[:, None]).abs() / width).clamp_min(0)  # [n, side, pixels]
    return (tent @ tent.mT) * (pitch[:, None, None] / width**2)


# moves [n, 4] in [-1, 1), mirror [n] 1 or -1, place [n, 2, 3] or None
def _moved(x: Tensor, moves: Tensor, mirror: Tensor, place: Tensor | None) -> Tensor:
    side = x.shape[-1] if place is None else FACE_SIZE
    angle = math.radians(ROTATION) * moves[:, 2]
    scale = torch.exp(SCALE * moves[:, 3])
    cos, sin = scale * torch.cos(angle), scale * torch.sin(angle)
    shift = 2 * SHIFT / side * moves[:, :2]
    theta = torch.stack((mirror * cos, -mirror * sin, shift[:, 0], sin, cos, shift[:, 1]), 1).view(-1, 2, 3)
    size = list(x.shape)
    if place is not None:  # first moved as an aligned face, then found in the picture
        theta = place[..., :2] @ theta + F.pad(place[..., 2:], (2, 0))
        size[2:] = side, side
    grid = F.affine_grid(theta, size, align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


# x [n, 3, H, W] in [0, 1], quality [n] in 1..100, tables [8, 8] and of colours [3, 3]. In the gradient, what rounding
# adds is a constant. The DCT, there and back, is orthonormal: what is left of it has the identity as its gradient.
def _jpeg(x: Tensor, quality: Tensor, luminance: Tensor, chrominance: Tensor, encode: Tensor, decode: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    # Whole blocks of 16 x 16: at half the resolution colours need whole blocks too.
    beyond = 0, -width % 16, 0, -height % 16
    x = F.pad(255 * x, beyond, mode="replicate") if any(beyond) else 255 * x
    coded = _mixed(encode, x)
    luma, colors = coded[:, :1], coded[:, 1:]
    (rows, double_rows), (columns, double_columns) = (_halving(side, x) for side in x.shape[-2:])
    colors = rows @ colors @ columns.mT
    luma = luma + _rounding(luma.detach() - 128, luminance, quality)
    colors = colors + _rounding(colors.detach(), chrominance, quality)
    decoded = _mixed(decode, torch.cat((luma, double_rows @ colors @ double_columns.mT), 1)) / 255
    return decoded[..., :height, :width]


def _mixed(matrix: Tensor, x: Tensor) -> Tensor:  # channels of [n, 3, H, W]
    return (matrix.to(x.dtype) @ x.flatten(2)).view(x.shape)


def _halving(side: int, like: Tensor) -> tuple[Tensor, Tensor]:  # mean of two [side / 2, side], linear [side, side / 2]
    i = torch.arange(side, device=like.device, dtype=like.dtype)
    k = i[: side // 2]
    half = (torch.div(i, 2, rounding_mode="floor") == k[:, None]).to(like.dtype) / 2
    position = ((i - 0.5) / 2).clamp(0, side // 2 - 1)
    return half, (1 - (position[:, None] - k).abs()).clamp_min(0)


def _rounding(x: Tensor, table: Tensor, quality: Tensor) -> Tensor:  # what it adds to x, [n, c, H, W]
    n, _, _, width = x.shape
    q = quality.view(-1, 1, 1)
    percent = torch.where(q < 50, 5000 / q, 200 - 2 * q)
    steps = (table * percent / 100).add(0.5).floor().clamp(1, 255).repeat(1, 1, width // 8)[:, None]  # [n, 1, 8, W]
    k = torch.arange(8, device=x.device, dtype=x.dtype)
    dct = torch.cos(math.pi * k[:, None] * (2 * k + 1) / 16) / 2
    dct = torch.cat((dct[:1] / math.sqrt(2), dct[1:]))  # [8, 8], orthonormal rows
    along = (x.reshape(-1, 8) @ dct.mT).view(-1, 8, width)
    coefficients = (dct @ along).view(n, -1, 8, width) / steps
    added = coefficients.round().sub_(coefficients).mul_(steps)
    along = dct.mT @ added.view(-1, 8, width)
    return (along.view(-1, 8) @ dct).view(x.shape)
