"""How long no step runs because photos are still to be read: `fit_many` and `tailor_photos` on raw photos.

    python -m bench.speed.feed -o bench/results/feed_cpu.csv          needs the extra demo: faces of ORL
    python -m bench.speed.feed PEOPLE_DIR -o CSV                      a folder of photos per person

The network is a stand-in for a card: a forward pass sleeps, so that steps take time and no core. `waits` is the time of
the call less that of its steps, a person or a photo, and `share` that of the call. Readers 0 and jobs 1 are one thread
that reads and learns in turns, or one that reads ahead. The faces of ORL are set into photos of 1280x960 pixels.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from bench.harness.command import command
from bench.harness.rows import Rows
from bench.protection.people import people_folders, photos_of
from fastcloak import load_model, tailor_photos
from fastcloak.fitting.fitter import Fitter
from fastcloak.models import Surrogate
from fastcloak.photos.files import read_photo
from fastcloak.protection.album import MANIFEST, Plan

FACE, WIDTH, HEIGHT = (368, 448), 1280, 960
STEPS = 10


def stand_in(seconds: float) -> Surrogate:
    """A network that takes so long for a forward pass and computes next to nothing."""
    weights = torch.randn(48, 16, generator=torch.Generator().manual_seed(0))

    def embed(faces: torch.Tensor) -> torch.Tensor:
        time.sleep(seconds)
        return F.adaptive_avg_pool2d(faces, 4).flatten(1) @ weights

    return load_model(embed, name="stand-in")


def large_photo(face: Path, to: Path, seed: int) -> Path:
    """A JPEG of 1280x960 pixels, in which the photo of a face stands before noise."""
    generator = np.random.default_rng(seed)
    picture = Image.fromarray(generator.integers(60, 180, (HEIGHT // 8, WIDTH // 8, 3), np.uint8))
    picture = picture.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    shown = Image.fromarray(read_photo(face).pixels).resize(FACE, Image.Resampling.BICUBIC)
    picture.paste(shown, tuple(generator.integers(0, (WIDTH - FACE[0], HEIGHT - FACE[1])).tolist()))
    to.parent.mkdir(parents=True, exist_ok=True)
    picture.save(to, quality=90)
    return to


class Clock:
    """When steps ended, and what of a call was no step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def __call__(self, *progress: float) -> None:
        self.ends.append(time.perf_counter())

    def columns(self, call: Callable[[], object], things: int) -> dict[str, Any]:
        """Seconds of a call, and those without a step for each of its things."""
        began = time.perf_counter()
        call()
        seconds = time.perf_counter() - began
        step = median(after - before for before, after in zip(self.ends, self.ends[1:], strict=False))
        waits = max(0.0, seconds - step * len(self.ends))
        return {"step": step, "steps": len(self.ends), "seconds": seconds} | {
            "waits": waits / things,
            "share": waits / seconds,
        }


def fitting(people: dict[str, list[Path]], seconds: float, readers: int) -> dict[str, Any]:
    """A row of fit_many; a pass of one person takes these seconds."""
    fitter = Fitter(stand_in(seconds / STEPS), preset="plain", steps=STEPS, inner_steps=1, device="cpu")
    fitter.readers = readers
    clock = Clock()
    return clock.columns(lambda: fitter.fit_many(people, progress=clock), len(people))


def tailoring(album: Sequence[Path], seconds: float, jobs: int) -> dict[str, Any]:
    """A row of tailor_photos; a pass of 16 photos takes these seconds."""
    with tempfile.TemporaryDirectory() as folder:
        safe = Path(folder)
        photos = tuple((photo, safe / f"{i}{photo.suffix}") for i, photo in enumerate(album))
        plan = Plan(photos, safe / MANIFEST)
        clock = Clock()
        model = stand_in(seconds / STEPS)
        return clock.columns(
            lambda: tailor_photos(plan, None, model, jobs=jobs, learning=clock, gradients=STEPS, device="cpu"),
            len(album),
        )


def rows_of(
    people: dict[str, list[Path]], seconds: Sequence[float], threads: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Rows for passes of these lengths, each with each number of threads."""
    album = [photo for photos in people.values() for photo in photos]
    for length in seconds:
        for number in threads:
            about = {"pass": length, "people": len(people), "photos": len(album)}
            yield {"what": "fit_many", "readers": number, **about, **fitting(people, length, number)}
        for number in threads:
            jobs = max(1, number)
            yield {"what": "tailor_photos", "readers": jobs, **about, **tailoring(album, 16 * length / 10, jobs)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command(__doc__, "people", "output", "dry_run", count=12)
    parser.add_argument("--photos", type=int, default=10, help="of a person (%(default)s)")
    parser.add_argument("--seconds", nargs="+", type=float, default=[0.0, 2.0], help="of a pass (%(default)s)")
    parser.add_argument("--threads", nargs="+", type=int, default=[0, 1, 2], help="that read (%(default)s)")
    given = parser.parse_args(arguments)
    count, photos = (2, 2) if given.dry_run else (given.count, given.photos)
    rows = Rows(given.output)
    with tempfile.TemporaryDirectory() as folder:
        people = {one.name: photos_of(one)[:photos] for one in people_folders(given.people)[:count]}
        if given.people is None:
            for name, files in people.items():
                people[name] = [
                    large_photo(file, Path(folder) / name / f"{file.stem}.jpg", i) for i, file in enumerate(files)
                ]
        for row in rows_of(people, [0.0] if given.dry_run else given.seconds, given.threads):
            rows.add(row)
            print({column: value for column, value in row.items() if value != ""}, flush=True)


if __name__ == "__main__":
    main()
