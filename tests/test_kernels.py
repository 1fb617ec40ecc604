"""Every kernel against fastcloak.reference: on a GPU where there is one, elsewhere in Triton's interpreter."""

import inspect
import math

import fastcloak.kernels
import pytest
import torch
from fastcloak.kernels import accumulate_step_, cloak_batch_, hull_loss, outer_step_
from torch.nn.functional import normalize

from bench.speed import kernel_table
from fastcloak.fitting.options import OBJECTIVES
from fastcloak.ops import hull, reference

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
ALPHA, EPS = 1 / 255, 8 / 255
HALVES = [torch.bfloat16, torch.float16]

# NumPy warns of 0/0, Inf - Inf and comparisons with NaN, in which the interpreter computes what a GPU computes.
lets_nan_through = pytest.mark.filterwarnings("ignore:(invalid value|divide by zero):RuntimeWarning")


@pytest.fixture
def nan_filled():
    """torch.empty gives NaN, so that an output that was not written shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def random(*shape, seed=0, uniform=False):
    draw = torch.rand if uniform else torch.randn
    return draw(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def integers(*shape, seed=0):
    """Gradients whose sums are exact in any order, so that a step can be compared bit by bit."""
    return torch.randint(-9, 10, shape, generator=torch.Generator().manual_seed(seed)).float().to(DEVICE)


def in_format(tensor, last):
    """The same numbers contiguous or channels_last; [P, b, 3, H, W] as the view that a network's output is."""
    if tensor.dim() == 5:
        return in_format(tensor.flatten(0, 1), last).unflatten(0, tensor.shape[:2])
    return tensor.clone(memory_format=torch.channels_last if last else torch.contiguous_format)


def copies(*tensors):
    return [tensor.clone() for tensor in tensors]  # keeps the strides of dense tensors


def assert_same(actual, expected):
    assert actual.dtype == expected.dtype
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.equal(actual.nan_to_num(), expected.nan_to_num())


def assert_within_twice_the_error(actual, expected, exact, floor):
    """`actual` may be twice as far from float64 as PyTorch in the same dtype, or `floor` where that hit by luck."""
    own = (expected.double() - exact).abs().max().item()
    error = (actual.double() - exact).abs().max().item()
    assert error <= max(2 * own, floor), f"error {error:.2e}, PyTorch {own:.2e}, floor {floor:.2e}"


# ---- the same operations


def test_names_and_signatures_equal_the_reference():
    assert fastcloak.kernels.__all__ == reference.__all__
    for name in reference.__all__:
        ours, theirs = (inspect.signature(getattr(module, name)) for module in (fastcloak.kernels, reference))
        assert [(p.name, p.default) for p in ours.parameters.values()] == [
            (p.name, p.default) for p in theirs.parameters.values()
        ]


def test_constants_equal_those_of_the_hull():
    module = inspect.getmodule(hull_loss)
    assert module.OBJECTIVES == OBJECTIVES
    assert module.INTERIOR_POINT_STEPS == hull.INTERIOR_POINT_STEPS
    assert module.FINISHED.value == hull.FINISHED


# ---- hull_loss


