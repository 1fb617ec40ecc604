"""A photo -> the faces in it, whichever way up they are, found by YuNet.

A transform is a [2, 3] matrix that takes pixel centres (x, y), counted from 0, to pixel centres.
"""

import math
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastcloak.photos.alignment import TEMPLATE_112, Box, Face, Pixels, Transform, check_pixels, inverse, iou, warp
from fastcloak.system import packages
from fastcloak.system.errors import FaceNotFoundError

__all__ = ["UNCERTAIN", "check_who", "detect", "find_faces"]

UNCERTAIN = (
    "which way up a face is cannot be told, and it was aligned by the best guess; turn the photo upright and try again"
)

# (long side of the photo, border around it, least score). YuNet sees faces of about 10 to 300 px. The first look serves
# nearly all photos; the second finds small faces, the third one that fills the picture, where scores are lower: ORL's
# photos at 640 px have some between 0.5 and 0.6 (measured).
_LOOK, _CLOSER, _WIDER = (640, 0, 0.6), (1280, 0, 0.6), (320, 64, 0.5)
_LEAST_SIDE = 320
# Degrees clockwise.
_QUARTERS, _BETWEEN = (90, 180, 270), (45, 135, 225, 315)
# Each face is looked at once more in a square of 1.7 times its size, at 320 px, and its landmarks are the mean over all
# that the detector proposes for it (about ten). Between a photo and its 4x enlargement the crop then moves by 1.1 px
# instead of 2.5 on ORL and by 1.2 instead of 3.5 on LFW (medians, measured).
_CLOSE_UP, _CLOSE_UP_SIDE = 1.7, 320
# The landmarks claim an upright face whatever the detector sees, but its score is lower the other way up. From `_CLEAR`
# a face counts as upright: 98 % of LFW's and 95 % of ORL's are. Others are scored in small squares, turned in steps of
# 30 degrees: for faces of 20 pixels, blurred, dark or badly compressed ones too, the mean of both sizes was highest
# the right way up in each of 400, and at least 0.027 above all that differ by 60 degrees or more (measured).
# A turned face scores at least 0.8 in its close-up; what only looks like one scores less.
_CLEAR, _WEAK, _LEAST_LEAD, _CLEAR_LEAD = 0.92, 0.8, 0.02, 0.05
_STEP, _SMALL_SIDES, _SMALL_SCORE = 30, (96, 160), 0.3
# Landmarks of a tilted face are tilted by less than it is; it is looked at once more until it stands straighter than so
# many degrees: the first where the photo was not turned.
_STRAIGHT = 10.0, 5.0
_SAME_FACE_IOU = 0.3
_NMS = 0.3


def detect(pixels: Pixels, *, thorough: bool = False, turn: int | None = None) -> list[Face]:
    """Find the faces of a photo with YuNet, largest first, whichever way up they are.

    Where the largest face is not upright, or there is none, the photo is looked at turned too, which takes longer.

    Args:
        pixels: [H, W, 3], uint8, RGB, of any size.
        thorough: look for small faces too where large ones were found; a face one sixtieth as wide as the long side is
            found so in 39 of 40 LFW photos, and in 5 without (measured). Find which way up each face is; without,
            faces of less than half the area of an upright largest one count as upright. Up to four times as slow.
        turn: degrees clockwise by which the faces come upright, within 45, where that is known; None finds it out.

    Returns:
        Nothing found is an empty list.

    Raises:
        ValueError: pixels of another shape or dtype.
        MissingExtraError: OpenCV or the detector's file is not installed.
    """
    check_pixels(pixels)
    if turn is not None:
        return _with_more([], pixels, thorough, (turn,), known=True)
    faces = _with_more([], pixels, thorough, (0,))
    if thorough:
        faces = _with_more(faces, pixels, thorough, _QUARTERS, glance=True)
    if not faces or faces[0].uncertain or _is_turned(faces[0]):
        faces = _with_more(faces, pixels, thorough, _QUARTERS)
    if not faces or faces[0].uncertain:
        faces = _with_more(faces, pixels, thorough, _BETWEEN)
    return faces


