"""One photo before and after protection: its face after every post-processing, and how far the two are apart."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import TypeVar

import numpy as np
from PIL import Image

from fastcloak.evaluation.pairing import Box, check_same_face, check_same_picture
from fastcloak.evaluation.postprocessing import FILTER_FACE, FILTER_MARGIN, FILTERS, Pixels, available, resized, scaled
from fastcloak.evaluation.quality import ciede2000, largest_change, psnr, ssim, ssimulacra2
from fastcloak.evaluation.results import PhotoCheck, PhotoPictures, PicturePair
from fastcloak.photos.alignment import SIZE, Face, align, iou
from fastcloak.photos.detection import UNCERTAIN, detect, find_faces
from fastcloak.system.errors import FaceNotFoundError

T = TypeVar("T")
# The face in the original and in the protected photo, [112, 112, 3], after every post-processing; None: not found.
Versions = list[list[Pixels | None]]
# A face that overlaps less is another one.
LEAST_OVERLAP = 0.3
# The pictures of a report: longest sides in pixels, and how much around the face's box is seen close up.
THUMBNAIL_SIDE, PICTURE_SIDE, PICTURE_MARGIN = 128, 480, 0.2
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
    region = _region(box, original)

    def whole(measure: Callable[[Pixels, Pixels], T]) -> T | None:
        return measure(original, protected) if same_size else None

    def inside(measure: Callable[[Pixels, Pixels], T]) -> T | None:
        return measure(original[region], protected[region]) if same_size else None

    photo = PhotoCheck(
        name,
        width,
        height,
        faces,
        largest_change=whole(largest_change),
        psnr=whole(psnr),
        ssim=whole(ssim),
        face_change=inside(largest_change),
        face_psnr=inside(psnr),
        face_ssim=inside(ssim),
        face_ciede2000=inside(ciede2000),
        face_ssimulacra2=inside(ssimulacra2),
        pictures=photo_pictures(original, protected, box) if keep_pictures else None,
    )
    versions: Versions = [list(_versions(side, box, turn)) for side in (original, protected)]
    if versions[0][0] is None:
        raise FaceNotFoundError(f"{name} must show a face that is found twice, got one that is not; leave it out")
    return photo, versions


def _versions(pixels: Pixels, box: Box, turn: int | None) -> Iterator[Pixels | None]:
    """The face after every post-processing."""
    height, width = pixels.shape[:2]
    rows, columns = _region(box, pixels, FILTER_MARGIN)
    around = pixels[rows, columns]
    near = _at_most(around, FILTER_FACE / max(box[2] * width, box[3] * height) * max(around.shape))
    # The face's box, in shares of what is around it.
    left, top = columns.start / width, rows.start / height
    box_near = (box - [left, top, 0, 0]) * np.tile([width / around.shape[1], height / around.shape[0]], 2)
    for name, change in available().items():
        yield _crop(change(near), box_near, turn) if name in FILTERS else _crop(change(pixels), box, turn)


def _at_most(pixels: Pixels, side: float) -> Pixels:
    """A picture, made smaller if its longest side is more than `side`."""
    scale = side / max(pixels.shape[:2])
    return scaled(pixels, scale) if scale < 1 else np.ascontiguousarray(pixels)


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


def photo_pictures(original: Pixels, protected: Pixels, box: Box) -> PhotoPictures:
    """Draw a photo before and after protection for a report, whole and close up."""
    if protected.shape != original.shape:
        protected = resized(protected, *original.shape[1::-1])
    region = _region(box, original, PICTURE_MARGIN)
    before, after = original[region], protected[region]
    return PhotoPictures(
        thumbnail=_picture_pair(original, protected, THUMBNAIL_SIDE),
        photo=_picture_pair(original, protected, PICTURE_SIDE),
        face=_picture_pair(before, after, PICTURE_SIDE),
        difference=_png(_at_most(difference(before, after), PICTURE_SIDE)),
    )


def _picture_pair(before: Pixels, after: Pixels, side: int) -> PicturePair:
    height, width = before.shape[:2]
    before, after = _at_most(before, side), _at_most(after, side)
    return PicturePair(_png(before), _png(after), before.shape[1], before.shape[0], min(1.0, side / max(height, width)))


def difference(before: Pixels, after: Pixels) -> Pixels:
    """Draw what changed: grey where nothing did, changes `GAIN` times as large as they are."""
    return (MID_GREY + GAIN * (after.astype(np.int16) - before)).clip(0, 255).astype(np.uint8)


def _png(pixels: Pixels) -> bytes:
    file = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", optimize=True)
    return file.getvalue()
