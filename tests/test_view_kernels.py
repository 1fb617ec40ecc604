"""The views' kernels against the reference in the same dtype and in float64, on a GPU or in Triton's interpreter."""

import math

import fastcloak.kernels
import pytest
import torch
from fastcloak.kernels import jpeg as jpeg_kernel
from fastcloak.kernels import photo as photo_kernel
from fastcloak.kernels import view_batch_, view_gradient_, view_step_
from fastcloak.kernels import views as kernel

from fastcloak.ops import augment, reference
from fastcloak.ops.augment import DRAWS
from fastcloak.ops.jpeg import JPEG_QUALITY, jpeg_tables

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
ALPHA, EPS = 2 / 255, 8 / 255
SCALE = torch.tensor([1.7, -0.3, 0.9], device=DEVICE)
SHIFT = torch.tensor([-0.4, 0.1, 2.0], device=DEVICE)
ALL = {"color": True, "geometry": True, "flip": True}
STEP = torch.finfo(torch.float32).eps

lets_nan_through = pytest.mark.filterwarnings("ignore:(invalid value|divide by zero):RuntimeWarning")
pytestmark = pytest.mark.promise("P14")


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """The interpreter takes its time for each program, however many pixels it has."""
    if not CUDA:
        monkeypatch.setattr(photo_kernel, "PIXELS", 2048)
        monkeypatch.setattr(kernel, "EDGE", 16)