def clean_and_cloaked(P, b, K, D, dtype=torch.float32, seed=0):
    clean = normalize(random(P, 1, D, seed=seed) + 0.6 * random(P, K, D, seed=seed + 1), dim=-1)
    index = torch.randint(0, K, (P, b), generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    cloaked = 3 * clean.gather(1, index[..., None].expand(-1, -1, D)) + random(P, b, D, seed=seed + 2) / D**0.5
    return clean, cloaked.to(dtype), index


def check_hull_loss(clean, cloaked, index, objective, **bounds):
    """Compares all three results with the reference in the same dtype and in float64; returns the kernel's."""
    at = hull.build_hull(clean, objective)
    actual = hull_loss(cloaked, at.points, at.gram, at.center, index, objective, **bounds)
    expected = reference.hull_loss(cloaked, at.points, at.gram, at.center, index, objective, **bounds)
    exact = reference.hull_loss(
        cloaked.double(), at.points.double(), at.gram, at.center.double(), index, objective, **bounds
    )
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
    # z and its distance from the hull are rounded to float32: 4 of its steps at the size of the unit feature, and
    # 1/|f| times that in the gradient; a gradient in half precision is rounded once more, in the interpreter cut off.
    step = 4 * torch.finfo(torch.float32).eps
    largest = exact[1].abs().max().item()
    assert_within_twice_the_error(actual[0], expected[0], exact[0], step * max(1, exact[0].abs().max().item()))
    floor = step * (1 / cloaked.double().norm(dim=-1)).max().item()
    assert_within_twice_the_error(actual[1], expected[1], exact[1], floor + torch.finfo(cloaked.dtype).eps * largest)
    assert (actual[2] - expected[2]).abs().max() <= max(1e-9, 2 * expected[2].max().item())
    return actual


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    ("P", "b", "K", "D"), [(1, 1, 1, 1), (2, 2, 3, 63), (3, 1, 2, 513), (1, 1, 10, 512), (1, 1, 17, 1300)]
)
def test_hull_loss_equals_the_reference(objective, P, b, K, D, nan_filled):
    check_hull_loss(*clean_and_cloaked(P, b, K, D), objective)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("dtype", HALVES)
def test_hull_loss_of_half_precision_features(objective, dtype, nan_filled):
    check_hull_loss(*clean_and_cloaked(2, 1, 2, 63, dtype), objective)


@pytest.mark.parametrize(
    ("objective", "K", "D"), [("affine_hull", 64, 512), ("affine_hull", 3, 8192), ("convex_hull", 33, 63)]
)
def test_hulls_whose_points_are_read_in_blocks(objective, K, D, nan_filled):
    check_hull_loss(*clean_and_cloaked(1, 1, K, D), objective)


def photo_set(kind, K=10, D=64):
    points = normalize(random(1, 1, D), dim=-1) + 0.7 / D**0.5 * random(1, K, D, seed=1)
    half = K // 2
    if kind == "duplicate":
        points[:, half:] = points[:, : K - half]
    if kind == "near_duplicate":
        points[:, half:] = points[:, : K - half] + 1e-4 * random(1, K - half, D, seed=2)
    if kind == "rank_two":
        points = random(1, K, 2) @ random(1, 2, D, seed=1)
    if kind == "collinear":
        points = points[:, :1] + random(1, K, 1, seed=2, uniform=True) * points[:, 1:2]
    points = normalize(points, dim=-1)
    features = points[:, :1] + 0.5 / D**0.5 * random(1, 1, D, seed=3)
    if kind == "inside":
        features = torch.softmax(random(1, 1, K, seed=3), -1) @ points
    return points, 20 * features, torch.zeros(1, 1, dtype=torch.int64, device=DEVICE)


@pytest.mark.parametrize("kind", ["random", "duplicate", "near_duplicate", "rank_two", "collinear", "inside"])
def test_the_gap_is_tiny_also_for_degenerate_sets(kind):
    _, _, gap = check_hull_loss(*photo_set(kind), "convex_hull")
    assert gap.min() >= -1e-12
    assert gap.max() <= 1e-6


@pytest.mark.parametrize("kind", ["random", "duplicate"])
def test_bounds_of_the_weights_hold(kind):
    clean, cloaked, index = photo_set(kind)
    loss, _, gap = check_hull_loss(clean, cloaked, index, "convex_hull", lower=0.02, upper=0.3)
    free = reference.hull_loss(cloaked, *_parts(clean), index, "convex_hull")[0]
    assert (loss > free + 1e-5).all()
    assert gap.max() <= 1e-6


def _parts(clean, objective="convex_hull"):
    at = hull.build_hull(clean, objective)
    return at.points, at.gram, at.center


@lets_nan_through
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_nan_in_one_feature_shows_in_its_results_and_nowhere_else(objective):
    b = 1 if objective == "convex_hull" else 2  # slow in the interpreter
    clean, cloaked, index = clean_and_cloaked(2, b, 3, 63)
    before = hull_loss(cloaked, *_parts(clean, objective), index, objective)
    cloaked[1, 0, 5] = math.nan
    after = hull_loss(cloaked, *_parts(clean, objective), index, objective)
    expected = reference.hull_loss(cloaked, *_parts(clean, objective), index, objective)
    for old, new, theirs in zip(before, after, expected, strict=True):
        assert torch.equal(new.isnan(), theirs.isnan())
        new[1, 0] = old[1, 0]
        assert torch.equal(new, old)


