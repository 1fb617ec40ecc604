"""Random views: neutral numbers change nothing, the real thing is met, and gradients are those of the view."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from fastcloak.fitting.options import AUGMENTATIONS
from fastcloak.ops import augment, jpeg, reference
from fastcloak.ops.augment import DRAWS, SEAM, blur_matrix, jittering, symmetric
from tests.conftest import smooth_faces

CPU = torch.device("cpu")
VIEWS = tuple(name for name in AUGMENTATIONS if name not in ("symmetry", "jitter"))  # which are other faces


def views(*names, back=False):
    """What shows n pictures, each with a mask of its own; or `back`, the gradients with respect to the pictures."""
    made = augment.Views(names, reference, CPU)

    def show(pictures, faces, draws, place=None):
        out = faces.new_empty(*faces.shape[:2], *((112, 112) if place is not None else faces.shape[2:]))
        index = torch.zeros(len(faces), 1, dtype=torch.int64)
        mask = (pictures - faces)[:, None]
        made.show(faces[:, None], mask, index, draws[:, None], out[:, None], place=place)
        return out

    def gradients(grads, draws, size, place=None):
        acc, look_ahead = grads.new_zeros(2, len(grads), 3, *size)
        made.step(grads[:, None], draws[:, None], acc, look_ahead, 0.0, 1.0, place=place)
        return acc

    return gradients if back else show


def draws(count, fixed=None):
    numbers = torch.rand(count, DRAWS, generator=torch.Generator().manual_seed(1))
    for column, value in (fixed or {}).items():
        numbers[:, column] = value
    return numbers


def cloaked(faces, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (faces + 8 / 255 * torch.randn(1, *faces.shape[1:], generator=generator)).clamp(0, 1)


def assert_close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("name", VIEWS)
def test_the_same_numbers_give_the_same_view_and_others_another(name):
    faces, view, numbers = smooth_faces(2), views(name), draws(2, {11: 0.1})
    seen = view(cloaked(faces), faces, numbers)
    assert (seen.shape, seen.dtype) == (faces.shape, torch.float32)
    assert torch.equal(seen, view(cloaked(faces), faces, numbers))
    assert not torch.equal(seen, view(cloaked(faces), faces, 1 - numbers))
    assert not torch.equal(seen, cloaked(faces))


def test_a_face_is_seen_at_its_place():
    """A canvas of 160 pixels holds the face at (20, 30): without moves the view is the face itself."""
    canvas = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    canvas[:, :, 30:142, 20:132] = smooth_faces(2)
    corner = [(2 * (20 + 55.5) + 1) / 160 - 1, (2 * (30 + 55.5) + 1) / 160 - 1]
    place = torch.tensor([[112 / 160, 0, corner[0]], [0, 112 / 160, corner[1]]]).expand(2, 2, 3)
    assert_close(views()(canvas, canvas, draws(2), place), smooth_faces(2))
    assert_close(views("flip")(canvas, canvas, draws(2, {11: 0.1}), place), smooth_faces(2).flip(3))
    moved = views("geometry")(canvas, canvas, draws(2), place)[..., 20:92, 20:92]
    assert_close(moved, views("geometry")(smooth_faces(2), smooth_faces(2), draws(2))[..., 20:92, 20:92], atol=1e-4)


def test_views_of_a_batch_are_those_of_its_pictures():
    faces, view, numbers = smooth_faces(3), views(*VIEWS), draws(3)
    together = view(cloaked(faces), faces, numbers)
    for i in range(3):
        alone = view(cloaked(faces)[i : i + 1], faces[i : i + 1], numbers[i : i + 1])
        assert_close(together[i : i + 1], alone, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "neutral"),
    [
        ("mix", {12: 0.0}),
        ("color", {3: 0.5, 4: 0.5}),
        ("blur", {5: 0.0}),
        ("flip", {11: 0.9}),
        ("geometry", {7: 0.5, 8: 0.5, 9: 0.5, 10: 0.5}),
    ],
)
def test_neutral_numbers_change_nothing(name, neutral):
    faces = smooth_faces(1)
    assert_close(views(name)(cloaked(faces), faces, draws(1, neutral)), cloaked(faces))


def test_flip_mirrors_color_is_contrast_then_brightness_and_geometry_shifts():
    faces = smooth_faces(1)
    assert_close(views("flip")(faces, faces, draws(1, {11: 0.1})), faces.flip(3))
    seen = views("color")(faces, faces, draws(1, {3: 1.0, 4: 0.0}))
    assert_close(seen, (faces - 0.5) * (1 + augment.CONTRAST) + 0.5 - augment.BRIGHTNESS)
    three_pixels = {7: 0.5 + 3 / augment.SHIFT / 2, 8: 0.5, 9: 0.5, 10: 0.5}
    assert_close(views("geometry")(faces, faces, draws(1, three_pixels))[..., :-3], faces[..., 3:])


def test_mix_fades_the_face_into_a_texture_and_keeps_the_mask():
    faces, view, textures = smooth_faces(2), views("mix"), augment.make_textures(CPU)
    assert textures.shape == (augment.TEXTURES, 3, 112, 112)
    assert torch.equal(textures, textures.clamp(0, 1))
    assert torch.equal(textures, augment.make_textures(CPU))
    numbers = draws(2, {12: (7 + 0.75) / augment.TEXTURES})
    seen = view(faces, faces, numbers)
    assert_close(seen, torch.lerp(faces, textures[7], 0.75 * augment.MIX))
    assert_close(view(cloaked(faces), faces, numbers) - seen, cloaked(faces) - faces, atol=1e-6)
    most = view(faces, faces, draws(2, {12: 1 - 2**-24}))
    assert_close(most, torch.lerp(faces, textures[-1], augment.MIX), atol=1e-4)


def test_textures_have_the_spectrum_of_photos():
    """The power of photos falls with about the second power of the frequency (Field, JOSA A 1987), here 2.6."""
    power = torch.fft.rfft2(augment.make_textures(CPU)).abs().square().mean((0, 1))
    along, frequency = power[0, 2:40].log(), torch.arange(2, 40).log()
    slope = torch.cov(torch.stack((frequency, along)))[0, 1] / frequency.var()
    assert -2.8 < slope < -2.2


def test_photo_resamples_the_mask_and_leaves_the_face_alone():
    faces, view = smooth_faces(2), views("photo")
    assert torch.equal(view(faces, faces, draws(2)), faces)
    # A face of 56 px whose pixels are pairs of the crop's: antialiased to half the side, and linearly back.
    seen = view(cloaked(faces), faces, draws(2, {0: 0.0, 1: 0.5, 2: 0.5})) - faces
    half = F.interpolate(cloaked(faces) - faces, (56, 56), mode="bilinear", antialias=True)
    expected = F.interpolate(half, (112, 112), mode="bilinear")
    assert_close(seen[..., 4:-4, 4:-4], expected[..., 4:-4, 4:-4])
    # A larger face keeps more of the mask.
    large = view(cloaked(faces), faces, draws(2, {0: 1.0})) - faces
    assert large.square().mean() > 1.5 * seen.square().mean()


@pytest.mark.parametrize("quality", [50, 75, 95])
def test_jpeg_is_close_to_a_real_encoder(quality):
    faces = cloaked(smooth_faces(1))
    low, high = jpeg.JPEG_QUALITY
    seen = views("jpeg")(faces, faces, draws(1, {6: (quality - low) / (high - low)}))[0]
    file = io.BytesIO()
    pixels = (255 * faces[0]).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    real = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255
    assert (seen - real).abs().mean() < 0.35 * (real - faces[0]).abs().mean()


def test_jpeg_takes_sides_that_are_no_whole_blocks():
    faces = smooth_faces(1)[..., :45, :77]
    assert views("jpeg")(faces, faces, draws(1)).shape == faces.shape


def test_symmetric_faces_are_a_half_and_its_mirror_image():
    faces = smooth_faces(3)[None]
    halves = symmetric(faces)
    assert halves.shape == (1, 6, 3, 112, 112)
    assert_close(halves, halves.flip(-1))
    assert_close(halves[:, :3, ..., :20], faces[..., :20], atol=2e-4)
    assert_close(halves[:, 3:, ..., 92:], faces[..., 92:], atol=2e-4)
    share = 1 / (1 + np.exp(-0.5 / SEAM))  # of the other side, in the first column right of the middle
    assert_close(halves[:, :3, ..., 56], (1 - share) * faces[..., 56] + share * faces[..., 55])


def test_jitter_moves_faces_by_half_as_much_as_geometry_beneath_a_mask_that_stays():
    faces, numbers = smooth_faces(3), torch.rand(3, 4, generator=torch.Generator().manual_seed(3))
    numbers[0] = torch.tensor([1.0, 0.5, 0.5, 0.5])  # to the left, by as much as it may
    mask = 8 / 255 * torch.randn(3, 3, 112, 112, generator=torch.Generator().manual_seed(4)).sign()
    seen = torch.empty(3, 1, 3, 112, 112)
    index, moves = torch.zeros(3, 1, dtype=torch.int64), jittering(numbers)
    augment.Views(("jitter",), reference, CPU).show(
        faces[:, None], mask, index, moves[:, None], seen, jitter=moves[:, None]
    )
    moved = views("geometry")(faces, faces, draws(3, {7 + i: 0.25 + 0.5 * numbers[:, i] for i in range(4)}))
    assert_close(seen[:, 0], (moved + mask).clamp(0, 1))
    assert_close(seen[0, 0, ..., :110], (faces[0, ..., 2:] + mask[0, ..., :110]).clamp(0, 1))


PLACE = torch.tensor([[[0.4, 0.3, 0.2], [-0.3, 0.4, -0.4]]])  # turned, at twice the size, partly beyond the border


@pytest.mark.parametrize("place", [None, PLACE])
@pytest.mark.parametrize("names", [*((name,) for name in VIEWS if name != "jpeg"), ("color", "blur", "flip")])
def test_gradients_are_those_of_the_view(names, place):
    """Views are linear in the picture: <g, view(x + m) - view(x)> = <gradient of g, m>."""
    faces, numbers = smooth_faces(2).double(), draws(2, {11: 0.1}).double()
    place = None if place is None else place.double().expand(2, 2, 3)
    generator = torch.Generator().manual_seed(2)
    mask, grads = (torch.randn(faces.shape, generator=generator).double() for _ in range(2))
    shown = views(*names)(faces + mask, faces, numbers, place) - views(*names)(faces, faces, numbers, place)
    back = views(*names, back=True)(grads, numbers, faces.shape[2:], place)
    torch.testing.assert_close((back * mask).sum(), (grads * shown).sum(), rtol=1e-9, atol=1e-9)


def test_the_gradient_of_jpeg_is_that_of_all_but_its_rounding():
    """In pictures of enormous numbers rounding is nothing: what is left is linear."""
    tables, numbers = jpeg.jpeg_tables(CPU, torch.float64), draws(2).double()
    generator = torch.Generator().manual_seed(2)
    x, grads = (torch.randn(2, 3, 32, 48, generator=generator).double() for _ in range(2))
    shown = jpeg.decoded(1e9 * x, numbers, *tables) / 1e9
    assert (shown - x).abs().mean() > 0.1  # colours are blurred
    torch.testing.assert_close((jpeg.decoded_gradient(grads, tables.colors) * x).sum(), (grads * shown).sum())


def test_jpeg_passes_gradients_through_its_rounding():
    """Without rounding it keeps what has no colour detail: a grey gradient passes unchanged."""
    faces = smooth_faces(1)
    grey = torch.randn(1, 1, 112, 112, generator=torch.Generator().manual_seed(3)).expand(1, 3, 112, 112)
    grads = views("jpeg", back=True)(grey, draws(1), faces.shape[2:])
    assert_close(grads.sum(1), grey.sum(1), atol=2e-2)


def test_blur_matrix_is_a_gaussian_with_rows_of_one():
    rows = blur_matrix(torch.tensor([0.0, 1.5]), 21)
    assert torch.equal(rows[0], torch.eye(21))
    torch.testing.assert_close(rows.sum(-1), torch.ones(2, 21))
    assert rows[1, 10, 11] / rows[1, 10, 10] == pytest.approx(np.exp(-1 / (2 * 1.5**2)), rel=1e-5)


@pytest.mark.parametrize("sigma", [0.5, 1.25, 4.0])
def test_blur_matrix_holds_no_denormal_numbers(sigma):
    """A product with them takes 30 times as long on a CPU."""
    rows = blur_matrix(torch.tensor([sigma]), 160)
    assert not ((rows != 0) & (rows < torch.finfo(rows.dtype).tiny)).any()
