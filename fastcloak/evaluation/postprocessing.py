"""What services and people do to a photo before a face network sees it: save as JPEG, resize, both."""

from collections.abc import Callable, Mapping
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = [
    "AS_SAVED",
    "SURVIVALS",
    "as_saved",
    "double_size",
    "half_size",
    "half_size_jpeg75",
    "jpeg",
    "resized",
]

Pixels = npt.NDArray[np.uint8]

AS_SAVED = "as saved"


def as_saved(pixels: Pixels) -> Pixels:
    """Leave the photo as it is, [H, W, 3] uint8."""
    return pixels


def jpeg(pixels: Pixels, quality: int, *, subsampling: str = "4:2:0") -> Pixels:
    """Save as JPEG and read again.

    Args:
        pixels: [H, W, 3], uint8, RGB.
        quality: 1..100.
        subsampling: of colour; half resolution is what most services take.
    """
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=subsampling)
    with Image.open(file) as picture:
        return np.array(picture)


def resized(pixels: Pixels, width: int, height: int) -> Pixels:
    """Resample to another size: Lanczos, which averages over each new pixel where the picture shrinks.

    Args:
        pixels: [H, W, 3], uint8, RGB.
        width: of the result, 1 or more.
        height: of the result, 1 or more.
    """
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def half_size(pixels: Pixels) -> Pixels:
    """[H, W, 3] uint8 -> about half as wide and high, at least 1 pixel."""
    return resized(pixels, max(1, round(pixels.shape[1] / 2)), max(1, round(pixels.shape[0] / 2)))


def double_size(pixels: Pixels) -> Pixels:
    """[H, W, 3] uint8 -> twice as wide and high."""
    return resized(pixels, 2 * pixels.shape[1], 2 * pixels.shape[0])


def half_size_jpeg75(pixels: Pixels) -> Pixels:
    """[H, W, 3] uint8 -> half size, then JPEG of quality 75."""
    return jpeg(half_size(pixels), 75)


SURVIVALS: Mapping[str, Callable[[Pixels], Pixels]] = {
    AS_SAVED: as_saved,
    "JPEG 95": lambda pixels: jpeg(pixels, 95),
    "JPEG 75": lambda pixels: jpeg(pixels, 75),
    "JPEG 50": lambda pixels: jpeg(pixels, 50),
    "half size": half_size,
    "double size": double_size,
    "half size, JPEG 75": half_size_jpeg75,
}
