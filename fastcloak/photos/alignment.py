"""A face in a photo -> the square of 112 pixels that face networks see, and the way back."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastcloak.system import packages

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Transform = npt.NDArray[np.float64]
Box = tuple[float, float, float, float]

SIZE = 112

# Eyes (left and right in the picture), nose, corners of the mouth: the ArcFace template, deepinsight/insightface.
TEMPLATE_112: Floats = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float32
)


@dataclass(frozen=True, eq=False)
class Face:
    """A face in a photo, in pixels of the photo.

    Attributes:
        box: (left, top, width, height); may reach beyond the photo.
        landmarks: [5, 2], float32, (x, y) of both eyes, nose and both corners of the mouth, in the template's order.
        score: 0..1, the detector's confidence.
        uncertain: which way up the face is cannot be told; `landmarks` are the best guess.
    """

    box: Box
    landmarks: Floats
    score: float
    uncertain: bool = False

    @property
    def turn(self) -> float:
        """Degrees from -180 to 180 by which the photo must be turned clockwise for this face to stand upright."""
        (cos, _, _), (sin, _, _) = similarity_transform(self.landmarks, TEMPLATE_112)
        return math.degrees(math.atan2(sin, cos))


ALIGNED_FACE = Face((0.0, 0.0, float(SIZE), float(SIZE)), TEMPLATE_112, 1.0)
"""The face of a photo of 112x112 pixels, which counts as aligned."""


def check_pixels(pixels: Pixels) -> None:
    """Refuse what is not a photo's pixels: uint8, [H, W, 3], at least one pixel.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        got = f"{pixels.dtype} {list(pixels.shape)}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise ValueError(f"pixels must be a uint8 array [H, W, 3], RGB, got {got}; read_photo gives one")
    if 0 in pixels.shape:
        raise ValueError(f"pixels must hold at least one pixel, got {list(pixels.shape)}; pass a photo")


def similarity_transform(source: npt.ArrayLike, target: npt.ArrayLike) -> Transform:
    """Rotation, scale and shift that take `source` to `target` with least squares, without reflection.

    Args:
        source: [m, 2], m >= 2 points that do not all coincide.
        target: [m, 2].

    Returns:
        [2, 3], float64: target ~ transform[:, :2] @ point + transform[:, 2].

    Raises:
        ValueError: other shapes, or all source points coincide.

    Source: Umeyama, "Least-squares estimation of transformation parameters between two point patterns", 1991.
    """
    a, b = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if a.shape != b.shape or a.ndim != 2 or a.shape[1] != 2 or len(a) < 2:
        raise ValueError(f"source and target must both be [m, 2] with m >= 2, got {list(a.shape)} and {list(b.shape)}")
    a_mean, b_mean = a.mean(0), b.mean(0)
    a, b = a - a_mean, b - b_mean
    spread = (a**2).sum()
    if not spread > 0:
        raise ValueError(
            f"source must hold points that differ, got {len(a)} times {a_mean.tolist()}; check the landmarks"
        )
    # In the plane the best rotation and scale have a closed form: the mean of conj(a) * b over complex numbers.
    scaled_cos, scaled_sin = (a * b).sum() / spread, (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() / spread
    turn = np.array([[scaled_cos, -scaled_sin], [scaled_sin, scaled_cos]])
    return np.column_stack([turn, b_mean - turn @ a_mean])


def inverse(transform: Transform) -> Transform:
    """The transform back."""
    back = np.linalg.inv(transform[:, :2])
    return np.column_stack([back, -back @ transform[:, 2]])


def align(pixels: Pixels, face: Face) -> tuple[Pixels, Transform]:
    """Cut out a face as face networks expect it.

    Args:
        pixels: [H, W, 3], uint8, RGB.
        face: one of `detect(pixels)`.

    Returns:
        The crop, [112, 112, 3], uint8, black where the photo ends, and the transform photo -> crop.
    """
    check_pixels(pixels)
    transform = similarity_transform(face.landmarks, TEMPLATE_112)
    crop = warp(pixels, transform, SIZE, SIZE)
    return np.rint(crop).clip(0, 255).astype(np.uint8), transform


def warp(
    picture: Pixels | Floats,
    transform: Transform,
    width: int,
    height: int,
    *,
    extend: bool = False,
) -> Floats:
    """Resample a picture by a similarity transform, linearly, averaged over each new pixel where the picture shrinks.

    Args:
        picture: [h, w, C], uint8 or float32.
        transform: [2, 3], picture -> result.
        width: of the result.
        height: of the result.
        extend: beyond the picture its border goes on, instead of zeros.

    Returns:
        [height, width, C], float32, on the picture's own scale.
    """
    cv2 = packages.require("cv2", extra="faces")
    scale = math.sqrt(abs(np.linalg.det(transform[:, :2])))
    # Sample on a grid `fine` times as fine, about as fine as the picture, and take the mean of each cell.
    fine = max(1, math.ceil(1 / scale - 0.25))
    finer = fine * transform + [0, 0, (fine - 1) / 2]
    # OpenCV's float path holds no rounding, its uint8 path rounds each sample to a grey level before the mean: enough.
    result = cv2.warpAffine(
        picture,
        finer,
        (fine * width, fine * height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE if extend else cv2.BORDER_CONSTANT,
    )
    if fine > 1:
        result = cv2.resize(result, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(result, np.float32)


def iou(a: Box, b: Box) -> float:
    """Shared area of two boxes (left, top, width, height) over the area that they cover together, 0 to 1."""
    across = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    down = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(across, 0) * max(down, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)
