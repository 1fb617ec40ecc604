"""A mask laid over a face in a photo."""

import math

import numpy as np

from fastcloak.cloak import Cloak
from fastcloak.photos.alignment import (
    SIZE,
    TEMPLATE_112,
    Face,
    Floats,
    Pixels,
    Transform,
    inverse,
    similarity_transform,
    warp,
)
from fastcloak.system import packages

# Width in pixels of the crop over which the mask fades out towards the border of the aligned square. With 4, Top-1 is 1
# and 3 % less for faces of 64 and 128 pixels (the people and networks below).
FEATHER = 1.0
# Top-1 on eight people of LFW (MobileFaceNet, learnt on SFace and dlib, JPEG 90), without fading, with faces of 64, 128
# and 224 pixels: 46, 67, 71 % with 4; 48, 70, 73 with 8; 51, 71, 74 with 16.
STRENGTH = 16.0


def face_mask(
    delta: Floats, face: Face, eps: float, width: int, height: int
) -> tuple[tuple[slice, slice], Floats, float]:
    """Lay a mask over a face.

    Args:
        delta: [112, 112, C], float32, on the [0, 1] scale.
        face: where.
        eps: bound of the result.
        width, height: of the photo.

    Returns:
        The rows and columns of the photo that it covers, possibly none; the mask there, [h, w, C], float32, |mask| at
        most eps and the largest |delta|, 0 outside the aligned square; the side of that square in pixels of the photo.
    """
    to_crop = similarity_transform(face.landmarks, TEMPLATE_112)
    to_photo = inverse(to_crop)
    side = SIZE * float(np.sqrt(np.linalg.det(to_photo[:, :2])))
    edge = np.array([-0.5, SIZE - 0.5])
    corners = np.stack(np.meshgrid(edge, edge), -1).reshape(4, 2) @ to_photo[:, :2].T + to_photo[:, 2]
    left, top = np.floor(corners.min(0)).clip(0, [width, height]).astype(int)
    right, bottom = (np.ceil(corners.max(0)) + 1).clip([left, top], [width, height]).astype(int)
    region = slice(top, bottom), slice(left, right)
    if right == left or bottom == top:
        return region, np.zeros((bottom - top, right - left, delta.shape[2]), np.float32), side
    to_region = to_photo - np.array([[0, 0, left], [0, 0, top]])
    mask = spread(delta, to_region, right - left, bottom - top)
    x, y = np.arange(left, right, dtype=np.float32), np.arange(top, bottom, dtype=np.float32)[:, None]
    u, v = (row[0] * x + row[1] * y + row[2] for row in to_crop.astype(np.float32))
    # Distance to the square's border, inside positive: the square reaches from -0.5 to 111.5.
    distance = SIZE / 2 - np.maximum(np.abs(u - (SIZE - 1) / 2), np.abs(v - (SIZE - 1) / 2))
    window = (distance / FEATHER).clip(0, 1)
    largest = min(eps, float(np.abs(delta).max()))
    mask *= STRENGTH
    mask.clip(-largest, largest, out=mask)
    mask *= window[..., None]
    return region, mask, side


def spread(delta: Floats, to_photo: Transform, width: int, height: int) -> Floats:
    """What each pixel of a photo should add, so that most of a mask is in the face that is aligned again.

    Whoever aligns a face takes each of its pixels from four of the photo, linear between them, wherever they happen to
    lie. So a pixel of the photo counts in all that is less than a pixel away, and gets the mean of the mask there,
    weighed by how much it counts: the adjoint of the alignment, on average over where its samples fall.

    Args:
        delta: [h, w, C], float32.
        to_photo: [2, 3], mask -> photo.
        width, height: of the photo.

    Returns:
        [height, width, C], float32, on the scale of delta.
    """
    cv2 = packages.require("cv2", extra="faces")
    scale = math.sqrt(np.linalg.det(to_photo[:, :2]))
    # On a grid `fine` times as fine, the mean of means over a pixel's width. A mask that is made so large is smooth.
    fine = max(3, math.ceil(1 / scale) | 1) if scale < 3 else 1
    mask = warp(delta, fine * to_photo + [0, 0, (fine - 1) / 2], fine * width, fine * height, extend=True)
    if fine > 1:
        mask = cv2.resize(cv2.blur(mask, (fine, fine)), (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(mask, np.float32).reshape(height, width, -1)


def is_grey(pixels: Pixels) -> bool:
    """Whether three channels are equal, [H, W, 3] uint8."""
    few = pixels[::16, ::16]  # of a colour photo these say so at once
    return all(bool((part == part[..., :1]).all()) for part in (few, pixels))


def channels_last(cloak: Cloak, grey: bool) -> Floats:
    """The mask as photos lie in memory, [112, 112, 3], or [112, 112, 1] for grey photos."""
    delta: Floats = np.ascontiguousarray(cloak.delta.permute(1, 2, 0).numpy())
    if not grey:
        return delta
    # Where channels disagree the mean is small. Mean cosine to the clean photos of four ORL people, after 16 OPOM steps
    # on SFace: unprotected 0.76 on SFace and 0.72 on dlib; with the mask -0.12 and 0.58; with its mean 0.46 and 0.63;
    # with the enlarged mean 0.34 and 0.58.
    mean = delta.mean(-1, keepdims=True)
    size = float(np.abs(mean).mean())
    gain = min(float(np.abs(delta).mean()) / size, 3.0) if size > 0 else 1.0
    grey_delta: Floats = (gain * mean).clip(-cloak.eps, cloak.eps)
    return grey_delta


def added(pixels: Pixels, original: Pixels, mask: Floats, eps: float) -> Pixels:
    """Pixels with a mask added, rounded, within eps of the original.

    `pixels` holds the masks of other faces where squares overlap; their sum stays within eps of the original too.
    """
    start = original.astype(np.float32)
    protected = np.multiply(mask, 255, dtype=np.float32)
    protected = protected + (pixels - start) if mask.shape[2] == 1 else np.add(protected, pixels - start, out=protected)
    protected.clip(-255 * eps, 255 * eps, out=protected)
    protected += start
    np.rint(protected, out=protected).clip(0, 255, out=protected)
    rounded: Pixels = protected.astype(np.uint8)
    return rounded
