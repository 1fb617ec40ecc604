"""The bound of `fastcloak.protection.presence`: how much of a mask clean and protected photos hold.

    python -m bench.protection.recloak PEOPLE_DIR --distractors DIR --cloaks DIR -o bench/results/recloak_lfw.csv

A row per kind of cloak and of photo: quantiles of the correlation and the share that counts as protected. "clean" are
all photos of all people and distractors, "another's" are those of somebody else with their own cloak. The first people
get the cloaks, from their first ten photos; `--cloaks` keeps them for the next run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import fastcloak
from bench.harness.command import command
from bench.harness.rows import Rows
from bench.protection.people import people_folders, photos_of
from fastcloak.cloak import Cloak
from fastcloak.evaluation.postprocessing import Pixels, jpeg
from fastcloak.photos.alignment import align
from fastcloak.photos.detection import find_faces
from fastcloak.photos.files import read_photo
from fastcloak.photos.inputs import photo_files
from fastcloak.protection.overlay import channels_last
from fastcloak.protection.presence import PRESENT, correlation
from fastcloak.system.errors import FaceNotFoundError

KINDS: dict[str, dict[str, Any]] = {
    "fast": {},
    "grey": {"grey": True},
    "opom": {"method": "opom"},
    "dlib": {"model": "dlib"},
    "balanced": {"preset": "balanced"},
}
LEARN, PEOPLE = 10, 4


def scaled(pixels: Pixels, factor: float) -> Pixels:
    size = round(pixels.shape[1] * factor), round(pixels.shape[0] * factor)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


# What happens to the photo before and after it is protected. Faces of LFW are about 110 pixels wide.
SAVED: dict[str, tuple[float, Callable[[Pixels], Pixels]]] = {
    "png": (1, lambda pixels: pixels),
    "jpeg 95": (1, lambda pixels: jpeg(pixels, 95)),
    "jpeg 75": (1, lambda pixels: jpeg(pixels, 75)),
    "jpeg 50": (1, lambda pixels: jpeg(pixels, 50)),
    "half, jpeg 95": (1, lambda pixels: jpeg(scaled(pixels, 0.5), 95)),
    "face of 330, jpeg 95": (3, lambda pixels: jpeg(pixels, 95)),
    "face of 55, png": (0.5, lambda pixels: pixels),
    "face of 55, jpeg 95": (0.5, lambda pixels: jpeg(pixels, 95)),
    "face of 45, jpeg 95": (0.4, lambda pixels: jpeg(pixels, 95)),
}


def found(pixels: Pixels, cloak: Cloak, grey: bool) -> float | None:
    try:
        crop = align(pixels, find_faces(pixels)[0])[0]
    except FaceNotFoundError:
        return None
    return correlation(crop, channels_last(cloak, grey))


def pixels_of(path: Path, grey: bool) -> Pixels:
    pixels = read_photo(path).pixels
    return np.repeat(np.rint(pixels.mean(-1, keepdims=True)), 3, -1).astype(np.uint8) if grey else pixels


def cloak_of(person: Path, kind: str, folder: Path) -> Cloak:
    file = folder / f"{person.name}.{kind}.safetensors"
    if not file.exists():
        fastcloak.fit(photos_of(person)[:LEARN], **{"model": "sface", "dtype": "float32", **KINDS[kind]}).save(file)
    return fastcloak.load(file)


def correlations(kind: str, owners: list[Path], clean: list[Path], folder: Path) -> dict[str, list[float | None]]:
    """Of each kind of photo, with a kind of cloak; None where no face is found."""
    grey, cloaks = kind == "grey", [cloak_of(person, kind, folder) for person in owners]
    values = {"clean": [found(pixels_of(photo, grey), cloaks[0], grey) for photo in clean]}
    for i, (person, cloak) in enumerate(zip(owners, cloaks, strict=True)):
        for photo in photos_of(person)[::2]:
            for saved, (factor, save) in SAVED.items():
                try:
                    protected = save(fastcloak.protect(scaled(pixels_of(photo, grey), factor), cloak))
                except FaceNotFoundError:
                    continue
                values.setdefault(saved, []).append(found(protected, cloak, grey))
                if saved == "png" and len(owners) > 1:
                    values.setdefault("another's, png", []).append(found(protected, cloaks[i - 1], grey))
    return values


def main() -> None:
    needed = ("people", "distractors", "cloaks", "output")
    given = command(__doc__, *needed, required=needed).parse_args()
    logging.disable(logging.WARNING)  # of small faces
    people, rows = people_folders(given.people), Rows(given.output)
    clean = [photo for folder in people for photo in photos_of(folder)] + photo_files(given.distractors)
    for kind in KINDS:
        owners = people[: 1 if kind in ("balanced", "dlib") else PEOPLE]
        for what, values in correlations(kind, owners, clean, given.cloaks).items():
            q = np.array([value for value in values if value is not None])
            row = {"cloak": kind, "photo": what, "photos": len(q), "largest": float(q.max())}
            row |= {name: float(np.quantile(q, at)) for name, at in (("q99", 0.99), ("median", 0.5), ("q01", 0.01))}
            row |= {"smallest": float(q.min()), "found": float((q >= PRESENT).mean()), "bound": PRESENT}
            print(row)
            rows.add(row)


if __name__ == "__main__":
    main()
