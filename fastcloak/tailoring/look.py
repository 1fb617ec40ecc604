"""How far each pixel of a canvas may change, so that the eye sees little of it.

Eyes forgive changes among edges and texture, and see the same change on smooth skin or sky. What a mask reaches follows
the mean bound, hardly its shape, so that the shape is free to please the eye: docs/albums.md has what was measured.
"""

from __future__ import annotations

import numpy as np

from fastcloak.photos.alignment import Floats
from fastcloak.system import packages
from fastcloak.tailoring.canvas import Canvas
from fastcloak.tailoring.options import LOOKS, TailorConfig

LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
NEIGHBOURHOOD = 2.0
"""Pixels: sigma of the Gaussian window in which contrast is measured."""
FLAT = 2.0
"""Grey levels of contrast that even a flat area is given: the noise of cameras."""
HALVINGS = 30


def bounds(canvas: Canvas, config: TailorConfig) -> Floats:
    """The largest change of each pixel of a canvas.

    Args:
        canvas: of a face.
        config: its `look`, and its `eps`, the mean over the canvas's window.

    Returns:
        [160, 160, 3] float32 on the [0, 1] scale, 0 outside the window.
    """
    assert config.eps is not None
    low, high = LOOKS[config.look][0] * config.eps, config.largest
    bound = np.full_like(canvas.window, config.eps)
    if low < high:
        contrast = _contrast(canvas.picture @ LUMINANCE) + FLAT
        bound = _with_mean(contrast, contrast[canvas.window > 0], low, high, config.eps)
    return np.repeat((bound * canvas.window)[..., None], 3, 2)


def _contrast(luminance: Floats) -> Floats:  # [H, W]
    """Local standard deviation, in grey levels."""
    cv2 = packages.require("cv2", extra="faces")

    def near(picture: Floats) -> Floats:
        blurred: Floats = cv2.GaussianBlur(picture, (0, 0), NEIGHBOURHOOD)
        return blurred

    variance = near(luminance**2) - near(luminance) ** 2
    contrast: Floats = np.sqrt(variance.clip(0))
    return contrast


def _with_mean(contrast: Floats, inside: Floats, low: float, high: float, mean: float) -> Floats:
    """The multiple of the contrast that, cut to [low, high], has this mean inside: found by halving an interval."""
    least, most = 0.0, high / FLAT
    for _ in range(HALVINGS):
        middle = (least + most) / 2
        if (middle * inside).clip(low, high).mean() < mean:
            least = middle
        else:
            most = middle
    bound: Floats = (most * contrast).clip(low, high)
    return bound