def check_who(who: object) -> None:
    """Refuse all but "largest" and "all", the faces of a photo that can be meant without knowing a person.

    Raises:
        ValueError: it is something else.
    """
    if who not in ("largest", "all"):
        raise ValueError(
            f"who must be 'largest' or 'all', or to protect one person's photos an Enrolment, got {who!r:.60}; "
            "fastcloak.enrol(photos) makes one"
        )


def find_faces(pixels: Pixels, *, who: str = "largest", name: str = "photo") -> list[Face]:
    """Detect the faces that are meant, at least one, largest first.

    Args:
        pixels: [H, W, 3], uint8, RGB.
        who: "largest" or "all".
        name: what errors call the photo.

    Raises:
        ValueError: another word for `who`.
        FaceNotFoundError: there is no face.
    """
    check_who(who)
    faces = detect(pixels, thorough=who == "all")
    if not faces:
        height, width = pixels.shape[:2]
        raise FaceNotFoundError(
            f"{name} must show a face, got none found in {width}x{height} pixels; use a sharper, upright or closer "
            "photo, or pass the face aligned to 112x112 pixels"
        )
    return faces if who == "all" else faces[:1]


def _with_more(
    faces: list[Face], pixels: Pixels, thorough: bool, turns: Sequence[int], known: bool = False, glance: bool = False
) -> list[Face]:
    """These faces and those found in the photo turned so; see `_look_again` for `known`."""
    certain = [face.box for face in faces if not face.uncertain]
    more: list[Face] = []
    glanced = _glance(pixels, turns) if glance else {}
    for turn in turns:
        found = glanced[turn] if glance else _candidates(pixels, thorough, turn)
        seen: list[Face] = []
        for face in sorted(found, key=_area, reverse=True):
            # Which way up smaller faces in the background are would take most of the time.
            upright = bool(seen) and not (thorough or turn or seen[0].uncertain or _is_turned(seen[0]))
            minor = upright and _area(face) < _area(seen[0]) / 2
            if not _among(face.box, certain):
                seen.append(_look_again(pixels, face, turn, known=known or minor))
        if turns != (0,):  # nearly anything looks a little like a face from one of eight sides
            seen = [face for face in seen if known or face.score >= _WEAK]
        certain += [face.box for face in seen if not face.uncertain]
        more += seen
    faces = faces + [face for face in more if turns == (0,) or not certain or not face.uncertain]
    if any(_is_turned(face) and not face.uncertain for face in faces):
        # In a turned photo, what looks a little like a face is none.
        faces = [face for face in faces if face.score >= _WEAK]
    distinct: list[Face] = []
    for face in sorted(faces, key=lambda face: -face.score):
        if not _among(face.box, [other.box for other in distinct]):
            distinct.append(face)
    return sorted(distinct, key=_area, reverse=True)


def _candidates(pixels: Pixels, thorough: bool, turn: int) -> list[Face]:
    large = max(pixels.shape[:2]) > _LOOK[0]
    found = _look(pixels, *_LOOK, turn)
    if large and (thorough or not found):
        found += _look(pixels, *_CLOSER, turn)
    return found or _look(pixels, *_WIDER, turn)


def _glance(pixels: Pixels, turns: Sequence[int]) -> dict[int, list[Face]]:
    """Faces of about a tenth of the long side and more, at a twenty-fifth of the cost."""
    side = min(max(*pixels.shape[:2], _LEAST_SIDE), _LOOK[0]) // 5
    small, to_small = _shrunk(pixels, side)
    back = inverse(to_small)
    return {turn: [_mapped(face, back) for face in _look(small, side, 0, _WEAK, turn)] for turn in turns}


def _area(face: Face) -> float:
    return face.box[2] * face.box[3]


def _is_turned(face: Face) -> bool:
    return abs(face.turn) > 45


