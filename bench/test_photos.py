"""From photo file to protected photo file: 12 megapixels step by step, and a folder with more jobs.

    pytest bench/test_photos.py --benchmark-json rows.json         needs the extra demo
    taskset -c 0 pytest bench/test_photos.py -k "not folder"       one core

`without detection` is reading, adding the mask and coding a JPEG again, with a face of 1,500 pixels. Detection costs
the same for any size, since it looks at the photo at 640 pixels first.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from pytest_benchmark.fixture import BenchmarkFixture

from fastcloak.cloak import Cloak
from fastcloak.photos.alignment import TEMPLATE_112, Face
from fastcloak.photos.detection import detect
from fastcloak.photos.files import decode_photo, encode_photo
from fastcloak.protection.album import Outcome, plan_photos, protect_photos
from fastcloak.protection.photo import protect
from fastcloak.system.packages import orl_folder

pytestmark = pytest.mark.benchmark(max_time=3, min_rounds=3)

SIDE = 1500


def cloak() -> Cloak:
    signs = torch.randint(0, 2, (3, 112, 112), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    return Cloak(signs * (8 / 255 * (1 - 1e-6)), 8 / 255)


def photo() -> bytes:
    """A turned JPEG of quality 92 with a face, and with noise as cameras have it."""
    width, height = 3000, 4000
    coarse = np.random.default_rng(0).integers(40, 220, (12, 16, 3), np.uint8)
    pixels = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    noise = np.random.default_rng(1).integers(-6, 7, pixels.shape, np.int16)
    image = Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))
    with Image.open(orl_folder() / "s1" / "1.pgm") as portrait:
        image.paste(portrait.convert("RGB").resize((1380, 1680), Image.Resampling.BICUBIC), (800, 600))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    buffer = io.BytesIO()
    image.transpose(Image.Transpose.ROTATE_90).save(buffer, "JPEG", quality=92, subsampling="4:2:0", exif=exif)
    return buffer.getvalue()


def face() -> Face:
    landmarks = (TEMPLATE_112 - 55.5) * (SIDE / 112) + np.array([1500, 1500], np.float32)
    return Face((750, 750, SIDE, SIDE), landmarks.astype(np.float32), 1.0)


def test_without_detection(benchmark: BenchmarkFixture) -> None:
    payload, mask, where = photo(), cloak(), [face()]

    def whole() -> bytes:
        read = decode_photo(payload, name="photo")
        return encode_photo(replace(read, pixels=protect(read.pixels, mask, faces=where)), "photo.jpg")

    assert len(benchmark(whole)) > 1_000_000


STEPS = ("decode", "detect", "add the mask", "encode jpeg", "encode png")


@pytest.mark.parametrize("step", STEPS)
def test_step(benchmark: BenchmarkFixture, step: str) -> None:
    payload, mask, where = photo(), cloak(), [face()]
    read = decode_photo(payload, name="photo")
    calls: tuple[Callable[[], object], ...] = (
        lambda: decode_photo(payload, name="photo"),
        lambda: detect(read.pixels),
        lambda: protect(read.pixels, mask, faces=where),
        lambda: encode_photo(read, "photo.jpg"),
        lambda: encode_photo(read, "photo.png"),
    )
    benchmark(calls[STEPS.index(step)])


@pytest.mark.parametrize("jobs", [1, 2, 4])
def test_folder(benchmark: BenchmarkFixture, jobs: int, tmp_path: Path) -> None:
    (tmp_path / "album").mkdir()
    for i in range(8):
        (tmp_path / "album" / f"{i}.jpg").write_bytes(photo())
    rounds = itertools.count()

    def run() -> list[Outcome]:
        return protect_photos(plan_photos([tmp_path / "album"], tmp_path / f"out{next(rounds)}"), cloak(), jobs=jobs)

    assert [outcome.status for outcome in benchmark(run)] == ["protected"] * 8