@lets_nan_through
def test_a_photo_that_does_not_exist_gives_nan():
    clean, cloaked, index = clean_and_cloaked(2, 2, 3, 63)
    index[0, 1], index[1, 0] = 3, -1
    loss, _, _ = hull_loss(cloaked, *_parts(clean), index, "fi_uap")
    assert loss.isnan().tolist() == [[False, True], [True, False]]


def test_each_person_has_their_own_hull():
    clean, cloaked, index = clean_and_cloaked(3, 2, 4, 16)
    for objective in ("fi_uap", "fi_uap_plus", "affine_hull"):
        loss, grad, _ = hull_loss(cloaked, *_parts(clean, objective), index, objective)
        for p in range(3):
            alone = hull_loss(cloaked[p : p + 1], *_parts(clean[p : p + 1], objective), index[p : p + 1], objective)
            assert torch.equal(loss[p], alone[0][0])
            assert torch.equal(grad[p], alone[1][0])


def test_hull_loss_takes_views():
    clean, cloaked, index = clean_and_cloaked(2, 3, 3, 30)
    points, gram, center = _parts(clean, "affine_hull")
    same = index[:, :1].expand(-1, 3)  # stride 0, as the fit's schedule has
    wide = torch.stack((cloaked, cloaked), -1)[..., 0]
    assert not wide.is_contiguous()
    for objective in ("fi_uap", "affine_hull"):
        expected = hull_loss(cloaked, points, gram, center, same.contiguous(), objective)
        actual = hull_loss(wide, points.mT.contiguous().mT, gram, center, same, objective)
        assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"objective": "hull"}, "objective must be one of fi_uap"),
        ({"features": torch.zeros(2, 1, 8, dtype=torch.float64)}, "features must be .* backend 'reference'"),
        ({"center": torch.zeros(1, 8)}, r"center must be \(2, 8\) torch.float32 .*, got \(1, 8\)"),
        ({"gram": torch.zeros(2, 3, 3)}, "gram must be .* torch.float64"),
        ({"index": torch.zeros(2, 1)}, "index must be .* torch.int64"),
        ({"points": torch.zeros(2, 65, 8), "gram": torch.zeros(2, 65, 65).double()}, "K must be at most 64, got 65"),
    ],
)
def test_hull_loss_refuses_with_words(change, words):
    arguments = {
        "features": torch.zeros(2, 1, 8),
        "points": torch.zeros(2, 3, 8),
        "gram": torch.zeros(2, 3, 3, dtype=torch.float64),
        "center": torch.zeros(2, 8),
        "index": torch.zeros(2, 1, dtype=torch.int64),
        "objective": "class_center",
    } | change
    arguments = {name: value.to(DEVICE) if torch.is_tensor(value) else value for name, value in arguments.items()}
    with pytest.raises(ValueError, match=words):
        hull_loss(**arguments)


# ---- accumulate_step_


def check_accumulate_step(grads, acc, delta_in, normalise=False, scale=None):
    ours, theirs = copies(acc, delta_in), copies(acc, delta_in)
    accumulate_step_(grads, *ours, ALPHA, EPS, normalise, scale)
    reference.accumulate_step_(grads, *theirs, ALPHA, EPS, normalise, scale)
    assert_same(ours[1], theirs[1])
    if grads.shape[1] == 1 and not normalise:
        assert_same(ours[0], theirs[0])
    else:
        # PyTorch on CUDA multiplies by 1/b; sums of |g| differ in order.
        exact = acc.double()
        reference.accumulate_step_(grads.double(), exact, delta_in.double(), ALPHA, EPS, normalise, scale)
        floor = 4 * torch.finfo(torch.float32).eps * exact.abs().max().item()
        assert_within_twice_the_error(ours[0], theirs[0], exact, floor)
    assert not torch.equal(ours[0], acc)


def step_state(P, b, H, W, formats=(False, False, False), dtype=torch.float32, draw=integers):
    return (
        in_format(draw(P, b, 3, H, W).to(dtype), formats[0]),
        in_format(random(P, 3, H, W, seed=1), formats[1]),
        in_format((2 * random(P, 3, H, W, seed=2, uniform=True) - 1) * EPS, formats[2]),
    )


