"""What happens to a photo before a face network sees it: services save and resize, adversaries smooth masks away."""

from collections.abc import Callable, Mapping
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from fastcloak.system.errors import MissingExtraError
from fastcloak.system.packages import require

Pixels = npt.NDArray[np.uint8]  # [H, W, 3], RGB
PostProcessing = Callable[[Pixels], Pixels]


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


def median(pixels: Pixels) -> Pixels:
    """Replace each pixel by the median of the 3x3 pixels around it, channel by channel."""
    return np.array(Image.fromarray(pixels).filter(ImageFilter.MedianFilter(3)))


def gaussian(pixels: Pixels, sigma: float) -> Pixels:
    """Blur; `sigma` is the standard deviation in pixels."""
    return np.array(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma)))


def non_local_means(pixels: Pixels, h: float) -> Pixels:
    """Average pixels whose surroundings look alike, by OpenCV: patches of 7 pixels, searched for within 21.

    Raises:
        MissingExtraError: OpenCV is not installed.
    """
    cv2 = require("cv2", extra="faces")
    bgr = np.ascontiguousarray(pixels[..., ::-1])
    denoised = cv2.fastNlMeansDenoisingColored(bgr, None, h, h, templateWindowSize=7, searchWindowSize=21)
    return np.ascontiguousarray(denoised[..., ::-1])


AS_SAVED = "as saved"
NON_LOCAL_MEANS = "non-local means"
# They look at pixels close together, and are applied around the face only.
FILTERS: Mapping[str, PostProcessing] = {
    "median": median,
    "Gaussian": lambda pixels: gaussian(pixels, 1),
    # 10 is what OpenCV's tutorial uses and people copy. Of a mask of 8 grey levels it leaves about half, and OpenCV's
    # default of 3 leaves 0.8; 15 leaves 0.3 to 0.5, and changes the photo more than the mask did (measured).
    NON_LOCAL_MEANS: lambda pixels: non_local_means(pixels, 10),
}
# Filters see the face and as much around it on each side. Larger faces are first made 224 pixels long: networks see
# 112, and the 3 pixels of a median change nothing in a face of 2,000.
FILTER_MARGIN, FILTER_FACE = 1.0, 224
POST_PROCESSING: Mapping[str, PostProcessing] = {
    AS_SAVED: lambda pixels: pixels,
    "JPEG 95": lambda pixels: jpeg(pixels, 95),
    "JPEG 75": lambda pixels: jpeg(pixels, 75),
    "JPEG 50": lambda pixels: jpeg(pixels, 50),
    "half size": lambda pixels: scaled(pixels, 0.5),
    "double size": lambda pixels: scaled(pixels, 2),
    "half size, JPEG 75": lambda pixels: jpeg(scaled(pixels, 0.5), 75),
    **FILTERS,
}


def available() -> dict[str, PostProcessing]:
    """What can be tried here: without OpenCV, all but non-local means."""
    try:
        require("cv2", extra="faces")
    except MissingExtraError:
        return {name: change for name, change in POST_PROCESSING.items() if name != NON_LOCAL_MEANS}
    return dict(POST_PROCESSING)