def random(*shape, seed=0, uniform=False):
    draw = torch.rand if uniform else torch.randn
    return draw(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def draws(P, b, extreme=None):
    """Numbers of views; "low" and "high" are the largest moves, which ask furthest beyond the border."""
    numbers = random(P, b, DRAWS, seed=5, uniform=True)
    if extreme is not None:
        numbers[..., 7:11] = {"low": 0.0, "high": 1 - 2**-24}[extreme]
    numbers[:, 0, 11] = 0.1  # mirrored, the others as they come
    return numbers


def place(P, zoom, turn=0.4, beyond=0.0):
    """Where the aligned face lies in a picture with a side of 1/zoom of its own, turned and shifted."""
    cos, sin = zoom * math.cos(turn), zoom * math.sin(turn)
    return torch.tensor([[[cos, -sin, beyond], [sin, cos, -beyond]]], device=DEVICE).repeat(P, 1, 1)


def picture_inputs(P, N, b, H, W):
    index = torch.randint(0, N, (P, b), generator=torch.Generator().manual_seed(3)).to(DEVICE)
    return random(P, N, 3, H, W, uniform=True), 0.2 * random(P, 3, H, W, seed=1), index


def nan_pictures(P, b, h, w, dtype=torch.float32, last=False):
    flat = torch.full((P * b, 3, h, w), math.nan, dtype=dtype, device=DEVICE)
    return flat.to(memory_format=torch.channels_last if last else torch.contiguous_format).view(P, b, 3, h, w)


def double(arguments):
    return {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in arguments.items()}


def assert_within_twice_the_error(actual, expected, exact, floor):
    own = (expected.double() - exact).abs().max().item()
    error = (actual.double() - exact).abs().max().item()
    assert error <= max(2 * own, floor), f"error {error:.2e}, PyTorch {own:.2e}, floor {floor:.2e}"


def check_view_batch(faces, mask, index, numbers, out, **more):
    theirs, exact = torch.empty_like(out), torch.empty_like(out, dtype=torch.float64)
    arguments = {"faces": faces, "mask": mask, "index": index, "draws": numbers, **more}
    view_batch_(out=out, **arguments)
    reference.view_batch_(out=theirs, **arguments)
    reference.view_batch_(out=exact, **double(arguments))
    # A place is rounded to float32 and the picture is as steep as noise is.
    floor = max(64 * STEP, torch.finfo(out.dtype).eps) * exact.abs().max().item()
    assert_within_twice_the_error(out, theirs, exact, floor)
    return out


@pytest.mark.parametrize("extreme", [None, "low", "high"])
@pytest.mark.parametrize("views", [{"color": True}, {"flip": True}, {"geometry": True, "flip": True}, ALL])
def test_view_batch_equals_the_reference(views, extreme):
    faces, mask, index = picture_inputs(2, 3, 1, 11, 11)
    more = {"bound": random(2, 3, 11, 11, seed=4, uniform=True), "scale": SCALE, "shift": SHIFT}
    check_view_batch(faces, mask, index, draws(2, 1, extreme), nan_pictures(2, 1, 11, 11), **views, **more)


def test_view_batch_of_pictures_of_several_blocks():
    faces, mask, index = picture_inputs(1, 3, 2, 23, 19)
    check_view_batch(faces, mask, index, draws(1, 2), nan_pictures(1, 2, 23, 19), **ALL)


def test_without_views_it_is_cloak_batch_to_the_bit():
    faces, mask, index = picture_inputs(2, 3, 2, 9, 7)
    out, expected = nan_pictures(2, 2, 9, 7), nan_pictures(2, 2, 9, 7)
    more = {"scale": SCALE, "shift": SHIFT, "bound": random(2, 3, 9, 7, uniform=True)}
    view_batch_(faces, mask, index, draws(2, 2), out, **more)
    reference.cloak_batch_(faces, mask, index, expected, **more)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_view_batch_writes_what_the_network_takes(dtype, last):
    faces, mask, index = picture_inputs(1, 3, 2, 7, 9)
    out = nan_pictures(1, 2, 7, 9, dtype, last)
    check_view_batch(faces, mask, index, draws(1, 2), out, **ALL, scale=SCALE, shift=SHIFT)


def test_view_batch_moves_chosen_faces_without_a_mask():
    """As jitter does, whose faces are then cloaked without an index."""
    faces, mask, index = picture_inputs(2, 3, 2, 9, 11)
    numbers = augment.jittering(random(2, 2, augment.JITTERS, seed=3, uniform=True))
    moved = check_view_batch(faces, None, index, numbers, nan_pictures(2, 2, 9, 11), geometry=True)
    assert not torch.equal(moved, faces[torch.arange(2)[:, None], index])
    check_view_batch(moved, mask, None, draws(2, 2), nan_pictures(2, 2, 9, 11), **ALL, scale=SCALE, shift=SHIFT)


def test_view_batch_with_masks_of_their_own_or_none_and_with_mix():
    faces, _, index = picture_inputs(1, 3, 3, 8, 8)
    textures = random(augment.TEXTURES, 3, 8, 8, seed=8, uniform=True)
    numbers = draws(1, 3)
    numbers[0, 0, 12] = 1 - 2**-24
    for mask in (random(1, 3, 3, 8, 8, seed=2), random(1, 3, 8, 8, seed=2)):
        check_view_batch(faces, mask, index, numbers, nan_pictures(1, 3, 8, 8), **ALL, textures=textures)
    check_view_batch(faces, mask, index, numbers, nan_pictures(1, 3, 8, 8), textures=textures)
    check_view_batch(faces, None, None, numbers, nan_pictures(1, 3, 8, 8), **ALL)


PLACES = [(0.7, 0.0, 0.0), (0.7, 0.6, 0.3), (0.2, 0.5, 0.6), (1.2, -0.4, 0.0)]


@pytest.mark.parametrize("at", PLACES)
def test_view_batch_finds_faces_at_their_place(at):
    faces, mask, index = picture_inputs(2, 1, 1, 16, 16)
    more = {"place": place(2, *at), "bound": random(2, 3, 16, 16, uniform=True)}
    check_view_batch(faces, mask, index, draws(2, 1), nan_pictures(2, 1, 11, 11), **ALL, **more)


def check_gradient(grads, numbers, size, **more):
    P, b = grads.shape[:2]
    out, theirs = nan_pictures(P, b, *size), nan_pictures(P, b, *size)
    exact = theirs.double()
    view_gradient_(grads, numbers, out, **more)
    reference.view_gradient_(grads, numbers, theirs, **more)
    reference.view_gradient_(grads.double(), numbers.double(), exact, **double(more))
    assert_within_twice_the_error(out, theirs, exact, 64 * STEP * exact.abs().max().item())
    return out


@pytest.mark.parametrize("extreme", [None, "low", "high"])
@pytest.mark.parametrize("views", [{"color": True}, {"flip": True}, ALL])
def test_view_gradient_equals_the_reference(views, extreme):
    check_gradient(random(2, 1, 3, 11, 11), draws(2, 1, extreme), (11, 11), **views, scale=SCALE)


@pytest.mark.parametrize("at", PLACES)
def test_view_gradient_of_faces_at_their_place(at):
    check_gradient(random(1, 1, 3, 8, 8), draws(1, 1), (12, 12), **ALL, place=place(1, *at), scale=SCALE, unit=True)


@pytest.mark.parametrize("side", [2, 3, 14])
def test_view_gradient_is_the_adjoint_of_the_view_in_float64(side):
    """Against autograd, whose border and corners stand for all that was asked beyond them."""
    faces, numbers = random(1, 1, 3, side, side, uniform=True).double(), draws(1, 1, "high")
    x = faces.flatten(0, 1).requires_grad_()
    contrast, brightness = augment.contrast_and_brightness(numbers[0].double())
    at = augment.grid(numbers[0].double(), x.shape, True, True, None)
    seen = torch.nn.functional.grid_sample(
        (x - 0.5) * contrast + 0.5 + brightness, at, padding_mode="border", align_corners=False
    )
    grads = random(1, 1, 3, side, side, seed=3)
    (exact,) = torch.autograd.grad(seen, x, grads[0].double())
    out = nan_pictures(1, 1, side, side)
    view_gradient_(grads, numbers, out, **ALL)
    torch.testing.assert_close(out[0].double(), exact, rtol=0, atol=64 * STEP * exact.abs().max().item())


def check_step(grads, numbers, acc, delta_in, **more):
    ours, theirs = [acc.clone(), delta_in.clone()], [acc.clone(), delta_in.clone()]
    exact = acc.double()
    view_step_(grads, numbers, *ours, ALPHA, EPS, **more)
    reference.view_step_(grads, numbers, *theirs, ALPHA, EPS, **more)
    reference.view_step_(grads.double(), numbers.double(), exact, delta_in.double(), ALPHA, EPS, **double(more))
    assert_within_twice_the_error(ours[0], theirs[0], exact, 64 * STEP * exact.abs().max().item())
    g = exact - acc.double()
    sure = (g.abs() > 64 * STEP * g.abs().max()) | (g == 0)
    assert sure.float().mean() > 0.9
    assert torch.equal(ours[1][sure], theirs[1][sure])
    return ours


def step_state(P, H, W):
    return random(P, 3, H, W, seed=1), (2 * random(P, 3, H, W, seed=2, uniform=True) - 1) * EPS


@pytest.mark.parametrize("more", [{}, {"unit": True}, {"grey": True}, {"unit": True, "grey": True}])
@pytest.mark.parametrize("views", [{}, {"color": True}])
def test_view_step_equals_the_reference(views, more):
    check_step(random(2, 3, 3, 12, 11), draws(2, 3), *step_state(2, 12, 11), **views, **more, scale=SCALE)


def test_view_step_through_all_views():
    check_step(random(2, 2, 3, 8, 8), draws(2, 2), *step_state(2, 8, 8), **ALL, unit=True, grey=True, scale=SCALE)
    check_step(random(1, 1, 3, 13, 12), draws(1, 1), *step_state(1, 13, 12), **ALL)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_view_step_takes_gradients_as_networks_give_them(dtype, last):
    grads = nan_pictures(1, 2, 6, 6, dtype, last).copy_(random(1, 2, 3, 6, 6))
    check_step(grads, draws(1, 2), *step_state(1, 6, 6), **ALL, scale=SCALE)
    state = [one.to(memory_format=torch.channels_last) for one in step_state(1, 6, 6)]
    check_step(grads, draws(1, 2), *state, grey=True, unit=True)


def test_view_step_at_a_place():
    check_step(random(1, 1, 3, 8, 8), draws(1, 1), *step_state(1, 10, 10), **ALL, place=place(1, 0.9))


def test_without_views_it_is_accumulate_step_to_the_bit():
    grads, (acc, delta_in) = random(2, 1, 3, 9, 7), step_state(2, 9, 7)
    ours, theirs = (acc.clone(), delta_in.clone()), (acc.clone(), delta_in.clone())
    view_step_(grads, draws(2, 1), *ours, ALPHA, EPS, scale=SCALE)
    reference.accumulate_step_(grads, *theirs, ALPHA, EPS, SCALE)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


def test_a_step_is_the_same_each_time():
    grads, numbers, state = random(1, 2, 3, 9, 9), draws(1, 2, "high"), step_state(1, 9, 9)
    one, two = ([part.clone() for part in state] for _ in range(2))
    for ours in (one, two):
        view_step_(grads, numbers, *ours, ALPHA, EPS, **ALL, unit=True)
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


@lets_nan_through
@pytest.mark.promise("P8")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_shows_in_the_mask_and_nowhere_else(bad):
    grads, (acc, delta_in) = random(2, 1, 3, 9, 9), step_state(2, 9, 9)
    grads[1, 0, 2, 0, 0] = bad
    view_step_(grads, draws(2, 1), acc, delta_in, ALPHA, EPS, **ALL)
    assert delta_in.isnan().flatten(1).sum(1).tolist()[0] == 0
    assert 1 <= delta_in.isnan().sum() <= 4
    assert not delta_in[1, :2].isnan().any()


@lets_nan_through
def test_a_photo_that_does_not_exist_is_nan():
    faces, mask, index = picture_inputs(2, 3, 2, 9, 9)
    index[0, 1], index[1, 0] = 3, -1
    out = torch.zeros(2, 2, 3, 9, 9, device=DEVICE)
    view_batch_(faces, mask, index, draws(2, 2), out, **ALL)
    assert out.isnan().float().mean((2, 3, 4)).tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("quality", [0.0, 0.7])
def test_jpeg_equals_the_reference_but_where_rounding_ties(quality):
    """Coefficients that lie between two steps round to either: a share of the blocks may differ by one step."""
    pictures, numbers, tables = random(1, 1, 3, 32, 48, uniform=True), draws(1, 1), jpeg_tables(DEVICE)
    numbers[..., 6] = quality
    out, expected = nan_pictures(1, 1, 32, 48), nan_pictures(1, 1, 32, 48)
    fastcloak.kernels.jpeg_batch_(pictures, numbers, out, *tables)
    reference.jpeg_batch_(pictures, numbers, expected, *tables)
    difference = (out - expected).abs()
    assert (difference > 1e-5).float().mean() < 0.05
    assert difference.max() < 0.2


def test_jpeg_gradient_equals_the_reference():
    grads, colors = random(2, 1, 3, 32, 16), jpeg_tables(DEVICE).colors
    out, expected = nan_pictures(2, 1, 32, 16), nan_pictures(2, 1, 32, 16)
    exact = expected.double()
    fastcloak.kernels.jpeg_gradient_(grads, out, colors)
    reference.jpeg_gradient_(grads, expected, colors)
    reference.jpeg_gradient_(grads.double(), exact, colors.double())
    assert_within_twice_the_error(out, expected, exact, 4 * STEP * exact.abs().max().item())


@pytest.mark.parametrize(("size", "own"), [(0.0, False), (1.0, True)])
def test_photo_and_its_gradient_equal_the_reference(size, own):
    """At a side of 112 pixels, of which a strip will do for the rows."""
    H, W = (14, 112) if size else (112, 14)
    faces, mask, index = picture_inputs(1, 2, 1, H, W)
    mask, bound = (mask[:, None], None) if own else (mask, random(1, 3, H, W, seed=4, uniform=True))
    numbers = draws(1, 1)
    numbers[..., 0] = size
    out, expected = nan_pictures(1, 1, H, W), nan_pictures(1, 1, H, W)
    arguments = {"faces": faces, "mask": mask, "index": index, "draws": numbers, "bound": bound}
    exact = expected.double()
    fastcloak.kernels.photo_batch_(out=out, **arguments)
    reference.photo_batch_(out=expected, **arguments)
    reference.photo_batch_(out=exact, **double(arguments))
    assert_within_twice_the_error(out, expected, exact, 64 * STEP)
    fastcloak.kernels.photo_gradient_(expected, numbers, out)
    reference.photo_gradient_(expected.double(), numbers.double(), exact)
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=64 * STEP)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_apart_center_equals_the_reference(dtype):
    P, E, D = 19, 5, 33
    features, earlier = random(P, D).to(dtype), torch.nn.functional.normalize(random(E, D, seed=1), dim=1)
    earlier[3:] = 0
    together = (random(P, P, seed=2) > 0).float().fill_diagonal_(0)
    together[4] = 0
    known = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0], device=DEVICE).repeat(P, 1)
    known[4] = 0
    known[7] = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0], device=DEVICE)
    center = random(P, D, seed=3)
    for there in (known, torch.zeros_like(known)):
        arguments = features, earlier, together, there, center, 0.7, 0.1
        actual, expected = fastcloak.kernels.apart_center(*arguments), reference.apart_center(*arguments)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(actual[4], center[4])


