"""Is this cloak already in this face? A matched filter, so that no photo gets the same mask twice.

Both the aligned face x and the mask m lose what is smooth, which is most of a face and little of a mask:

    correlation = max over small similarities T of <h(x), h(T m)> / (|h(x)| |h(T m)|),    h = picture - blur

The face is found again in the protected photo, a little turned, scaled and shifted against where the mask was laid: the
maximum goes over these. Shifts come together from one Fourier transform.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch

from fastcloak.photos.alignment import SIZE, Floats, Pixels

__all__ = ["PRESENT", "carries", "correlation"]

PRESENT = 0.10
"""Correlation from which a mask counts as found; recloak_lfw.csv, `python -m bench.protection.recloak`."""

BLUR = 2.0
"""Sigma in pixels of the crop. With 1 or 3 clean and protected faces are less far apart."""
LARGEST_EDGE = 16.0
"""Grey levels: edges of the photo beyond are cut, masks have 8."""
TURNS = [math.radians(1.5 * i) for i in range(-4, 5)]
SCALES = [1 + 0.025 * i for i in range(-2, 3)]
"""A mask is fine: 1.5 degrees or 2.5 % off halve the correlation. 9 of 10 faces were within half of these ranges."""
SHIFT = 4
"""Pixels of the crop, in both directions."""


def carries(crop: Pixels, delta: Floats) -> bool:
    """Whether a mask was added to a face before; arguments are those of `correlation`."""
    return correlation(crop, delta) >= PRESENT


def correlation(crop: Pixels, delta: Floats) -> float:
    """How much of a mask is in a face.

    Args:
        crop: [112, 112, 3], uint8, the aligned face.
        delta: [112, 112, C], float32, the mask; with C = 1 that of a grey photo.

    Returns:
        0 for none; about 0.35 right after the mask was added, about 0.2 after JPEG 50, at most 1.
    """
    face = _without_smooth(torch.from_numpy(crop[..., : delta.shape[2]].astype(np.float32)).permute(2, 0, 1)[None])
    face = face.clamp(-LARGEST_EDGE, LARGEST_EDGE)
    size = torch.linalg.vector_norm(face)
    if not size > 0:  # a picture of one colour
        return 0.0
    found = torch.fft.irfft2((torch.fft.rfft2(face / size) * _masks(delta.tobytes())).sum(1), s=(SIZE, SIZE))
    near = found.roll((SHIFT, SHIFT), (-2, -1))[:, : 2 * SHIFT + 1, : 2 * SHIFT + 1]
    return float(near.max())


# A few people's masks, 5 MB each: to turn and transform one takes as long as ten faces.
@lru_cache(maxsize=4)
def _masks(payload: bytes) -> torch.Tensor:
    """Conjugate spectra [T, C, 112, 57] of a mask, turned and scaled about the middle, each of length 1."""
    delta = torch.from_numpy(np.frombuffer(payload, np.float32).reshape(SIZE, SIZE, -1).copy()).permute(2, 0, 1)
    moves = [
        [[scale * math.cos(turn), -scale * math.sin(turn), 0], [scale * math.sin(turn), scale * math.cos(turn), 0]]
        for turn in TURNS
        for scale in SCALES
    ]
    shape = [len(moves), len(delta), SIZE, SIZE]
    grid = torch.nn.functional.affine_grid(torch.tensor(moves, dtype=torch.float32), shape, align_corners=False)
    warped = torch.nn.functional.grid_sample(delta.expand(shape), grid, padding_mode="border", align_corners=False)
    masks = _without_smooth(warped)
    masks /= torch.linalg.vector_norm(masks, dim=(1, 2, 3), keepdim=True).clamp_min(1e-3)
    spectra: torch.Tensor = torch.fft.rfft2(masks).conj()
    return spectra


def _without_smooth(pictures: torch.Tensor) -> torch.Tensor:  # [T, C, 112, 112]
    reach = int(3 * BLUR)
    weights = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * BLUR**2))
    weights /= weights.sum()
    T, C = pictures.shape[:2]
    padded = torch.nn.functional.pad(pictures, (reach, reach, reach, reach), mode="reflect")
    rows = torch.nn.functional.conv2d(padded.reshape(T * C, 1, *padded.shape[2:]), weights.reshape(1, 1, 1, -1))
    blurred = torch.nn.functional.conv2d(rows, weights.reshape(1, 1, -1, 1))
    return pictures - blurred.reshape(pictures.shape)
