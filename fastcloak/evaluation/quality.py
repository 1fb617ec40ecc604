"""How far a protected picture is from its original, in numbers; each is None where it cannot be measured.

No number sees as people do, and they disagree. At one mean strength a mask that is even over the face has the better
PSNR, and one that follows its texture the better SSIM and SSIMULACRA2; CIEDE2000 hardly tells them apart (31.3 and 30.4
dB, 0.84 and 0.88, 55 and 62, 4.3 and 4.4 on eight faces with masks of 7 grey levels, measured). Look at the pictures.
"""

from __future__ import annotations

import math
from io import BytesIO
from types import ModuleType

import numpy as np
from PIL import Image

from fastcloak.evaluation.postprocessing import Pixels, scaled
from fastcloak.system.errors import MissingExtraError
from fastcloak.system.packages import require

# Pixels: SSIM's window, and the least that SSIMULACRA2 takes.
_WINDOW, _LEAST_SIDE = 7, 8
# SSIMULACRA2 has six scales, of 8 pixels or more each. With fewer, 0.3.0 gives every scale the weight of another one,
# as the original in C++ does. Parts of a picture of 48 to 160 pixels then score anything from 31 to 72 where the whole
# scores 58, and masks that follow texture score worse than even ones, which they do not in larger pictures. Mirrored
# at their edges until they are as large, the same parts score 59 to 61 (measured).
_SIX_SCALES = 8 * 2**5
# No screen shows a face larger; SSIMULACRA2 takes 0.5 GB there.
_SCREEN = 1024
# CIEDE2000 takes 64 bytes a pixel and more.
_PIXELS_AT_ONCE = 1 << 18


def largest_change(original: Pixels, protected: Pixels) -> int:
    """The largest change of a value, in grey levels."""
    return int(np.abs(original.astype(np.int16) - protected).max())


def psnr(original: Pixels, protected: Pixels) -> float | None:
    """Peak signal to noise ratio in dB; infinite where nothing changed. None without scikit-image."""
    metrics = _optional("skimage.metrics")
    if metrics is None:
        return None
    if np.array_equal(original, protected):
        return math.inf
    # float32 halves the memory of float64, in which scikit-image would compute on uint8.
    return float(metrics.peak_signal_noise_ratio(*map(np.float32, (original, protected)), data_range=255))


def ssim(original: Pixels, protected: Pixels) -> float | None:
    """Structural similarity, 1 where nothing changed. None without scikit-image, and below 7 pixels."""
    metrics = _optional("skimage.metrics")
    if metrics is None or min(original.shape[:2]) < _WINDOW:
        return None
    if np.array_equal(original, protected):
        return 1.0
    a, b = original.astype(np.float32), protected.astype(np.float32)
    return float(metrics.structural_similarity(a, b, data_range=255, channel_axis=2))


def ciede2000(original: Pixels, protected: Pixels) -> float | None:
    """Mean colour difference of the pixels: 0 where nothing changed, 1 can just be seen. None without scikit-image.

    Source: Sharma, Wu, Dalal, "The CIEDE2000 color-difference formula", 2005; sRGB, D65.
    """
    color = _optional("skimage.color")
    if color is None:
        return None
    rows = max(1, _PIXELS_AT_ONCE // original.shape[1])
    total = 0.0
    for top in range(0, len(original), rows):
        a, b = (color.rgb2lab(picture[top : top + rows]) for picture in (original, protected))
        total += float(color.deltaE_ciede2000(a, b).sum())
    return total / int(np.prod(original.shape[:2]))


def ssimulacra2(original: Pixels, protected: Pixels) -> float | None:
    """SSIMULACRA2: 100 where nothing changed; to its authors 90 is excellent, 70 high, 50 medium; may be below 0.

    Small pictures are mirrored at their edges, those of more than 1024 pixels scaled down. None without the package
    ssimulacra2, and below 8 pixels.
    """
    package = _optional("ssimulacra2")
    if package is None or min(original.shape[:2]) < _LEAST_SIDE:
        return None
    if np.array_equal(original, protected):
        return 100.0
    files = []
    for picture in (original, protected):
        if max(picture.shape) > _SCREEN:
            picture = scaled(picture, _SCREEN / max(picture.shape))
        around = [(0, max(0, _SIX_SCALES - side)) for side in picture.shape[:2]]
        # It takes files only.
        file = BytesIO()
        Image.fromarray(np.pad(picture, [*around, (0, 0)], mode="symmetric")).save(file, "PPM")
        files.append(file)
    return float(package.compute_ssimulacra2(*files))


def _optional(module: str) -> ModuleType | None:
    try:
        return require(module, extra="report")
    except MissingExtraError:
        return None
