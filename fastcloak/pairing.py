"""Whether two photos show the same picture, whatever a service did to one: saved, resized, made grey or brighter.

Both are made small, 24 pixels on the long side, and the differences a and b between neighbouring pixels are compared:

    likeness = 2 <a, b> / (|a|^2 + |b|^2)

It is 1 for the same picture, and lower for another scene, another pose, another place in the picture or another
contrast.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["COPY_SIDE", "LEAST_LIKENESS", "check_same_face", "check_same_picture", "edges", "likeness"]

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Box = npt.NDArray[np.float64]

# Measured on LFW photos of 250 pixels, whole and cut to the face. Protected photos, with masks of 8 to 32 grey levels,
# reach 0.83 or more: as saved, after JPEG 20 and 75, at a half and a third of the size, grey, with 0.6 of the contrast
# or a gamma of 1.5. Photos of other people reach 0.57 at most, other photos of the person 0.64, photos shifted by 4 %
# 0.63, cut by 5 % at each edge 0.68, mirrored ones 0.72. Aligned faces reach 0.84 with masks of 16 grey levels, 0.74
# with 32. Photos taken one after the other can be alike: 4 % of the pairs of ORL, whose people sit still, reach 0.8.
LEAST_LIKENESS = 0.8
SIDE = 24
# Aligned faces that may be copies: those of two people reach 0.78 at most (495,300 pairs of LFW photos). Copies that
# were saved as JPEG 20 to 95, or half or double the size, and aligned again reach 0.84 or more.
COPY_SIDE = 16
# Photos of one size outside the face: JPEG 10 reaches 0.89 or more, and photos shifted by 1 % 0.78 at most.
FINE_SIDE = 64
# A picture shows nothing where neighbours differ by fewer grey levels than this (root mean square).
FLAT = 2.0
# What is compared around the detector's box, in shares of it: about the square that a cloak covers.
FACE_MARGIN = 0.17

TURNS = {
    Image.Transpose.ROTATE_90: "turned by 90 degrees",
    Image.Transpose.ROTATE_180: "turned by 180 degrees",
    Image.Transpose.ROTATE_270: "turned by 90 degrees",
    Image.Transpose.FLIP_LEFT_RIGHT: "mirrored",
    Image.Transpose.FLIP_TOP_BOTTOM: "turned by 180 degrees and mirrored",
    Image.Transpose.TRANSPOSE: "turned by 90 degrees and mirrored",
    Image.Transpose.TRANSVERSE: "turned by 90 degrees and mirrored",
}


def check_same_picture(original: Pixels, protected: Pixels) -> None:
    """Refuse two photos of which one cannot come from the other by saving, resizing and small changes.

    Args:
        original: [H, W, 3], uint8, RGB.
        protected: the same, of any size.

    Raises:
        ValueError: another shape, turned, mirrored, or another picture.
    """
    before, after = Image.fromarray(original).convert("L"), Image.fromarray(protected).convert("L")
    found = _likeness(before, after)
    if found >= LEAST_LIKENESS:
        return
    for turn, words in TURNS.items():
        if _likeness(before, after.transpose(turn)) >= LEAST_LIKENESS:
            raise ValueError(
                f"not a pair: the protected photo must be upright as its original is, got it {words}; turn it back"
            )
    if not _one_shape(before, after):
        raise ValueError(
            f"not a pair: the protected photo must have the shape of its original, {before.width}x{before.height} "
            f"pixels, got {after.width}x{after.height}; resized photos can be checked, cropped ones cannot"
        )
    raise _another("picture", found)


def check_same_face(original: Pixels, protected: Pixels, box: Box) -> None:
    """Refuse two photos whose faces are not the same picture, or, if they have one size, what is around the face.

    Args:
        original: [H, W, 3], uint8, RGB.
        protected: the same, of any size.
        box: (left, top, width, height) of the face, in shares of the photo.

    Raises:
        ValueError: the face, or what is around it, is another picture.
    """
    near = np.concatenate([box[:2] - FACE_MARGIN * box[2:], box[:2] + (1 + FACE_MARGIN) * box[2:]]).clip(0, 1)
    faces = []
    for pixels in (original, protected):
        height, width = pixels.shape[:2]
        left, top, right, bottom = (near * [width, height, width, height]).tolist()
        grey = Image.fromarray(pixels).convert("L")
        # JPEG leaves little of the pixels of a small face.
        side = min(SIDE, math.ceil(max(right - left, bottom - top) / 1.5))
        faces.append(grey.resize((side, side), Image.Resampling.LANCZOS, (left, top, right, bottom)))
    if (found := _likeness(faces[0], faces[1])) < LEAST_LIKENESS:
        raise _another("face", found)
    if original.shape == protected.shape:
        rest = protected.copy()
        inside = slice(int(top), math.ceil(bottom)), slice(int(left), math.ceil(right))
        rest[inside] = original[inside]
        found = _likeness(Image.fromarray(original).convert("L"), Image.fromarray(rest).convert("L"), FINE_SIDE)
        if found < LEAST_LIKENESS:
            raise _another("picture around the face", found)


def edges(picture: Image.Image, width: int, height: int) -> Floats:
    """Differences between neighbouring pixels, across and down, of a grey picture made small, [K]."""
    grey = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS), np.float32)
    return np.concatenate([np.diff(grey, axis=1).ravel(), np.diff(grey, axis=0).ravel()])


def likeness(a: Floats, b: Floats) -> Floats:
    """Likeness of every two pictures by their `edges`, [n, K] and [m, K] -> [n, m]; 0 where both show nothing."""
    total = (a * a).sum(1)[:, None] + (b * b).sum(1)[None]
    alike: Floats = 2 * (a @ b.T) / np.maximum(total, 2 * FLAT**2 * a.shape[1])
    return alike


def _likeness(before: Image.Image, after: Image.Image, side: int = SIDE) -> float:
    """Of two grey photos; 1 where both show nothing, -1 where they have not one shape."""
    if not _one_shape(before, after):
        return -1.0
    # No finer than either is.
    side = min(side, max(before.size), max(after.size))
    width, height = (max(1, round(side * length / max(before.size))) for length in before.size)
    a, b = edges(before, width, height), edges(after, width, height)
    if a.size == 0 or max((a * a).mean(), (b * b).mean()) < FLAT**2:
        return 1.0
    return float(likeness(a[None], b[None])[0, 0])


def _one_shape(before: Image.Image, after: Image.Image) -> bool:
    """Whether one size can come from the other by scaling and rounding each side to a whole pixel."""
    apart = abs(after.width * before.height - after.height * before.width)
    return apart <= max(sum(before.size), sum(after.size))


def _another(what: str, found: float) -> ValueError:
    return ValueError(
        f"not a pair: the protected photo must show the {what} of its original, little changed, got another one "
        f"(likeness {found:.2f}, expected {LEAST_LIKENESS} or more); compare the two photos and their names"
    )
