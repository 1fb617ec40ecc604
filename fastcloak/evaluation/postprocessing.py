"""What services and people do to a photo before a face network sees it: save as JPEG, resize, both."""

from collections.abc import Callable, Mapping
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]  # [H, W, 3], RGB


def jpeg(pixels: Pixels, quality: int, *, subsampling: str = "4:2:0") -> Pixels:
    """Save as JPEG and read again; colour has half the resolution, as most services take it."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=subsampling)
    with Image.open(file) as picture:
        return np.array(picture)


def resized(pixels: Pixels, width: int, height: int) -> Pixels:
    """Resample by Lanczos, which averages over each new pixel where the picture shrinks."""
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def scaled(pixels: Pixels, factor: float) -> Pixels:
    """Resample to `factor` times its sides, at least 1 pixel each."""
    height, width = pixels.shape[:2]
    return resized(pixels, max(1, round(factor * width)), max(1, round(factor * height)))


AS_SAVED = "as saved"
POST_PROCESSING: Mapping[str, Callable[[Pixels], Pixels]] = {
    AS_SAVED: lambda pixels: pixels,
    "JPEG 95": lambda pixels: jpeg(pixels, 95),
    "JPEG 75": lambda pixels: jpeg(pixels, 75),
    "JPEG 50": lambda pixels: jpeg(pixels, 50),
    "half size": lambda pixels: scaled(pixels, 0.5),
    "double size": lambda pixels: scaled(pixels, 2),
    "half size, JPEG 75": lambda pixels: jpeg(scaled(pixels, 0.5), 75),
}
