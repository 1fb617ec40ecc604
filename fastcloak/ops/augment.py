"""What may happen to a cloaked face before a network sees it, drawn again for every picture of every inner step.

A cloak that is fitted through random views holds in more of them, and on more networks (docs/method.md has what each
gains). Every view is a differentiable function of the picture and of a few numbers drawn beforehand, without a decision
on the host, so that a step with views can be captured like any other. A view costs no image-gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

from fastcloak.ops.jpeg import jpeg_tables

__all__ = ["DRAWS", "JITTERS", "Views", "blur_matrix", "jittering", "symmetric"]

MIX = 0.5
FACE_SIZE = 112
TEXTURES, TEXTURE_SIZE = 64, FACE_SIZE
"""How many, and their side in pixels: that of aligned faces."""
FACE_PIXELS = (56.0, 224.0)
CONTRAST, BRIGHTNESS = 0.2, 0.1
BLUR = 1.0
_FAINT = 1e-12
"""Weight of a blur, far below the rounding of float32."""
SHIFT, SCALE, ROTATION = 4.0, 0.06, 5.0
"""Largest change: pixels, share, degrees."""
JITTER = 0.5
"""Of these, how much a face moves beneath its mask."""

SEAM = 4.0
"""Pixels within which one half of a face goes over into the other."""

DRAWS = 13
"""Numbers in [0, 1) that one picture's view takes, whichever augmentations are on."""
JITTERS = 4
"""Numbers in [0, 1) that "jitter" takes besides."""


class Views:
    """What networks are shown of cloaked faces, and the way of their gradients back to the mask.

    mix, color, geometry and flip are in the two operations of the backend; the others are a step before or between
    them. Without views these are `cloak_batch_` and `accumulate_step_`.
    """

    def __init__(
        self, names: tuple[str, ...], ops: ModuleType, device: torch.device, grey: bool = False, unit: bool = False
    ) -> None:
        """Make what the views need.

        Args:
            names: of `AUGMENTATIONS`, whose order does not matter; "symmetry" and "jitter" are other faces, not views.
            ops: what `resolve_backend` returned.
            grey: all channels of the mask take the mean of their gradients.
            unit: the gradient of each person is divided by its own size.
        """
        self.names, self.ops, self.grey, self.unit = set(names) - {"symmetry", "jitter"}, ops, grey, unit
        self.textures = make_textures(device) if "mix" in names else None
        self.points = {"color": "color" in names}
        self.moves = {"geometry": "geometry" in names, "flip": "flip" in names}
        self.between = "blur" in names or "jpeg" in names
        self.tables = jpeg_tables(device) if "jpeg" in names else None

    def show(
        self,
        faces: Tensor,
        mask: Tensor,
        index: Tensor,
        draws: Tensor,
        out: Tensor,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        bound: Tensor | None = None,
        place: Tensor | None = None,
        jitter: Tensor | None = None,
    ) -> None:
        """Write what a network takes, one view of each cloaked picture, into `out`, [P, b, 3, h, w].

        The arguments are those of `fastcloak.ops.reference.view_batch_`; and `jitter`, [P, b, DRAWS] of `jittering`:
        how faces move before they are cloaked. None or [P, b, 0]: they stay.
        """
        ops = self.ops
        chosen: Tensor | None = index
        if jitter is not None and jitter.shape[-1]:
            faces, chosen, still = faces.new_empty(*index.shape, *faces.shape[2:]), None, faces
            ops.view_batch_(still, None, index, jitter, faces, geometry=True)
        elif not self.names and place is None and mask.dim() == 4:
            ops.cloak_batch_(faces, mask, index, out, scale, shift, bound)
            return
        if not draws.shape[-1]:  # a mask for each picture and no view, so that the numbers are not read
            draws = draws.new_zeros(*draws.shape[:2], DRAWS)
        shape = *index.shape, *faces.shape[2:]
        if "photo" in self.names:
            if chosen is None:
                index = torch.arange(shape[1], device=faces.device).expand(shape[:2])
            left = faces.new_empty(shape)
            ops.photo_batch_(faces, mask, index, draws, left, bound)
            mask, bound = left, None
        last = {**self.moves, "place": place, "scale": scale, "shift": shift}
        if not self.between:
            ops.view_batch_(faces, mask, chosen, draws, out, **self.points, **last, textures=self.textures, bound=bound)
            return
        x = faces.new_empty(shape)
        ops.view_batch_(faces, mask, chosen, draws, x, **self.points, textures=self.textures, bound=bound)
        if "blur" in self.names:
            rows = _blur(draws, x)
            x = rows @ x @ rows.mT
        if self.tables is not None:
            x, pictures = faces.new_empty(shape), x
            ops.jpeg_batch_(pictures, draws, x, *self.tables)
        ops.view_batch_(x, None, None, draws, out, **last)

    def step(
        self,
        grads: Tensor,
        draws: Tensor,
        acc: Tensor,
        delta_in: Tensor,
        alpha: float,
        eps: float,
        scale: Tensor | None = None,
        place: Tensor | None = None,
    ) -> None:
        """One inner step in place, from the gradients with respect to what `show` wrote.

        The arguments are those of `fastcloak.ops.reference.view_step_`.
        """
        ops = self.ops
        if not (self.names or self.grey or self.unit) and place is None:
            ops.accumulate_step_(grads, acc, delta_in, alpha, eps, scale)
            return
        rest = {**self.points, **self.moves, "scale": scale, "place": place, "unit": self.unit}
        shape = *draws.shape[:2], *acc.shape[1:]
        if self.between:
            back, grads = grads, acc.new_empty(shape)
            ops.view_gradient_(back, draws, grads, **{**rest, "color": False})
            rest = dict(self.points)
            if self.tables is not None:
                back, grads = grads, acc.new_empty(shape)
                ops.jpeg_gradient_(back, grads, self.tables.colors)
            if "blur" in self.names:
                rows = _blur(draws, grads)
                grads = rows.mT @ (grads @ rows)
        if "photo" in self.names:
            seen, back, grads = grads, acc.new_empty(shape), acc.new_empty(shape)
            ops.view_gradient_(seen, draws, back, **rest)
            ops.photo_gradient_(back, draws, grads)
            rest = {}
        ops.view_step_(grads, draws, acc, delta_in, alpha, eps, **rest, grey=self.grey)