def _among(box: Box, others: list[Box]) -> bool:
    return any(iou(box, other) >= _SAME_FACE_IOU for other in others)


# A detector is not safe to use from two threads at once: each thread has its own.
_DETECTORS = threading.local()
_MAKING = threading.Lock()


def _detector() -> Any:
    model = str(packages.yunet_file())
    if getattr(_DETECTORS, "model", None) == model:
        return _DETECTORS.detector
    cv2 = packages.require("cv2", extra="faces")
    # OpenCV 5 writes a warning about its own engine to standard error for each network. Builds before
    # 4.13, which other packages may have brought along, have no way to silence it, and no need to.
    logging = getattr(cv2.utils, "logging", None)
    with _MAKING:  # the log level is the process's
        before = None if logging is None else logging.getLogLevel()
        try:
            if logging is not None:
                logging.setLogLevel(logging.LOG_LEVEL_ERROR)
            _DETECTORS.detector = cv2.FaceDetectorYN.create(model, "", (320, 320), _WIDER[2], _NMS, 5000)
        finally:
            if logging is not None:
                logging.setLogLevel(before)
    _DETECTORS.model = model
    return _DETECTORS.detector


def _run_detector(pixels: Pixels, least_score: float, *, proposals: bool = False) -> list[Face]:
    detector = _detector()
    detector.setInputSize((pixels.shape[1], pixels.shape[0]))
    detector.setScoreThreshold(least_score)
    detector.setNMSThreshold(1.0 if proposals else _NMS)
    _, rows = detector.detect(np.ascontiguousarray(pixels[..., ::-1]))
    if rows is None:
        return []
    # Columns: x, y, w, h, then x and y of five landmarks, then the score.
    return [
        Face(tuple(row[:4].tolist()), row[4:14].reshape(5, 2).copy(), float(row[14]))
        for row in rows
        if np.isfinite(row).all() and row[2] > 0 and row[3] > 0
    ]


def _look(pixels: Pixels, side: int, border: int, least_score: float, turn: int) -> list[Face]:
    cv2 = packages.require("cv2", extra="faces")
    pixels, transform = _shrunk(pixels, side)
    if turn:
        size = np.array(pixels.shape[1::-1])
        turned = np.ceil(np.abs(_rotation(turn)) @ size - 1e-6)
        rotate = np.column_stack([_rotation(turn), (turned - 1) / 2 - _rotation(turn) @ ((size - 1) / 2)])
        pixels = cv2.warpAffine(pixels, rotate, turned.astype(int).tolist())
        transform = np.column_stack([rotate[:, :2] @ transform[:, :2], rotate @ [*transform[:, 2], 1]])
    if border:
        pixels = cv2.copyMakeBorder(pixels, border, border, border, border, cv2.BORDER_CONSTANT)
        transform[:, 2] += border
    return [_mapped(face, inverse(transform)) for face in _run_detector(pixels, least_score)]


def _shrunk(pixels: Pixels, side: int) -> tuple[Pixels, Transform]:
    """A photo whose long side is at most `side`, or small and enlarged, and photo -> result."""
    cv2 = packages.require("cv2", extra="faces")
    height, width = pixels.shape[:2]
    scale = min(max(max(height, width), _LEAST_SIDE), side) / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if size != (width, height):
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    shrink = np.array([[size[0] / width, 0], [0, size[1] / height]])
    # Pixel centres: a picture of half the size has its first centre at 0.5 of the original's.
    return pixels, np.column_stack([shrink, shrink.diagonal() / 2 - 0.5])