SCALE = torch.tensor([1.7, -0.3, 0.9], device=DEVICE)
SHIFT = torch.tensor([-0.4, 0.1, 2.0], device=DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize(("P", "b", "H", "W"), [(1, 1, 7, 7), (2, 3, 7, 7), (3, 10, 5, 13), (1, 17, 8, 8)])
@pytest.mark.parametrize("scale", [None, SCALE], ids=["", "scale"])
def test_accumulate_step_equals_the_reference(dtype, P, b, H, W, scale):
    check_accumulate_step(*step_state(P, b, H, W, dtype=dtype), scale=scale)


@pytest.mark.parametrize("formats", [(g, a, d) for g in (0, 1) for a in (0, 1) for d in (0, 1)])
@pytest.mark.parametrize("normalise", [False, True])
def test_accumulate_step_in_any_mixture_of_memory_formats(formats, normalise):
    check_accumulate_step(*step_state(2, 3, 13, 11, formats), normalise, SCALE)


def test_accumulate_step_at_full_size():
    check_accumulate_step(*step_state(1, 1, 112, 112, draw=random), scale=SCALE)


def test_accumulate_step_normalises_each_person_alone():
    grads, acc, delta_in = step_state(3, 2, 13, 13)
    grads *= torch.tensor([1.0, 1e-6, 0.0], device=DEVICE)[:, None, None, None, None]
    before = acc.clone()
    accumulate_step_(grads, acc, delta_in, ALPHA, EPS, normalise=True)
    added = (acc - before).abs().mean((1, 2, 3))
    torch.testing.assert_close(added, torch.tensor([1.0, 1.0, 0.0], device=DEVICE), atol=1e-5, rtol=0)


@lets_nan_through
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_gradient_shows_in_the_look_ahead(bad, normalise):
    grads, acc, delta_in = step_state(2, 1, 7, 7)
    grads[0, 0, 2, 3, 4] = bad
    ours, theirs = copies(acc, delta_in), copies(acc, delta_in)
    accumulate_step_(grads, *ours, ALPHA, EPS, normalise)
    reference.accumulate_step_(grads, *theirs, ALPHA, EPS, normalise)
    assert_same(ours[1], theirs[1])
    assert ours[1].isnan().sum() == 1
    if normalise:
        assert torch.equal(ours[0].isnan(), theirs[0].isnan())
    else:
        assert torch.equal(ours[0], theirs[0]) or math.isnan(bad)


def test_accumulate_step_copies_a_gradient_in_neither_format():
    grads, acc, delta_in = step_state(2, 3, 7, 7)
    wide = torch.stack((grads, grads), -1)[..., 0]
    check_accumulate_step(wide, acc, delta_in)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"acc": random(2, 3, 7, 14)[..., ::2]}, "acc must be contiguous or channels_last, got strides .*contiguous"),
        ({"acc": random(2, 3, 7, 7).double()}, "acc must be float32"),
        ({"delta_in": random(2, 3, 7, 8)}, "delta_in must be .* of one shape"),
        ({"grads": random(1, 3, 3, 7, 7)}, r"grads must be \[2, b, 3, 7, 7\], got \(1, 3, 3, 7, 7\)"),
        ({"grads": random(2, 3, 3, 7, 7).double()}, "grads must be float32, bfloat16 or float16"),
        ({"scale": random(1)}, r"scale must be \[3\] float32"),
    ],
)
def test_accumulate_step_refuses_with_words(change, words):
    grads, acc, delta_in = step_state(2, 3, 7, 7)
    with pytest.raises(ValueError, match=words):
        accumulate_step_(**{"grads": grads, "acc": acc, "delta_in": delta_in, "alpha": ALPHA, "eps": EPS} | change)


# ---- outer_step_