def symmetric(faces: Tensor) -> Tensor:
    """The two symmetric faces of each face: its left half and the mirror image of that, and so for its right half.

    Args:
        faces: [P, N, 3, H, W] float.

    Returns:
        [P, 2 N, 3, H, W]: first those of left halves.
    """
    side = faces.shape[-1]
    right = torch.sigmoid((torch.arange(side, device=faces.device, dtype=faces.dtype) - (side - 1) / 2) / SEAM)
    mirrored = faces.flip(-1)
    return torch.cat((torch.lerp(faces, mirrored, right), torch.lerp(mirrored, faces, right)), 1)


def jittering(numbers: Tensor) -> Tensor:
    """The numbers of a view whose geometry is that of "jitter".

    Args:
        numbers: [..., JITTERS] float in [0, 1): across, down, rotation and scale.

    Returns:
        [..., DRAWS] of the same dtype in [0, 1), the others 0.5.
    """
    return F.pad(0.5 + JITTER * (numbers - 0.5), (7, DRAWS - 7 - JITTERS), value=0.5)


def fade(faces: Tensor, draws: Tensor, textures: Tensor) -> Tensor:
    """What "mix" adds to faces, [n, 3, H, W], with the numbers [n, DRAWS]."""
    position = TEXTURES * draws[:, 12]
    which = position.long().clamp_max(TEXTURES - 1)  # the number may round up to 1
    return MIX * (position - which).view(-1, 1, 1, 1) * (textures[which] - faces)


def contrast_and_brightness(draws: Tensor) -> tuple[Tensor, Tensor]:
    """The factor on x - 0.5 and what is added, [n, 1, 1, 1] each, of "color"."""
    contrast, brightness = ((2 * draws[:, i] - 1).view(-1, 1, 1, 1) for i in (3, 4))
    return 1 + CONTRAST * contrast, BRIGHTNESS * brightness


def grid(draws: Tensor, size: Sequence[int], geometry: bool, flip: bool, place: Tensor | None) -> Tensor:
    """Where in pictures the pixels of views lie, as `grid_sample` takes it.

    Args:
        draws: [n, DRAWS].
        size: n, 3, h and w of the views.
        geometry, flip: whether these are on.
        place: [n, 2, 3], where in a picture the aligned face lies, as `affine_grid` takes it.
    """
    centred, side = 2 * draws - 1, size[-1]
    moves = centred[:, 7:11] if geometry else torch.zeros_like(centred[:, 7:11])
    mirror = 1 - 2 * (draws[:, 11] < 0.5).to(draws.dtype) if flip else torch.ones_like(draws[:, 11])
    angle = math.radians(ROTATION) * moves[:, 2]
    scale = torch.exp(SCALE * moves[:, 3])
    cos, sin = scale * torch.cos(angle), scale * torch.sin(angle)
    shift = 2 * SHIFT / side * moves[:, :2]
    theta = torch.stack((mirror * cos, -mirror * sin, shift[:, 0], sin, cos, shift[:, 1]), 1).view(-1, 2, 3)
    if place is not None:  # first moved as an aligned face, then found in the picture
        theta = place[..., :2] @ theta + F.pad(place[..., 2:], (2, 0))
    return F.affine_grid(theta, list(size), align_corners=False)


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
    weights = torch.softmax(distance**2 / (-2 * sigma.view(-1, 1, 1) ** 2 - 1e-6), -1)
    # No sum feels weights below _FAINT. Some are denormal numbers, with which a product takes 30 times as long.
    return F.threshold(weights, _FAINT, 0.0)


def make_textures(device: torch.device) -> Tensor:
    """Noise whose amplitude falls with frequency as in photos, most of it in common to the three channels.

    Returns:
        [TEXTURES, 3, 112, 112] float32 in [0, 1], the same in every process.
    """
    count, side = TEXTURES, TEXTURE_SIZE
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
    return textures.to(device)


# draws [P, b, DRAWS], x [P, b, 3, S, S], square -> rows [P, b, 1, S, S]: rows @ x @ rows.T
def _blur(draws: Tensor, x: Tensor) -> Tensor:
    return blur_matrix(BLUR * draws[..., 5].flatten(), x.shape[-1]).view(*draws.shape[:2], 1, *x.shape[-2:])


def round_trips(draws: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """R and C, symmetric, with which R x C^T is a picture that was resized into a photo and back.

    Args:
        draws: [n, DRAWS].
        size: n, 3, H and W of the pictures.

    Returns:
        [n, 1, H, H] and [n, 1, W, W].
    """
    rows, columns = (_round_trip(draws[:, 0], draws[:, i], size[1 + i])[:, None] for i in (1, 2))
    return rows, columns


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