def test_constants_equal_those_of_the_views():
    for name in ("DRAWS", "MIX", "CONTRAST", "BRIGHTNESS", "SHIFT", "SCALE", "TEXTURES"):
        assert getattr(kernel, name).value == getattr(augment, name)
    assert kernel.ROTATION.value == math.radians(augment.ROTATION)
    assert kernel.TINY.value == reference.TINY
    assert (jpeg_kernel.LOW.value, jpeg_kernel.HIGH.value) == JPEG_QUALITY
    assert (photo_kernel.LOW.value, photo_kernel.HIGH.value) == augment.FACE_PIXELS
    assert jpeg_kernel.DRAWS.value == photo_kernel.DRAWS.value == DRAWS


def calls(P=2):
    """The arguments of a small call of every operation, by name."""
    faces, mask, index = picture_inputs(P, 3, 2, 8, 8)
    numbers, grads = draws(P, 2), random(P, 2, 3, 8, 8)
    acc, delta_in = step_state(P, 8, 8)
    # A photo's pixels are many to one of a small picture.
    large = {"faces": random(1, 1, 3, 56, 56, uniform=True), "index": index[:1, :1] * 0, "draws": numbers[:1, :1]}
    blocks, tables = random(1, 1, 3, 16, 16, uniform=True), jpeg_tables(DEVICE)
    back = {"grads": grads, "draws": numbers, **ALL, "place": place(P, 0.8), "scale": SCALE, "unit": True}
    return {
        "view_batch_": {
            "faces": faces,
            "mask": mask,
            "index": index,
            "draws": numbers,
            "out": nan_pictures(P, 2, 8, 8),
            **ALL,
            "textures": random(augment.TEXTURES, 3, 8, 8, uniform=True),
            "place": place(P, 0.8),
            "scale": SCALE,
            "shift": SHIFT,
            "bound": mask.abs(),
        },
        "photo_batch_": {**large, "mask": large["faces"][:, 0], "bound": None, "out": nan_pictures(1, 1, 56, 56)},
        "photo_gradient_": {"grads": large["faces"], "draws": numbers[:1, :1], "out": nan_pictures(1, 1, 56, 56)},
        "jpeg_batch_": {"pictures": blocks, "draws": numbers[:1, :1], "out": blocks.clone(), **tables._asdict()},
        "jpeg_gradient_": {"grads": blocks, "out": blocks.clone(), "colors": tables.colors},
        "apart_center": {
            "features": random(3, 5),
            "earlier": random(2, 5, seed=1),
            "together": torch.ones(3, 3, device=DEVICE),
            "known": torch.ones(3, 2, device=DEVICE),
            "center": random(3, 5, seed=2),
            "strength": 1.0,
            "sharpness": 0.1,
        },
        "view_gradient_": {**back, "out": nan_pictures(P, 2, 8, 8)},
        "view_step_": {**back, "acc": acc, "delta_in": delta_in, "alpha": ALPHA, "eps": EPS, "grey": True},
    }


