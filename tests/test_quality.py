"""How far a protected picture is from its original: worked out by hand, and what cannot be measured."""

import math
import sys

import numpy as np
import pytest
from PIL import Image
from skimage.color import lab2rgb
from ssimulacra2 import compute_ssimulacra2

from fastcloak.evaluation.quality import ciede2000, largest_change, psnr, ssim, ssimulacra2

# Sharma, Wu, Dalal 2005, table 1, pairs 25 and on: Lab, Lab, CIEDE2000. Plain distances in Lab are 1.5 to 3.3 times as
# large in the second to fourth.
SHARMA = [
    ((63.0109, -31.0961, -5.8663), (62.8187, -29.7946, -4.0864), 1.2630),
    ((22.7233, 20.0904, -46.6940), (23.0331, 14.9730, -42.5619), 2.0373),
    ((36.4612, 47.8580, 18.3852), (36.2715, 50.5065, 21.2231), 1.4146),
    ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ((90.9257, -0.5406, -0.9208), (88.6381, -0.8985, -0.7239), 1.5381),
]


def picture(height, width, seed=0):
    """Smooth, with a little noise."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8))
    smooth = np.array(small.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return (smooth + rng.integers(-5, 6, smooth.shape)).clip(0, 255).astype(np.uint8)


def masked(pixels, levels, seed=1):
    signs = np.random.default_rng(seed).integers(0, 2, pixels.shape) * 2 - 1
    return (pixels + levels * signs).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(("a", "b", "expected"), SHARMA)
def test_ciede2000_of_published_pairs(a, b, expected):
    # Colours of whole grey levels are up to 0.3 away from those of the table.
    first, second = (np.full((4, 6, 3), np.rint(255 * lab2rgb(np.array(lab))), np.uint8) for lab in (a, b))
    assert ciede2000(first, second) == pytest.approx(expected, abs=0.35)
    assert ciede2000(second, first) == pytest.approx(expected, abs=0.35)
    half = first.copy()
    half[:2] = second[:2]
    assert ciede2000(first, half) == pytest.approx(ciede2000(first, second) / 2)


def test_ciede2000_of_a_picture_larger_than_is_taken_at_once():
    a, b = (np.tile(pixels, (10, 10, 1)) for pixels in (picture(60, 70), masked(picture(60, 70), 8)))
    assert ciede2000(a, b) == pytest.approx(ciede2000(a[:60, :70], b[:60, :70]))


def test_identical_pictures_have_the_best_scores():
    for pixels in (picture(9, 8), picture(112, 112), np.zeros((300, 20, 3), np.uint8)):
        scores = [score(pixels, pixels.copy()) for score in (largest_change, psnr, ssim, ciede2000, ssimulacra2)]
        assert scores == [0, math.inf, 1.0, 0.0, 100.0]


@pytest.mark.parametrize("size", [(112, 112), (300, 260), (40, 300)])
def test_more_change_scores_worse(size):
    pixels = picture(*size)
    scores = [
        (
            largest_change(pixels, other),
            -psnr(pixels, other),
            -ssim(pixels, other),
            ciede2000(pixels, other),
            -ssimulacra2(pixels, other),
        )
        for other in (masked(pixels, levels) for levels in (1, 3, 8, 16))
    ]
    assert [score[0] for score in scores] == [1, 3, 8, 16]
    for kind in zip(*scores, strict=True):
        assert list(kind) == sorted(set(kind))


def test_ssimulacra2_is_the_packages_where_it_has_six_scales(tmp_path):
    a, b = picture(256, 301), masked(picture(256, 301), 5)
    for name, pixels in (("a", a), ("b", b)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    assert ssimulacra2(a, b) == pytest.approx(compute_ssimulacra2(tmp_path / "a.png", tmp_path / "b.png"))


def test_small_pictures_are_mirrored_for_ssimulacra2():
    a, b = picture(64, 128), masked(picture(64, 128), 5)

    def tiled(pixels):
        down = np.concatenate([pixels, pixels[::-1]])
        across = np.concatenate([down, down[:, ::-1]], axis=1)
        return np.concatenate([across, across])

    assert tiled(a).shape == (256, 256, 3)
    assert ssimulacra2(a, b) == pytest.approx(ssimulacra2(tiled(a), tiled(b)))


def test_large_pictures_are_made_as_large_as_a_screen_for_ssimulacra2():
    a, b = picture(300, 2048), masked(picture(300, 2048), 8)
    smaller = [np.array(Image.fromarray(x).resize((1024, 150), Image.Resampling.LANCZOS)) for x in (a, b)]
    assert ssimulacra2(a, b) == pytest.approx(ssimulacra2(*smaller))


@pytest.mark.parametrize(("size", "has_ssim", "has_ssimulacra2"), [(1, 0, 0), (6, 0, 0), (7, 1, 0), (8, 1, 1)])
def test_tiny_faces_have_no_scores_of_structure(size, has_ssim, has_ssimulacra2):
    a, b = picture(size, 20), masked(picture(size, 20), 8)
    assert (ssim(a, b) is not None) == has_ssim
    assert (ssimulacra2(a, b) is not None) == has_ssimulacra2
    assert psnr(a, b) is not None
    assert ciede2000(a, b) > 0


def test_scores_whose_package_is_missing_are_none(monkeypatch):
    a, b = picture(40, 40), masked(picture(40, 40), 8)
    monkeypatch.setitem(sys.modules, "ssimulacra2", None)
    assert ssimulacra2(a, b) is None
    assert ssim(a, b) is not None
    for name in ("skimage.metrics", "skimage.color"):
        monkeypatch.setitem(sys.modules, name, None)
    assert [score(a, b) for score in (psnr, ssim, ciede2000, ssimulacra2)] == [None] * 4
    assert largest_change(a, b) == 8
