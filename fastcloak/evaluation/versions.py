"""One photo before and after protection: its face after every post-processing, and how far the two are apart."""

from __future__ import annotations

import logging
import math
from io import BytesIO

import numpy as np
from PIL import Image

from fastcloak.evaluation.pairing import Box, check_same_face, check_same_picture
from fastcloak.evaluation.postprocessing import POST_PROCESSING, Pixels, resized
from fastcloak.evaluation.results import FacePictures, PhotoCheck
from fastcloak.photos.alignment import SIZE, Face, align, iou
from fastcloak.photos.detection import UNCERTAIN, detect, find_faces
from fastcloak.system.errors import FaceNotFoundError, MissingExtraError
from fastcloak.system.packages import require

# The face in the original and in the protected photo, [112, 112, 3], after every post-processing; None: not found.
Versions = list[list[Pixels | None]]
# Largest change in grey levels, PSNR in dB, SSIM.
Distance = tuple[int | None, float | None, float | None]

# A face that overlaps less is another one.
LEAST_OVERLAP = 0.3
# The pictures of a report: longest side in pixels, and how much of the photo around the face's box they show.
PICTURE_SIDE, PICTURE_MARGIN = 480, 0.4
# No change is drawn as this grey level, and changes this many times as large as they are.
MID_GREY, GAIN = 128, 10


def compare(name: str, original: Pixels, protected: Pixels, keep_pictures: bool) -> tuple[PhotoCheck, Versions]:
    """Measure how far a protected photo is from its original, and find the face in every version of both.

    Raises:
        ValueError: the two are not the same picture, or the original shows no face.
    """
    check_same_picture(original, protected)
    height, width = original.shape[:2]
    same_size = original.shape == protected.shape
    faces, box, turn = 1, np.array([0.0, 0.0, 1.0, 1.0]), None
    if (height, width) != (SIZE, SIZE):
        found = find_faces(original, who="all", name=name)
        face = max(found, key=lambda face: _mean_change(face, original, protected)) if same_size else found[0]
        faces, box = len(found), _share(face, original)
        check_same_face(original, protected, box)
        turn = 90 * round(face.turn / 90)  # in no version is the face taken to be another way up
        if face.uncertain:
            logging.getLogger("fastcloak").warning("%s: %s", name, UNCERTAIN)
    whole: Distance = (None, None, None)
    inside = whole
    if same_size:
        region = _region(box, original)
        whole, inside = _distance(original, protected), _distance(original[region], protected[region])
    pictures = face_pictures(original, protected, box) if keep_pictures else None
    photo = PhotoCheck(name, width, height, faces, *whole, *inside, pictures)
    versions = [
        [_crop(change(side), box, turn) for change in POST_PROCESSING.values()] for side in (original, protected)
    ]
    if versions[0][0] is None:
        raise FaceNotFoundError(f"{name} must show a face that is found twice, got one that is not; leave it out")
    return photo, versions


def _share(face: Face, pixels: Pixels) -> Box:
    height, width = pixels.shape[:2]
    return np.array(face.box) / [width, height, width, height]


def _region(box: Box, pixels: Pixels, margin: float = 0.0) -> tuple[slice, slice]:
    """Rows and columns of a box, at least one pixel of each."""
    slices = []
    for axis in (1, 0):  # of the box: down, across
        length = pixels.shape[1 - axis]
        start = (box[axis] - margin * box[axis + 2]) * length
        end = (box[axis] + (1 + margin) * box[axis + 2]) * length
        first, last = sorted((int(np.clip(round(start), 0, length - 1)), int(np.clip(round(end), 1, length))))
        slices.append(slice(first, max(last, first + 1)))
    return slices[0], slices[1]


def _mean_change(face: Face, original: Pixels, protected: Pixels) -> float:
    inside = _region(_share(face, original), original)
    return float(np.abs(original[inside].astype(np.int16) - protected[inside]).mean())


def _crop(pixels: Pixels, box: Box, turn: int | None) -> Pixels | None:
    """The face as a recogniser would see it: found again, near its box; `turn` None: the photo is an aligned face."""
    if turn is None:
        return resized(pixels, SIZE, SIZE)
    height, width = pixels.shape[:2]
    left, top, across, down = (box * [width, height, width, height]).tolist()
    # Small faces are looked for, which takes longer, only where the one that is meant was not found.
    for thorough in (False, True):
        faces = detect(pixels, thorough=thorough, turn=turn)
        overlaps = [iou(face.box, (left, top, across, down)) for face in faces]
        if max(overlaps, default=0.0) >= LEAST_OVERLAP:
            return align(pixels, faces[int(np.argmax(overlaps))])[0]
    return None


def _distance(original: Pixels, protected: Pixels) -> Distance:
    """PSNR and SSIM are None without scikit-image; SSIM also where a side is too short for its window of 7 pixels."""
    change = int(np.abs(original.astype(np.int16) - protected).max())
    try:
        metrics = require("skimage.metrics", extra="report")
    except MissingExtraError:
        return change, None, None
    if change == 0:
        return change, math.inf, 1.0
    # float32 halves the memory of float64, in which scikit-image would compute on uint8.
    a, b = original.astype(np.float32), protected.astype(np.float32)
    psnr = float(metrics.peak_signal_noise_ratio(a, b, data_range=255))
    if min(original.shape[:2]) < 7:
        return change, psnr, None
    return change, psnr, float(metrics.structural_similarity(a, b, data_range=255, channel_axis=2))


def face_pictures(original: Pixels, protected: Pixels, box: Box) -> FacePictures:
    """Draw the surroundings of a face for a report."""
    before = original[_region(box, original, PICTURE_MARGIN)]
    after = protected[_region(box, protected, PICTURE_MARGIN)]
    height, width = before.shape[:2]
    if after.shape != before.shape:
        after = resized(after, width, height)
    scale = min(1.0, PICTURE_SIDE / max(height, width))
    width, height = max(1, round(scale * width)), max(1, round(scale * height))
    pngs = [_png(resized(picture, width, height)) for picture in (before, after, difference(before, after))]
    return FacePictures(pngs[0], pngs[1], pngs[2], width, height, scale)


def difference(before: Pixels, after: Pixels) -> Pixels:
    """Draw what changed: grey where nothing did, changes `GAIN` times as large as they are."""
    return (MID_GREY + GAIN * (after.astype(np.int16) - before)).clip(0, 255).astype(np.uint8)


def _png(pixels: Pixels) -> bytes:
    file = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", optimize=True)
    return file.getvalue()