def check_outer_step(acc, velocity, delta, decay=0.0):
    poison = in_format(torch.full_like(acc, math.nan), acc.is_contiguous())  # delta_in, in the other format
    ours, theirs = copies(acc, velocity, delta, poison), copies(acc, velocity, delta, poison)
    outer_step_(*ours, ALPHA, EPS, decay)
    reference.outer_step_(*theirs, ALPHA, EPS, decay)
    assert torch.equal(ours[0], torch.zeros_like(acc))
    assert torch.equal(ours[3], ours[2])
    if decay:
        exact = velocity.double() * decay + acc.double() / acc.double().abs().mean((1, 2, 3), keepdim=True)
        floor = 4 * torch.finfo(torch.float32).eps * exact.abs().max().item()
        assert_within_twice_the_error(ours[1], theirs[1], exact, floor)
        # The step itself, given this velocity, is exact.
        stepped = delta.add(ours[1].sign(), alpha=ALPHA).clamp(-EPS, EPS)
        assert torch.equal(ours[2], stepped)
    else:
        assert_same(ours[1], velocity)
        assert torch.equal(ours[2], theirs[2])


@pytest.mark.parametrize("decay", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("formats", [(a, v, d) for a in (0, 1) for v in (0, 1) for d in (0, 1)])
def test_outer_step_equals_the_reference(decay, formats):
    acc = integers(2, 3, 13, 11) * torch.tensor([1.0, 1e-5], device=DEVICE)[:, None, None, None]
    delta = (2 * random(2, 3, 13, 11, seed=2, uniform=True) - 1) * EPS
    velocity = random(2, 3, 13, 11, seed=3) if decay else torch.full_like(acc, math.nan)
    check_outer_step(*(in_format(t, last) for t, last in zip((acc, velocity, delta), formats, strict=True)), decay)


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_outer_step_at_full_size(decay):
    check_outer_step(
        random(1, 3, 112, 112), random(1, 3, 112, 112, seed=1), EPS * random(1, 3, 112, 112, seed=2), decay
    )


@lets_nan_through
@pytest.mark.parametrize("decay", [0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_gradient_shows_in_the_mask(bad, decay):
    acc, velocity, delta = integers(2, 3, 7, 7), random(2, 3, 7, 7), torch.zeros(2, 3, 7, 7, device=DEVICE)
    acc[0, 2, 3, 4] = bad
    ours, theirs = copies(acc, velocity, delta, delta), copies(acc, velocity, delta, delta)
    outer_step_(*ours, ALPHA, EPS, decay)
    reference.outer_step_(*theirs, ALPHA, EPS, decay)
    assert ours[2][0].isnan().any()
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine.isnan(), other.isnan())


def test_an_all_zero_gradient_moves_nothing():
    zero, delta = torch.zeros(1, 3, 7, 7, device=DEVICE), EPS * random(1, 3, 7, 7, uniform=True)
    acc, velocity, moved, delta_in = copies(zero, zero, delta, zero)
    outer_step_(acc, velocity, moved, delta_in, ALPHA, EPS, 1.0)
    assert torch.equal(moved, delta)
    assert torch.equal(velocity, zero)


def test_delta_never_exceeds_eps():
    acc, delta = random(1, 3, 7, 7), torch.zeros(1, 3, 7, 7, device=DEVICE)
    delta_in = delta.clone()
    for _ in range(12):  # 12 alpha > eps
        accumulate_step_(acc[None], acc.clone(), delta_in, ALPHA, EPS)
        outer_step_(acc.clone(), acc.clone(), delta, torch.empty_like(delta), ALPHA, EPS)
    largest = torch.tensor(EPS, dtype=torch.float32).item()
    assert delta.abs().max().item() == largest
    assert delta_in.abs().max().item() == largest


@pytest.mark.parametrize("name", ["acc", "velocity", "delta", "delta_in"])
def test_outer_step_refuses_with_words(name):
    state = {n: torch.zeros(1, 3, 4, 4, device=DEVICE) for n in ("acc", "velocity", "delta", "delta_in")}
    with pytest.raises(ValueError, match=f"{name} must be contiguous or channels_last"):
        outer_step_(**state | {name: torch.zeros(1, 3, 4, 8, device=DEVICE)[..., ::2]}, alpha=ALPHA, eps=EPS)
    with pytest.raises(ValueError, match=f"{name} must be float32"):
        outer_step_(**state | {name: state[name].half()}, alpha=ALPHA, eps=EPS)


# ---- cloak_batch_


def check_cloak_batch(faces, delta, index, out, scaled=False):
    pair = (SCALE, SHIFT) if scaled else ()
    ours, theirs = copies(out.fill_(math.nan), out)
    cloak_batch_(faces, delta, index, ours, *pair)
    reference.cloak_batch_(faces, delta, index, theirs, *pair)
    if out.dtype == torch.bfloat16 and not CUDA:  # the interpreter cuts off where a GPU rounds: one step
        difference = (ours.double() - theirs.double()).abs()
        assert (difference <= torch.finfo(out.dtype).eps * theirs.double().abs()).all()
    else:
        assert_same(ours, theirs)


def batch(P, N, b, H, W, formats=(False, False, False), dtype=torch.float32):
    index = torch.randint(0, N, (P, b), generator=torch.Generator().manual_seed(5)).to(DEVICE)
    index[-1, -1] = N - 1
    return (
        in_format(random(P, N, 3, H, W, uniform=True), formats[0]),
        in_format(0.3 * random(P, 3, H, W, seed=1), formats[1]),
        index,
        in_format(torch.empty(P, b, 3, H, W, device=DEVICE, dtype=dtype), formats[2]),
    )


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize(("P", "N", "b", "H", "W"), [(1, 1, 1, 7, 7), (2, 10, 3, 13, 5), (3, 3, 17, 8, 8)])
@pytest.mark.parametrize("scaled", [False, True])
def test_cloak_batch_equals_the_reference(dtype, P, N, b, H, W, scaled):
    check_cloak_batch(*batch(P, N, b, H, W, dtype=dtype), scaled)


@pytest.mark.parametrize("formats", [(f, d, o) for f in (0, 1) for d in (0, 1) for o in (0, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_cloak_batch_in_any_mixture_of_memory_formats(formats, dtype):
    check_cloak_batch(*batch(2, 4, 3, 13, 11, formats, dtype), scaled=True)


def test_cloak_batch_at_full_size():
    check_cloak_batch(*batch(1, 2, 1, 112, 112, (True, True, True)), scaled=True)


def test_cloak_batch_takes_views():
    faces, delta, index, out = batch(2, 4, 3, 7, 7)
    expected, actual = copies(out, out)
    same = index[:, :1].expand(-1, 3)
    cloak_batch_(faces, delta, same.contiguous(), expected)
    wide = torch.stack((faces, faces), -1)[..., 0], torch.stack((delta, delta), -1)[..., 0]
    cloak_batch_(*wide, same, actual)
    assert torch.equal(actual, expected)


@lets_nan_through
def test_a_bad_photo_or_index_shows_in_its_picture_only():
    faces, delta, index, out = batch(2, 4, 3, 7, 7)
    index[:] = torch.arange(3)
    faces[0, 1, 0, 2, 3] = math.nan
    faces[1, 0, 0, 2, 3] = math.inf
    check_cloak_batch(faces, delta, index, out)
    index[1] = torch.tensor([-1, 4, 0])
    cloak_batch_(faces, delta, index, out)
    assert out.isnan().sum((2, 3, 4)).tolist() == [[0, 1, 0], [147, 147, 0]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"out": random(2, 3, 3, 7, 14)[..., ::2]}, "out must be contiguous or channels_last"),
        ({"out": random(2, 3, 3, 7, 7).double()}, "out must be float32, bfloat16 or float16"),
        ({"faces": random(2, 4, 3, 7, 7).half()}, "faces must be float32"),
        ({"faces": random(2, 4, 3, 7, 8)}, r"faces must be \[2, b, 3, 7, 7\]"),
        ({"index": torch.zeros(2, 2, dtype=torch.int64)}, r"index must be \(2, 3\) int64"),
        ({"scale": random(4), "shift": random(3)}, r"scale must be \[3\] float32"),
    ],
)
def test_cloak_batch_refuses_with_words(change, words):
    names = ("faces", "delta_in", "index", "out")
    with pytest.raises(ValueError, match=words):
        cloak_batch_(**dict(zip(names, batch(2, 4, 3, 7, 7), strict=True)) | change)


# ---- how they are launched


def calls():
    """A small call of every operation, as (name, positional arguments)."""
    clean, cloaked, index = clean_and_cloaked(2, 3, 4, 16)
    hull_arguments = (cloaked, *_parts(clean, "affine_hull"), index, "affine_hull", 0.0, 1.0)
    faces, delta, index, out = batch(2, 4, 3, 5, 5)
    grads, acc, delta_in = step_state(2, 3, 5, 5)
    return [
        ("hull_loss", hull_arguments),
        ("accumulate_step_", (grads, acc, delta_in, ALPHA, EPS, True, SCALE)),
        ("accumulate_step_", (grads, acc.clone(), delta_in.clone(), ALPHA, EPS, False, None)),
        ("outer_step_", (acc.clone(), acc.clone(), delta_in.clone(), delta_in.clone(), ALPHA, EPS, 1.0)),
        ("cloak_batch_", (faces, delta, index, out, SCALE, SHIFT)),
        ("cloak_batch_", (faces, delta, index, out.clone(), None, None)),
    ]


@pytest.mark.parametrize("case", range(6))
def test_opcheck(case):
    name, arguments = calls()[case]
    torch.library.opcheck(getattr(torch.ops.fastcloak, name).default, arguments)


def test_a_step_compiles_as_one_graph():
    clean, _, index = clean_and_cloaked(2, 3, 4, 75)
    faces, delta, _, out = batch(2, 4, 3, 5, 5)
    acc, velocity = torch.zeros_like(delta), torch.zeros_like(delta)
    points, gram, center = _parts(clean, "affine_hull")

    def step(module, acc, velocity, delta, delta_in, out):
        module.cloak_batch_(faces, delta_in, index, out)
        loss, slope, gap = module.hull_loss(out.flatten(2), points, gram, center, index, "affine_hull")
        module.accumulate_step_(slope.view_as(out), acc, delta_in, ALPHA, EPS)
        module.outer_step_(acc, velocity, delta, delta_in, ALPHA, EPS)
        return loss + gap

    eager, compiled = (copies(acc, velocity, delta, delta, out) for _ in range(2))
    expected = step(fastcloak.kernels, *eager)
    actual = torch.compile(step, fullgraph=True, backend="aot_eager")(fastcloak.kernels, *compiled)
    assert torch.equal(actual, expected)
    assert all(torch.equal(a, e) for a, e in zip(compiled, eager, strict=True))


def test_launches_per_operation():
    with kernel_table.recorded(run=True) as launches:
        counts = []
        for name, arguments in calls():
            getattr(fastcloak.kernels, name)(*arguments)
            counts.append(len(launches) - sum(counts))
    assert counts == [1, 2, 1, 2, 1, 1]


@pytest.mark.skipif(CUDA, reason="only the interpreter can count the bytes that programs touch")
def test_programs_move_the_bytes_that_the_table_says(monkeypatch):
    from triton.runtime.interpreter import InterpreterBuilder

    moved = {"read": 0, "written": 0}
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def size(pointers):
        return pointers.get_element_ty().primitive_bitwidth // 8

    def counting_load(self, pointers, mask, *rest):
        moved["read"] += int(mask.data.sum()) * size(pointers)
        return load(self, pointers, mask, *rest)

    def counting_store(self, pointers, value, mask, *rest):
        moved["written"] += int(mask.data.sum()) * size(pointers)
        return store(self, pointers, value, mask, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", counting_load)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", counting_store)
    clean, cloaked, index = clean_and_cloaked(2, 1, 3, 30)
    cases = [("hull_loss", (cloaked, *_parts(clean, o), index, o)) for o in OBJECTIVES]
    cases.append(("outer_step_", (*(torch.zeros(2, 3, 13, 14) for _ in range(4)), ALPHA, EPS)))
    for name, arguments in [*calls(), *cases]:
        with kernel_table.recorded(run=True) as launches:
            moved.update(read=0, written=0)
            getattr(fastcloak.kernels, name)(*arguments)
        tables = [kernel_table.traffic(launch) for launch in launches]
        assert moved["read"] == sum(t[0] for t in tables), name
        assert moved["written"] == sum(t[1] for t in tables), name
        assert all(t[2] <= t[0] and t[3] == t[1] for t in tables)
