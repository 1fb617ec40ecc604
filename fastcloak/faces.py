"""Photos -> aligned faces: detect, align to the 112 px template by a similarity, keep the transform for the way back.

A transform is a [2, 3] matrix that takes pixel centres (x, y), counted from 0, to pixel centres.
"""

import logging
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from fastcloak import assets
from fastcloak.device import check_fork
from fastcloak.photos import PhotoError, photo_files, photo_from_pil, read_photo

__all__ = [
    "TEMPLATE_112",
    "UNCERTAIN",
    "Face",
    "FaceNotFoundError",
    "align",
    "check_pixels",
    "choose_faces",
    "detect",
    "find_faces",
    "iou",
    "load_faces",
    "named_faces",
    "pictures",
    "similarity_transform",
    "warp",
]

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Transform = npt.NDArray[np.float64]
Box = tuple[float, float, float, float]

SIZE = 112

# Eyes (left and right in the picture), nose, corners of the mouth: the ArcFace template, deepinsight/insightface.
TEMPLATE_112: Floats = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float32
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


UNCERTAIN = (
    "which way up a face is cannot be told, and it was aligned by the best guess; turn the photo upright and try again"
)
logger = logging.getLogger("fastcloak")


class FaceNotFoundError(ValueError):
    """No face was found in a photo; the message names the photo."""


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


