"""A face in a photo -> the square of 112 pixels, and the way back."""

import numpy as np
import pytest

from fastcloak.photos.alignment import TEMPLATE_112, Face, align, inverse, similarity_transform, warp


def similarity(angle, scale, shift):
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]]])


def smooth(x, y):
    """A colour picture that is known at every real coordinate."""
    return 127 + 100 * np.stack([np.sin(x / 9), np.cos(y / 11), np.sin((x + y) / 13)], -1)


def test_a_similarity_is_recovered_exactly():
    for angle, scale, shift in ((0.0, 1.0, (0, 0)), (0.4, 3.7, (800, -20)), (-2.9, 0.05, (5, 7))):
        expected = similarity(angle, scale, shift)
        points = np.random.default_rng(0).normal(size=(5, 2)) * 40
        found = similarity_transform(points, points @ expected[:, :2].T + expected[:, 2])
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, atol=1e-10)
        np.testing.assert_allclose(inverse(inverse(found)), found, atol=1e-9)


def test_a_similarity_is_the_best_one_and_never_a_reflection():
    rng = np.random.default_rng(1)
    source, target = rng.normal(size=(5, 2)), rng.normal(size=(5, 2)) * [-1, 1]
    best = similarity_transform(source, target)
    assert np.linalg.det(best[:, :2]) > 0
    assert best[0, 0] == pytest.approx(best[1, 1])
    assert best[0, 1] == pytest.approx(-best[1, 0])

    def error(matrix):
        return ((source @ matrix[:, :2].T + matrix[:, 2] - target) ** 2).sum()

    a, b = best[0, 0], best[1, 0]
    for change in np.eye(4) * 1e-3:
        near = np.array([[a + change[0], -b - change[1], best[0, 2] + change[2]],
                         [b + change[1], a + change[0], best[1, 2] + change[3]]])  # fmt: skip
        assert error(near) > error(best)


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (np.zeros((5, 2)), np.zeros((4, 2)), r"both be \[m, 2\] with m >= 2, got \[5, 2\] and \[4, 2\]"),
        (np.zeros((5, 3)), np.zeros((5, 3)), r"both be \[m, 2\]"),
        (np.zeros((1, 2)), np.zeros((1, 2)), r"m >= 2"),
        (np.ones((5, 2)), TEMPLATE_112, r"source must hold points that differ, got 5 times \[1\.0, 1\.0\]"),
    ],
)
def test_a_similarity_of_wrong_points_is_refused(source, target, message):
    with pytest.raises(ValueError, match=message):
        similarity_transform(source, target)


@pytest.mark.parametrize("scale", [0.3, 0.9, 1.0, 2.5, 7.3])
@pytest.mark.parametrize("angle", [0.0, 0.35, -1.2])
def test_alignment_undoes_a_known_similarity(scale, angle):
    to_photo = similarity(angle, scale, (0, 0))
    to_photo[:, 2] = 650 - to_photo[:, :2] @ [56, 56]
    inverse = np.linalg.inv(to_photo[:, :2])
    y, x = np.mgrid[:1300, :1300]
    u, v = np.moveaxis((np.stack([x, y], -1) - to_photo[:, 2]) @ inverse.T, -1, 0)
    photo = np.rint(smooth(u, v)).astype(np.uint8)
    landmarks = (TEMPLATE_112 @ to_photo[:, :2].T + to_photo[:, 2]).astype(np.float32)

    crop, transform = align(photo, Face((0, 0, 1, 1), landmarks, 1.0))
    assert crop.shape == (112, 112, 3)
    assert crop.dtype == np.uint8
    np.testing.assert_allclose(transform[:, :2] @ to_photo[:, :2], np.eye(2), atol=1e-5)
    np.testing.assert_allclose(transform[:, :2] @ to_photo[:, 2] + transform[:, 2], 0, atol=1e-3)
    v, u = np.mgrid[:112, :112]
    # Linear interpolation between photo pixels flattens curves a little where a face has fewer of them than the crop.
    assert np.abs(crop - smooth(u, v)).max() < (6 if scale < 0.5 else 2)


def test_shrinking_averages_instead_of_skipping():
    stripes = np.zeros((900, 900, 1), np.float32)
    stripes[:, ::2] = 1
    shrunk = warp(stripes, similarity(0, 1 / 9, (-4 / 9, -4 / 9)), 100, 100)
    np.testing.assert_allclose(shrunk[1:-1, 1:-1].squeeze(), 0.5, atol=0.1)
