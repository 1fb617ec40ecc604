"""Random views: neutral numbers change nothing, the real thing is met, and gradients are those of the view."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from fastcloak.fitting.options import AUGMENTATIONS
from fastcloak.ops import augment
from fastcloak.ops.augment import DRAWS, Views, blur_matrix
from tests.conftest import smooth_faces

CPU = torch.device("cpu")


def draws(count, **fixed):
    numbers = torch.rand(count, DRAWS, generator=torch.Generator().manual_seed(1))
    for column, value in fixed.items():
        numbers[:, int(column[1:])] = value
    return numbers


def cloaked(faces, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (faces + 8 / 255 * torch.randn(1, *faces.shape[1:], generator=generator)).clamp(0, 1)


def test_the_same_numbers_give_the_same_view_and_others_another():
    faces = smooth_faces(2)
    for name in AUGMENTATIONS:
        view = Views((name,), CPU)
        numbers = draws(2)
        numbers[:, 11] = 0.1
        seen = view(cloaked(faces), faces, numbers)
        assert (seen.shape, seen.dtype) == (faces.shape, torch.float32)
        assert torch.equal(seen, view(cloaked(faces), faces, numbers))
        assert not torch.equal(seen, view(cloaked(faces), faces, 1 - numbers)), name
        assert not torch.equal(seen, cloaked(faces)), name


def test_views_of_a_batch_are_those_of_its_pictures():
    faces = smooth_faces(3)
    view, numbers = Views(AUGMENTATIONS, CPU), draws(3)
    together = view(cloaked(faces), faces, numbers)
    for i in range(3):
        alone = view(cloaked(faces)[i : i + 1], faces[i : i + 1], numbers[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "neutral"),
    [
        ("mix", {"_12": 0.0}),
        ("color", {"_3": 0.5, "_4": 0.5}),
        ("blur", {"_5": 0.0}),
        ("flip", {"_11": 0.9}),
        ("geometry", {"_7": 0.5, "_8": 0.5, "_9": 0.5, "_10": 0.5}),
    ],
)
def test_neutral_numbers_change_nothing(name, neutral):
    faces = smooth_faces(1)
    seen = Views((name,), CPU)(cloaked(faces), faces, draws(1, **neutral))
    torch.testing.assert_close(seen, cloaked(faces), atol=1e-5, rtol=0)


def test_flip_mirrors_and_color_is_contrast_then_brightness():
    faces = smooth_faces(1)
    seen = Views(("flip",), CPU)(faces, faces, draws(1, _11=0.1))
    torch.testing.assert_close(seen, faces.flip(3), atol=1e-5, rtol=0)
    seen = Views(("color",), CPU)(faces, faces, draws(1, _3=1.0, _4=0.0))
    torch.testing.assert_close(seen, (faces - 0.5) * (1 + augment.CONTRAST) + 0.5 - augment.BRIGHTNESS)


def test_mix_fades_the_face_into_a_texture_and_keeps_the_mask():
    faces, view = smooth_faces(2), Views(("mix",), CPU)
    textures = view.textures
    assert textures.shape == (augment.TEXTURES, 3, 112, 112)
    assert torch.equal(textures, textures.clamp(0, 1))
    assert torch.equal(textures, Views(("mix",), CPU).textures)
    numbers = draws(2, _12=(7 + 0.75) / augment.TEXTURES)
    seen = view(faces, faces, numbers)
    torch.testing.assert_close(seen, torch.lerp(faces, textures[7], 0.75 * augment.MIX), atol=1e-5, rtol=0)
    mask = view(cloaked(faces), faces, numbers) - seen
    torch.testing.assert_close(mask, cloaked(faces) - faces, atol=1e-6, rtol=0)
    most = view(faces, faces, draws(2, _12=1 - 2**-24))
    torch.testing.assert_close(most, torch.lerp(faces, textures[-1], augment.MIX), atol=1e-4, rtol=0)


def test_textures_have_the_spectrum_of_photos():
    """The power of photos falls with about the second power of the frequency (Field, JOSA A 1987), here 2.6."""
    power = torch.fft.rfft2(Views(("mix",), CPU).textures).abs().square().mean((0, 1))
    along = power[0, 2:40].log()
    frequency = torch.arange(2, 40).log()
    slope = torch.cov(torch.stack((frequency, along)))[0, 1] / frequency.var()
    assert -2.8 < slope < -2.2


def test_geometry_shifts_by_whole_pixels():
    faces = smooth_faces(1)
    share = 0.5 + 3 / augment.SHIFT / 2
    seen = Views(("geometry",), CPU)(faces, faces, draws(1, _7=share, _8=0.5, _9=0.5, _10=0.5))
    torch.testing.assert_close(seen[..., :-3], faces[..., 3:], atol=1e-5, rtol=0)


def test_photo_resamples_the_mask_and_leaves_the_face_alone():
    faces = smooth_faces(2)
    view = Views(("photo",), CPU)
    assert torch.equal(view(faces, faces, draws(2)), faces)
    # a face of 56 px whose pixels are pairs of the crop's: antialiased to half the side, and linearly back
    pictures = cloaked(faces)
    seen = view(pictures, faces, draws(2, _0=0.0, _1=0.5, _2=0.5)) - faces
    half = F.interpolate(pictures - faces, (56, 56), mode="bilinear", antialias=True)
    expected = F.interpolate(half, (112, 112), mode="bilinear")
    inside = (..., slice(4, -4), slice(4, -4))
    torch.testing.assert_close(seen[inside], expected[inside], atol=1e-5, rtol=0)
    # a larger face keeps more of the mask
    large = view(pictures, faces, draws(2, _0=1.0)) - faces
    assert large.square().mean() > 1.5 * seen.square().mean()


@pytest.mark.parametrize("quality", [50, 75, 95])
def test_jpeg_is_close_to_a_real_encoder(quality):
    faces = cloaked(smooth_faces(1))
    share = (quality - augment.JPEG_QUALITY[0]) / (augment.JPEG_QUALITY[1] - augment.JPEG_QUALITY[0])
    seen = Views(("jpeg",), CPU)(faces, faces, draws(1, _6=share))[0]
    file = io.BytesIO()
    pixels = (255 * faces[0]).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    real = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255
    lost = (real - faces[0]).abs().mean()
    assert (seen - real).abs().mean() < 0.35 * lost


def test_jpeg_takes_sides_that_are_no_whole_blocks():
    faces = smooth_faces(1)[..., :45, :77]
    assert Views(("jpeg",), CPU)(faces, faces, draws(1)).shape == faces.shape


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name not in ("mix", "jpeg")])
def test_gradients_are_those_of_the_view(name):
    faces = smooth_faces(1)[..., ::8, ::8].double()
    numbers = draws(1).double()
    numbers[:, 11] = 0.1
    pictures = cloaked(faces).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: Views((name,), CPU)(x, faces, numbers), pictures)


def test_jpeg_passes_gradients_through_its_rounding():
    """Without rounding it keeps what has no colour detail: a grey gradient passes as it is."""
    faces = smooth_faces(1)
    x = cloaked(faces).requires_grad_()
    grey = torch.randn(1, 1, 112, 112, generator=torch.Generator().manual_seed(3)).expand(1, 3, 112, 112)
    seen = Views(("jpeg",), CPU)(x, faces, draws(1))
    (grads,) = torch.autograd.grad(seen, x, grey)
    torch.testing.assert_close(grads.sum(1), grey.sum(1), atol=2e-2, rtol=0)


def test_blur_matrix_is_a_gaussian_with_rows_of_one():
    rows = blur_matrix(torch.tensor([0.0, 1.5]), 21)
    assert torch.equal(rows[0], torch.eye(21))
    torch.testing.assert_close(rows.sum(-1), torch.ones(2, 21))
    middle = rows[1, 10]
    assert middle[11] / middle[10] == pytest.approx(np.exp(-1 / (2 * 1.5**2)), rel=1e-5)
