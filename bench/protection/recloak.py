"""The bound of `fastcloak.protection.presence`: how much of a mask clean and protected photos hold.

    python -m bench.protection.recloak PEOPLE_DIR --distractors DIR --cloaks DIR -o bench/results/recloak_lfw.csv

A row per kind of cloak and of photo: quantiles of the correlation and the share that counts as protected. "clean" are
all photos of all people and distractors, "another's" are those of somebody else with their own cloak. The first people
get the cloaks, from their first ten photos; `--cloaks` keeps them for the next run.
"""

from __future__ import annotations

import argparse
import csv
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import fastcloak
from bench.harness.machine import row_context
from fastcloak.cloak import Cloak
from fastcloak.photos.alignment import Pixels, align
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
COLUMNS = ("cloak", "photo", "photos", "largest", "q99", "median", "q01", "smallest", "found", "bound")


def resized(pixels: Pixels, factor: float) -> Pixels:
    size = round(pixels.shape[1] * factor), round(pixels.shape[0] * factor)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def as_jpeg(pixels: Pixels, quality: int) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


# What happens to the photo before and after it is protected. Faces of LFW are about 110 pixels wide.
SAVED: dict[str, tuple[float, Callable[[Pixels], Pixels]]] = {
    "png": (1, lambda pixels: pixels),
    "jpeg 95": (1, lambda pixels: as_jpeg(pixels, 95)),
    "jpeg 75": (1, lambda pixels: as_jpeg(pixels, 75)),
    "jpeg 50": (1, lambda pixels: as_jpeg(pixels, 50)),
    "half, jpeg 95": (1, lambda pixels: as_jpeg(resized(pixels, 0.5), 95)),
    "face of 330, jpeg 95": (3, lambda pixels: as_jpeg(pixels, 95)),
    "face of 55, png": (0.5, lambda pixels: pixels),
    "face of 55, jpeg 95": (0.5, lambda pixels: as_jpeg(pixels, 95)),
    "face of 45, jpeg 95": (0.4, lambda pixels: as_jpeg(pixels, 95)),
}


def found(pixels: Pixels, cloak: Cloak, grey: bool) -> float | None:
    try:
        crop = align(pixels, find_faces(pixels)[0])[0]
    except FaceNotFoundError:
        return None
    return correlation(crop, channels_last(cloak, grey))


def read(path: Path, grey: bool) -> Pixels:
    pixels = read_photo(path).pixels
    return np.repeat(np.rint(pixels.mean(-1, keepdims=True)), 3, -1).astype(np.uint8) if grey else pixels


def cloak_of(person: Path, kind: str, folder: Path) -> Cloak:
    file = folder / f"{person.name}.{kind}.safetensors"
    if not file.exists():
        options = {"model": "sface", "dtype": "float32", **KINDS[kind]}
        fastcloak.fit(photo_files(person)[:LEARN], **options).save(file)
    return fastcloak.load(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("people", type=Path, help="folder of a folder of photos per person, more than ten each")
    parser.add_argument("--distractors", type=Path, required=True, help="photos of others, one each")
    parser.add_argument("--cloaks", type=Path, required=True, help="folder that keeps the cloaks")
    parser.add_argument("-o", "--output", type=Path, required=True)
    logging.disable(logging.WARNING)  # of small faces
    given = parser.parse_args()
    people = sorted(folder for folder in given.people.iterdir() if folder.is_dir())
    clean = [photo for folder in [*people, given.distractors] for photo in photo_files(folder)]
    context = row_context()
    with open(given.output, "w", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *context], lineterminator="\n")
        writer.writeheader()
        for kind in KINDS:
            grey = kind == "grey"
            owners = people[: 1 if kind in ("balanced", "dlib") else PEOPLE]
            cloaks = [cloak_of(person, kind, given.cloaks) for person in owners]
            correlations = {"clean": [found(read(photo, grey), cloaks[0], grey) for photo in clean]}
            for i, (person, cloak) in enumerate(zip(owners, cloaks, strict=True)):
                for photo in photo_files(person)[::2]:
                    for saved, (factor, save) in SAVED.items():
                        original = resized(read(photo, grey), factor)
                        try:
                            protected = save(fastcloak.protect(original, cloak))
                        except FaceNotFoundError:
                            continue
                        correlations.setdefault(saved, []).append(found(protected, cloak, grey))
                        if saved == "png" and len(owners) > 1:
                            other = found(protected, cloaks[i - 1], grey)
                            correlations.setdefault("another's, png", []).append(other)
            for what, values in correlations.items():
                q = np.array([value for value in values if value is not None])
                spread = dict(zip(("q01", "median", "q99"), np.quantile(q, (0.01, 0.5, 0.99)), strict=True))
                row = {"cloak": kind, "photo": what, "photos": len(q), **spread, "bound": PRESENT}
                row |= {"largest": q.max(), "smallest": q.min(), "found": (q >= PRESENT).mean()}
                print(kind, what, *(f"{name} {row[name]:.4g}" for name in COLUMNS[2:]))
                writer.writerow({**row, **context})
                file.flush()


if __name__ == "__main__":
    main()
