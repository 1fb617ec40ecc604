"""A face in a photo -> the canvas on which its mask is learnt, its bounds there, and the mask back into the photo."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fastcloak.photos.alignment import ALIGNED_FACE, TEMPLATE_112, Face, align
from fastcloak.tailoring.canvas import SIDE, canvas_of, lay
from fastcloak.tailoring.look import bounds
from fastcloak.tailoring.options import LOOKS, TailorConfig
from tests.test_alignment import similarity, smooth

PHOTO = smooth(*np.meshgrid(np.arange(400.0), np.arange(300.0))).round().astype(np.uint8)
# Angle, size of the aligned square over 112, and where the template's corner comes to lie.
FACES = {
    "small": (0.0, 0.6, (100, 80)),
    "turned": (0.5, 1.0, (150, 60)),
    "upside down": (3.0, 1.1, (260, 220)),
    "large": (0.2, 2.2, (100, 10)),
    "over the border": (0.0, 1.3, (-40, -30)),
}


def face(angle, size, shift):
    transform = similarity(angle, size, shift)
    landmarks = (TEMPLATE_112 @ transform[:, :2].T + transform[:, 2]).astype(np.float32)
    return Face((0, 0, 1, 1), landmarks, 1.0)


def aligned(canvas, picture):
    place = torch.from_numpy(canvas.place)[None]
    grid = F.affine_grid(place, [1, 3, 112, 112], align_corners=False)
    picture = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None]
    seen = F.grid_sample(picture, grid, padding_mode="border", align_corners=False)
    return seen[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("name", FACES)
def test_a_canvas_shows_the_face_at_its_place(name):
    canvas = canvas_of(PHOTO, face(*FACES[name]))
    seen, expected = aligned(canvas, canvas.picture), align(PHOTO, face(*FACES[name]))[0]
    inside = aligned(canvas, np.repeat(canvas.window[..., None], 3, 2)) == 1
    assert inside.mean() > 0.4
    assert np.abs(seen - expected)[inside].max() < 4
    assert canvas.face_size == pytest.approx(112 * FACES[name][1])
    assert canvas.lift == pytest.approx(1, abs=1e-9) or name == "large"


def test_a_small_face_keeps_its_own_pixels():
    canvas = canvas_of(PHOTO, face(0.0, 0.6, (100, 80)))
    left, top = canvas.corner
    np.testing.assert_array_equal(canvas.picture, PHOTO[top : top + SIDE, left : left + SIDE])


@pytest.mark.parametrize("name", FACES)
def test_a_mask_that_is_laid_is_seen_as_it_was_learnt(name):
    canvas = canvas_of(PHOTO, face(*FACES[name]))
    rng = np.random.default_rng(0)
    mask = np.where(rng.random((SIDE // 8, SIDE // 8, 3)) < 0.5, -1, 1).repeat(8, 0).repeat(8, 1).astype(np.float32)
    bound = np.repeat(8 / 255 * canvas.window[..., None], 3, 2)
    (rows, columns), change = lay(mask, bound, canvas, *PHOTO.shape[:2])
    assert change.shape == PHOTO[rows, columns].shape
    assert np.abs(change).max() <= bound.max()
    laid = np.zeros(PHOTO.shape, np.float32)
    laid[rows, columns] = 1000 * change + 128
    laid[laid == 0] = 128
    inside = aligned(canvas, np.repeat(canvas.window[..., None], 3, 2)) == 1
    seen = align(laid.round().astype(np.uint8), face(*FACES[name]))[0][inside]
    assert np.corrcoef(seen, aligned(canvas, 1000 * mask * bound)[inside])[0, 1] > 0.9


def test_an_aligned_photo_is_covered_to_its_border():
    photo = PHOTO[:112, :112]
    canvas = canvas_of(photo, ALIGNED_FACE)
    (rows, columns), change = lay(
        np.ones((SIDE, SIDE, 3), np.float32), bounds(canvas, TailorConfig()), canvas, 112, 112
    )
    assert (rows, columns) == (slice(0, 112), slice(0, 112))
    assert (change > 0).all()
    np.testing.assert_allclose(aligned(canvas, canvas.picture), photo, atol=1e-3)


@pytest.mark.parametrize("look", LOOKS)
def test_bounds_have_the_mean_that_is_asked_and_stay_in_range(look):
    canvas, config = canvas_of(PHOTO, face(0.3, 0.9, (150, 80))), TailorConfig(look=look, eps=6 / 255)
    bound = bounds(canvas, config)
    low, high = LOOKS[look]
    whole = canvas.window == 1
    assert (bound.dtype, bound.shape) == (np.float32, (SIDE, SIDE, 3))
    assert bound[whole].min() >= low * 6 / 255 - 1e-7
    assert bound.max() <= config.largest + 1e-7 == pytest.approx(high * 6 / 255 + 1e-7)
    assert (bound[canvas.window == 0] == 0).all()
    assert bound[whole].mean() == pytest.approx(6 / 255, rel=0.02)


@pytest.mark.promise("P2")
def test_no_bound_is_above_the_largest_where_that_ends_at_the_scale():
    canvas, config = canvas_of(PHOTO, face(0.3, 0.9, (150, 80))), TailorConfig(look="textured", eps=0.8)
    assert config.largest == 1
    assert bounds(canvas, config).max() <= 1


def test_smooth_skin_changes_less_than_hair():
    photo = np.full((160, 160, 3), 128, np.uint8)
    photo[:80] = np.random.default_rng(0).integers(60, 200, (80, 160, 3))
    bound = bounds(canvas_of(photo, face(0.0, 1.0, (20, 20))), TailorConfig(look="textured"))
    assert bound[100:120, 60:100].max() < 0.5 * bound[40:60, 60:100].min()


def test_a_flat_picture_has_even_bounds():
    photo = np.full((160, 160, 3), 77, np.uint8)
    canvas = canvas_of(photo, face(0.0, 1.0, (20, 20)))
    np.testing.assert_allclose(bounds(canvas, TailorConfig())[canvas.window == 1], 7.25 / 255, rtol=1e-3)
