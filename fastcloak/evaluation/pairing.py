"""Which protected photo belongs to which original, and whether the two show the same picture.

They do whatever a service did to one: saved, resized, made grey or brighter. Both are made small, 24 pixels on the long
side, and the differences a and b between neighbouring pixels are compared:

    likeness = 2 <a, b> / (|a|^2 + |b|^2)

It is 1 for the same picture, and lower for another scene, another pose, another position or another contrast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fastcloak.evaluation.postprocessing import Pixels
from fastcloak.evaluation.text import plain_name
from fastcloak.photos.files import read_photo
from fastcloak.photos.inputs import is_empty, photo_files, pictures

Floats = npt.NDArray[np.float32]
Box = npt.NDArray[np.float64]  # (left, top, width, height), in shares of a photo
Pair = tuple[str, Any, Any]  # name, original, protected: for `read`

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


def paired(originals: Any, protected: Any) -> tuple[list[Pair], list[str]]:
    """Pair one person's photos, and name the originals without a protected one; nothing is read yet."""
    given = originals, protected
    paths = [Path(one) if isinstance(one, (str, PathLike)) and not is_empty(one) else None for one in given]
    before, after = paths
    if before is not None and after is not None:
        if before.is_dir() and after.is_dir():
            return _paired_folders(before, after)
        for file in (before, after):
            if not file.exists():
                raise FileNotFoundError(f"{file} must be a photo or a folder of photos, got no such path; check it")
        if before.is_dir() or after.is_dir():
            raise ValueError(
                f"originals and protected must both be folders, or both one photo, got {before} and {after}; name two "
                "of a kind"
            )
        return [(before.name, [before], [after])], []
    lists = []
    for one, path in zip(given, paths, strict=True):
        photos = one if path is None else photo_files(path)
        # Whatever has no length is refused with a clear message.
        if photos is not None and not isinstance(photos, (Tensor, np.ndarray, list, tuple)):
            next(pictures(photos))
        lists.append(list(photos.values()) if isinstance(photos, Mapping) else photos)
    counts = [0 if is_empty(one) else len(one) for one in lists]
    if counts[0] == 0:
        raise ValueError("originals must hold at least one photo, got none")
    if counts[0] != counts[1]:
        raise ValueError(
            f"protected photos must match the originals one to one, got {counts[1]} for {counts[0]} originals"
        )
    pairs = []
    for i, image in enumerate(lists[0]):
        name = str(image) if isinstance(image, (str, PathLike)) else f"photo {i + 1}"
        pairs.append((name, lists[0][i : i + 1], lists[1][i : i + 1]))
    return pairs, []


def read(images: Any) -> Pixels:
    """Read the only photo of a stack or list, [H, W, 3]."""
    if isinstance(images[0], (str, PathLike)):
        return read_photo(images[0]).pixels
    ((_, picture),) = pictures(images)
    if picture.is_floating_point():
        picture = (picture * 255).round().to(torch.uint8)
    return np.ascontiguousarray(picture.permute(1, 2, 0).numpy())


def _paired_folders(originals: Path, protected: Path) -> tuple[list[Pair], list[str]]:
    before, after = _tree(originals), _tree(protected)
    strangers = sorted(set(after) - set(before))
    if strangers or not set(before) & set(after):
        different = strangers + sorted(set(before) - set(after))
        shown = ", ".join(plain_name(str(name)) for name in different[:5]) + " ..." * (len(different) > 5)
        raise ValueError(
            f"{protected} must hold the same photos as {originals}, by name, got differences: {shown}; take the others "
            "out"
        )
    pairs: list[Pair] = []
    omitted = []
    for name, files in before.items():
        for file in files:
            partners = after.get(name, [])
            # a.heic becomes a.jpg; but where there are a.jpg and a.png, each has its own.
            own = [partner for partner in partners if partner.name == file.name] or partners
            shown = file.relative_to(originals).as_posix()
            if len(own) == 1 and (len(files) == 1 or own[0].name == file.name):
                pairs.append((shown, [file], own))
            else:
                omitted.append(shown)
    if not pairs:
        raise ValueError(
            f"{protected} must hold each photo of {originals} once, got several of every name; rename some"
        )
    return pairs, omitted


def _tree(folder: Path) -> dict[Path, list[Path]]:
    """Photos of a folder and its subfolders, but for hidden ones: relative path without suffix -> files."""
    found: dict[Path, list[Path]] = {}
    for file in photo_files(folder, recursive=True):
        found.setdefault(file.relative_to(folder).with_suffix(""), []).append(file)
    return found


def check_same_picture(original: Pixels, protected: Pixels) -> None:
    """Refuse two photos of which one cannot come from the other by saving, resizing and small changes.

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
    """Differences [K] between neighbouring pixels, across and down, of a grey picture made small."""
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