def _with_more(
    faces: list[Face],
    pixels: Pixels,
    thorough: bool,
    turns: Sequence[int],
    *,
    known: bool = False,
    glance: bool = False,
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
    return _distinct(faces)


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
    back = _inverse(to_small)
    return {turn: [_mapped(face, back) for face in _look(small, side, 0, _WEAK, turn)] for turn in turns}


def _distinct(found: list[Face]) -> list[Face]:
    faces: list[Face] = []
    for face in sorted(found, key=lambda face: -face.score):
        if not _among(face.box, [other.box for other in faces]):
            faces.append(face)
    return sorted(faces, key=_area, reverse=True)


def _area(face: Face) -> float:
    return face.box[2] * face.box[3]


def _is_turned(face: Face) -> bool:
    return abs(face.turn) > 45


def _among(box: Box, others: list[Box]) -> bool:
    return any(iou(box, other) >= _SAME_FACE_IOU for other in others)


def choose_faces(faces: list[Face], who: str) -> list[Face]:
    """Keep the faces that are meant: "largest" keeps the largest, "all" keeps all.

    Raises:
        ValueError: another word.
    """
    if who not in ("largest", "all"):
        raise ValueError(f"who must be 'largest' or 'all', got {who!r}; choose one of them")
    return faces if who == "all" else sorted(faces, key=_area, reverse=True)[:1]


def find_faces(pixels: Pixels, *, who: str = "largest", name: str = "photo") -> list[Face]:
    """Detect the faces that are meant, at least one.

    Args:
        pixels: [H, W, 3], uint8, RGB.
        who: see `choose_faces`.
        name: what errors call the photo.

    Raises:
        FaceNotFoundError: there is none.
    """
    choose_faces([], who)
    faces = choose_faces(detect(pixels, thorough=who == "all"), who)
    if not faces:
        height, width = pixels.shape[:2]
        raise FaceNotFoundError(
            f"{name} must show a face, got none found in {width}x{height} pixels; use a sharper, upright or closer "
            "photo, or pass the face aligned to 112x112 pixels"
        )
    return faces


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
    cubic: bool = False,
    extend: bool = False,
) -> Floats:
    """Resample a picture by a similarity transform, averaged over each new pixel where the picture shrinks.

    Args:
        picture: [h, w, C], uint8 or float32.
        transform: [2, 3], picture -> result.
        width: of the result.
        height: of the result.
        cubic: bicubic interpolation instead of bilinear.
        extend: beyond the picture its border goes on, instead of zeros.

    Returns:
        [height, width, C], float32, on the picture's own scale.
    """
    cv2 = assets.require("cv2", extra="faces")
    scale = math.sqrt(abs(np.linalg.det(transform[:, :2])))
    # Sample on a grid `fine` times as fine, about as fine as the picture, and take the mean of each cell.
    fine = max(1, math.ceil(1 / scale - 0.25))
    finer = fine * transform + np.array([[0, 0, (fine - 1) / 2]] * 2)
    # OpenCV's float path holds no rounding, its uint8 path rounds each sample to a grey level before the mean: enough.
    result = cv2.warpAffine(
        picture,
        finer,
        (fine * width, fine * height),
        flags=cv2.INTER_CUBIC if cubic else cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE if extend else cv2.BORDER_CONSTANT,
    )
    if fine > 1:
        result = cv2.resize(result, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(result, np.float32)


def load_faces(images: Any, *, who: str = "largest") -> torch.Tensor:
    """Turn whatever photos come in into aligned faces.

    Pictures of 112x112 pixels count as aligned and pass exactly, as value / 255 where they are uint8. In others faces
    are detected and aligned, whichever way up they are; where that cannot be told, a warning that names the photo is
    logged. Grey pictures get three equal channels; alpha is left out.

    Args:
        images: a tensor or array [N, 3, H, W], [N, H, W, 3] or with one grey channel, uint8 or float in [0, 1]; a
            folder of photos; or a list of paths, PIL images and single pictures ([3, H, W], [H, W, 3] or [H, W]), of
            any sizes, or a mapping of names to these.
        who: "largest" takes the largest face of each photo, "all" takes all of them.

    Returns:
        [N, 3, 112, 112], float32, in [0, 1], RGB, on CPU. With "all" N counts faces, in the order of photos.

    Raises:
        ValueError: not pictures: another rank or layout, another dtype, values outside [0, 1], NaN or Inf, none at all.
        TypeError: another type.
        PhotoError: a photo that cannot be read.
        FaceNotFoundError: a photo without a face.
        MissingExtraError: faces must be detected and the `faces` extra is not installed.
    """
    return named_faces(images, who=who)[1]


def named_faces(images: Any, *, who: str = "largest") -> tuple[list[str], torch.Tensor]:
    """`load_faces`, and for each face the name of its photo."""
    check_fork()
    choose_faces([], who)
    named = [(name, face) for name, picture in pictures(images) for face in _aligned(picture, name, who)]
    return [name for name, _ in named], torch.stack([face for _, face in named]).contiguous()


def _aligned(picture: torch.Tensor, name: str, who: str) -> list[torch.Tensor]:  # [3, H, W], uint8 or float32 in [0, 1]
    if picture.shape[1:] == (SIZE, SIZE):
        return [_to_float(picture)]
    if picture.is_floating_point():
        picture = (picture * 255).round().to(torch.uint8)
    pixels = np.ascontiguousarray(picture.permute(1, 2, 0).numpy())
    faces = find_faces(pixels, who=who, name=name)
    if any(face.uncertain for face in faces):
        logger.warning("%s: %s", name, UNCERTAIN)
    crops = (align(pixels, face)[0] for face in faces)
    return [_to_float(torch.from_numpy(crop).permute(2, 0, 1)) for crop in crops]


def _to_float(picture: torch.Tensor) -> torch.Tensor:
    return picture if picture.is_floating_point() else picture.float() / 255


def pictures(images: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Read whatever photos come in one by one: as `load_faces` does, without looking for faces.

    Returns:
        For each its name in errors, and [3, H, W], uint8 or float32 in [0, 1], RGB.
    """
    if isinstance(images, (torch.Tensor, np.ndarray)):
        stack = _tensor(images, "images")
        if stack.dim() != 4:
            raise ValueError(
                f"images must be [N, 3, H, W] or [N, H, W, 3], got {list(stack.shape)}; "
                + ("for one picture pass images[None]" if stack.dim() in (2, 3) else "one picture per first index")
            )
        if len(stack) == 0:
            raise ValueError(f"images must hold at least one picture, got {list(stack.shape)}; pass some photos")
        stack = _channels_first(stack, "images")
        for index, picture in enumerate(stack):
            yield f"images[{index}]", _checked(picture, f"images[{index}]")
    elif isinstance(images, (str, PathLike)):
        if Path(images).is_file():
            raise ValueError(f"images must be a folder or a list, got the single photo {images}; pass [path]")
        for path in photo_files(images):
            yield str(path), _channels_last_uint8(read_photo(path).pixels)
    elif isinstance(images, (list, tuple, Mapping)):
        if not images:
            raise ValueError("images must hold at least one picture, got an empty list; pass some photos")
        named = images.items() if isinstance(images, Mapping) else enumerate(images)
        for key, image in named:
            yield from _listed(image, str(key) if isinstance(images, Mapping) else f"images[{key}]")
    else:
        cure = "; for one picture pass [image]" if isinstance(images, Image.Image) else ""
        raise TypeError(
            "images must be a tensor or array, a folder, or a list of paths, PIL images or arrays, got "
            f"{type(images).__name__}{cure or '; collect them in a list'}"
        )


def _listed(image: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(image, (str, PathLike)):
        if Path(image).is_dir():
            raise ValueError(f"{name} must be a photo, got the folder {image}; pass the folder alone, not in a list")
        yield f"{name} ({image})", _channels_last_uint8(read_photo(image).pixels)
    elif isinstance(image, Image.Image):
        try:
            pixels = photo_from_pil(image, name=name).pixels
        except OSError as error:
            raise PhotoError(
                f"{name} must be a whole picture, got a damaged one ({error}); copy the file anew"
            ) from error
        yield name, _channels_last_uint8(pixels)
    elif isinstance(image, (torch.Tensor, np.ndarray)):
        picture = _tensor(image, name)
        if picture.dim() == 2:
            picture = picture[None]
        if picture.dim() != 3:
            raise ValueError(
                f"{name} must be one picture, [3, H, W], [H, W, 3] or [H, W], got {list(picture.shape)}; "
                "pass a stack of pictures alone, not in a list"
            )
        yield name, _checked(_channels_first(picture[None], name)[0], name)
    else:
        raise TypeError(
            f"{name} must be a path, a PIL image, an array or a tensor, got {type(image).__name__}; convert it"
        )


def _tensor(images: Any, name: str) -> torch.Tensor:
    if isinstance(images, np.ndarray):
        if images.dtype.kind not in "uf" or (images.dtype.kind == "u" and images.dtype != np.uint8):
            raise _wrong_dtype(name, images.dtype)
        # A copy where torch would warn: read-only memory, foreign byte order, negative strides.
        with np.errstate(over="ignore"):
            return torch.from_numpy(np.array(images, np.uint8 if images.dtype == np.uint8 else np.float32, order="C"))
    tensor: torch.Tensor = images.detach().cpu()
    if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
        raise _wrong_dtype(name, tensor.dtype)
    return tensor if tensor.dtype == torch.uint8 else tensor.float()


def _wrong_dtype(name: str, dtype: Any) -> ValueError:
    return ValueError(
        f"{name} must be uint8 or float in [0, 1], got {dtype}; convert to uint8, or divide by the largest value"
    )


def _channels_first(stack: torch.Tensor, name: str) -> torch.Tensor:  # [N, C, H, W] or [N, H, W, C] -> [N, 3, H, W]
    shape = list(stack.shape)
    places = [place for place in (1, 3) if shape[place] == 3] or [place for place in (1, 3) if shape[place] == 1]
    if not places or 0 in shape:
        raise ValueError(
            f"{name} must have 3 colour channels or 1 grey one, [.., 3, H, W] or [.., H, W, 3], got {shape[1:]}; "
            "leave alpha out, and convert other colours to RGB"
        )
    if len(places) == 2:
        raise ValueError(
            f"{name} must show by its shape where the channels are, got {shape[1:]}, which reads both ways; "
            "pass PIL images"
        )
    first = stack if places[0] == 1 else stack.permute(0, 3, 1, 2)
    return first.expand(-1, 3, -1, -1).contiguous()


def _checked(picture: torch.Tensor, name: str) -> torch.Tensor:
    if picture.dtype == torch.uint8:
        return picture
    if not bool(torch.isfinite(picture).all()):
        raise ValueError(f"{name} must hold finite values in [0, 1], got NaN or Inf; read or compute the picture anew")
    low, high = float(picture.min()), float(picture.max())
    if low < 0 or high > 1:
        cure = "divide by 255" if low >= 0 and high > 2 else "clip it, or undo a normalisation such as (x - 0.5) / 0.5"
        raise ValueError(f"{name} must be in [0, 1] where it is float, got {low:g} to {high:g}; {cure}")
    return picture


def _channels_last_uint8(pixels: Pixels) -> torch.Tensor:  # [H, W, 3] -> [3, H, W]
    return torch.from_numpy(pixels).permute(2, 0, 1)


# A detector is not safe to use from two threads at once: each thread has its own.
_DETECTORS = threading.local()
_MAKING = threading.Lock()


def _detector() -> Any:
    model = str(assets.yunet_file())
    if getattr(_DETECTORS, "model", None) != model:
        with _MAKING:  # the log level is the process's
            _DETECTORS.detector = _new_detector(model)
        _DETECTORS.model = model
    return _DETECTORS.detector


def _new_detector(model: str) -> Any:
    cv2 = assets.require("cv2", extra="faces")
    # OpenCV 5 writes a warning about its own engine to standard error for each network. Builds before
    # 4.13, which other packages may have brought along, have no way to silence it, and no need to.
    logging = getattr(cv2.utils, "logging", None)
    before = None if logging is None else logging.getLogLevel()
    if logging is not None:
        logging.setLogLevel(logging.LOG_LEVEL_ERROR)
    try:
        return cv2.FaceDetectorYN.create(
            model, "", (320, 320), score_threshold=_WIDER[2], nms_threshold=0.3, top_k=5000
        )
    finally:
        if logging is not None:
            logging.setLogLevel(before)


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
        Face(
            (float(row[0]), float(row[1]), float(row[2]), float(row[3])), row[4:14].reshape(5, 2).copy(), float(row[14])
        )
        for row in rows
        if np.isfinite(row).all() and row[2] > 0 and row[3] > 0
    ]


def _look(pixels: Pixels, side: int, border: int, least_score: float, turn: int) -> list[Face]:
    cv2 = assets.require("cv2", extra="faces")
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
    return [_mapped(face, _inverse(transform)) for face in _run_detector(pixels, least_score)]


def _shrunk(pixels: Pixels, side: int) -> tuple[Pixels, Transform]:
    """A photo whose long side is at most `side`, or small and enlarged, and photo -> result."""
    cv2 = assets.require("cv2", extra="faces")
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
    found = (_mapped(face, _inverse(transform)) for face in _run_detector(close_up, least_score, proposals=True))
    return [face for face in found if iou(face.box, box) >= _SAME_FACE_IOU]


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


def _inverse(transform: Transform) -> Transform:
    inverse = np.linalg.inv(transform[:, :2])
    return np.column_stack([inverse, -inverse @ transform[:, 2]])


def _mapped(face: Face, transform: Transform) -> Face:
    left, top, width, height = face.box
    x, y = transform @ [left + width / 2, top + height / 2, 1]
    # The box around the ellipse that fills the turned box: the face does not reach into its corners.
    width, height = np.sqrt(transform[:, :2] ** 2 @ [width**2, height**2])
    landmarks = (face.landmarks @ transform[:, :2].T + transform[:, 2]).astype(np.float32)
    return Face((float(x - width / 2), float(y - height / 2), float(width), float(height)), landmarks, face.score)


def iou(a: Box, b: Box) -> float:
    """Shared area of two boxes (left, top, width, height) over the area that they cover together, 0 to 1."""
    across = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    down = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(across, 0) * max(down, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)