def _look_again(pixels: Pixels, face: Face, turn: float, *, known: bool = False) -> Face:
    """A candidate in a close-up, turned so that it stands upright there; `turn` is a guess if not `known`."""
    first = seen = _close_up(pixels, face.box, turn)
    certain = True
    if not known and (seen is None or seen.score < _CLEAR):
        best, certain = _way_up(pixels, face.box)
        if abs(_wrapped(best - turn)) > _STEP:
            seen, turn = _close_up(pixels, face.box, best), best
    for looks in range(3):
        if seen is None or ((looks or not turn) and abs(_wrapped(seen.turn - turn)) <= _STRAIGHT[turn != 0]):
            break
        turn = seen.turn
        seen = _close_up(pixels, seen.box, turn) or seen
    if seen is None or (not known and _is_turned(seen) and seen.score < _WEAK):
        seen, certain = first or face, known
    return replace(seen, uncertain=not certain)


def _close_up(pixels: Pixels, box: Box, turn: float) -> Face | None:
    proposals = _proposals(pixels, box, turn, _CLOSE_UP_SIDE, _WIDER[2])
    if not proposals:
        return None
    best = max(proposals, key=lambda face: face.score)
    landmarks = [face.landmarks for face in proposals if iou(face.box, best.box) >= 0.5]
    return replace(best, landmarks=np.mean(landmarks, axis=0, dtype=np.float32))


def _way_up(pixels: Pixels, box: Box) -> tuple[int, bool]:
    """By how many degrees a face must be turned clockwise, within half a step; and whether that is certain."""
    # Large enough for every small square however it is turned, so that a large photo is resampled once.
    around, to_around = _square(pixels, box, 0, round(1.5 * max(_SMALL_SIDES)), 1.5 * _CLOSE_UP)
    box = _mapped(Face(box, TEMPLATE_112, 0.0), to_around).box
    turns = range(0, 360, _STEP)
    total = dict.fromkeys(turns, 0.0)
    best, lead = 0, 0.0
    for looks, side in enumerate(_SMALL_SIDES, 1):
        for turn in turns:
            found = _proposals(around, box, turn, side, _SMALL_SCORE)
            total[turn] += max((face.score for face in found), default=_SMALL_SCORE)
        best = max(turns, key=total.__getitem__)
        rival = max(score for turn, score in total.items() if abs(_wrapped(turn - best)) > _STEP)
        lead = (total[best] - rival) / looks
        if lead >= _CLEAR_LEAD:
            break
    return best, lead >= _LEAST_LEAD


def _proposals(pixels: Pixels, box: Box, turn: float, side: int, least_score: float) -> list[Face]:
    """All that the detector takes for the face in a box, in a close-up of `side` pixels."""
    close_up, transform = _square(pixels, box, turn, side, _CLOSE_UP)
    found = (_mapped(face, inverse(transform)) for face in _run_detector(close_up, least_score, proposals=True))
    return [face for face in found if _among(face.box, [box])]


def _square(pixels: Pixels, box: Box, turn: float, side: int, times: float) -> tuple[Pixels, Transform]:
    """`side` pixels that show `times` the size of a box around its middle, turned clockwise, and photo -> square."""
    left, top, width, height = box
    turned = side / (times * max(width, height)) * _rotation(turn)
    middle = np.array([left + width / 2, top + height / 2])
    transform = np.column_stack([turned, (side - 1) / 2 - turned @ middle])
    return np.rint(warp(pixels, transform, side, side)).astype(np.uint8), transform


def _rotation(turn: float) -> npt.NDArray[np.float64]:  # [2, 2], clockwise as seen, since y points down
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    return np.array([[cos, -sin], [sin, cos]])


def _wrapped(turn: float) -> float:  # -180 to 180
    return (turn + 180) % 360 - 180


def _mapped(face: Face, transform: Transform) -> Face:
    left, top, width, height = face.box
    x, y = transform @ [left + width / 2, top + height / 2, 1]
    # The box around the ellipse that fills the turned box: the face does not reach into its corners.
    width, height = np.sqrt(transform[:, :2] ** 2 @ [width**2, height**2])
    landmarks = (face.landmarks @ transform[:, :2].T + transform[:, 2]).astype(np.float32)
    return Face((float(x - width / 2), float(y - height / 2), float(width), float(height)), landmarks, face.score)