@pytest.mark.parametrize("operation", calls())
def test_opcheck(operation):
    arguments = calls(1)[operation]
    if "out" in arguments:
        arguments["out"].zero_()
    torch.library.opcheck(getattr(torch.ops.fastcloak, operation).default, (), arguments)


@pytest.mark.parametrize(
    ("operation", "change", "message"),
    [
        (
            "view_batch_",
            {"faces": random(2, 3, 3, 8, 8).double()},
            r"faces must be \[2, N, 3, H, W\] torch.float32|flo",
        ),
        ("view_batch_", {"draws": random(2, 2, 12)}, r"draws must be \[2, 2, 13\] float32"),
        ("view_batch_", {"textures": random(2, 3, 8, 8)}, r"textures must be \[64, 3, 8, 8\]"),
        ("view_batch_", {"index": torch.zeros(2, 3, dtype=torch.int64)}, r"index must be \[2, 2\] int64"),
        ("view_batch_", {"place": None, "faces": random(2, 3, 3, 9, 9)}, r"faces must be \[2, N, 3, 8, 8\]"),
        ("view_gradient_", {"out": random(2, 3, 8, 8)}, r"out must be \[P, b, 3, H, W\] float32"),
        ("view_step_", {"grads": random(3, 2, 3, 8, 8)}, r"grads must be \[2, b, 3, h, w\]"),
        ("view_step_", {"delta_in": random(2, 3, 8, 9)}, r"delta_in must be \[2, 3, 8, 8\]"),
    ],
)
def test_arguments_that_a_kernel_cannot_take_are_refused_with_a_hint(operation, change, message):
    change = {name: value.to(DEVICE) if torch.is_tensor(value) else value for name, value in change.items()}
    with pytest.raises(ValueError, match=message):
        getattr(fastcloak.kernels, operation)(**calls()[operation] | change)
