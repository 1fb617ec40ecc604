"""Every kernel against fastcloak.ops.reference: on a GPU where there is one, elsewhere in Triton's interpreter."""

import inspect
import math
from functools import partial

import fastcloak.kernels
import pytest
import torch
from fastcloak.kernels import accumulate_step_, cloak_batch_, hull_loss, outer_step_
from fastcloak.kernels import hull as kernel_hull
from torch.nn.functional import normalize

from bench.speed import kernel_table
from fastcloak.fitting.options import OBJECTIVES
from fastcloak.ops import hull, reference
from tests.hulls import SETS, make_set

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
ALPHA, EPS = 1 / 255, 8 / 255
SCALE = torch.tensor([1.7, -0.3, 0.9], device=DEVICE)
SHIFT = torch.tensor([-0.4, 0.1, 2.0], device=DEVICE)
HALVES = [torch.bfloat16, torch.float16]
# channels_last or not, of three tensors of one call
FORMATS = [(a, b, c) for a in (False, True) for b in (False, True) for c in (False, True)]

# NumPy warns of 0/0, Inf - Inf and comparisons with NaN, in which the interpreter computes what a GPU computes.
lets_nan_through = pytest.mark.filterwarnings("ignore:(invalid value|divide by zero):RuntimeWarning")
pytestmark = pytest.mark.promise("P14")


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


def with_gaps(tensor):
    """The same numbers in neither format."""
    return torch.stack((tensor, tensor), -1)[..., 0]


def copies(*tensors):
    return [tensor.clone() for tensor in tensors]  # keeps the strides of dense tensors


assert_same = partial(torch.testing.assert_close, rtol=0, atol=0, equal_nan=True)


def assert_within_twice_the_error(actual, expected, exact, floor):
    """`actual` may be twice as far from float64 as PyTorch in the same dtype, or `floor` where that hit by luck."""
    own = (expected.double() - exact).abs().max().item()
    error = (actual.double() - exact).abs().max().item()
    assert error <= max(2 * own, floor), f"error {error:.2e}, PyTorch {own:.2e}, floor {floor:.2e}"


def test_names_and_signatures_equal_the_reference():
    assert fastcloak.kernels.__all__ == reference.__all__
    for name in reference.__all__:
        arguments = getattr(torch.ops.fastcloak, name).default._schema.arguments
        parameters = inspect.signature(getattr(reference, name)).parameters.values()
        assert [(a.name, a.default_value if a.has_default_value() else inspect.Parameter.empty) for a in arguments] == [
            (p.name, p.default) for p in parameters
        ]


def test_constants_equal_those_of_the_hull():
    assert kernel_hull.OBJECTIVES == OBJECTIVES
    assert kernel_hull.INTERIOR_POINT_STEPS == hull.INTERIOR_POINT_STEPS
    assert kernel_hull.FINISHED.value == hull.FINISHED


def clean_and_cloaked(P, b, K, D, dtype=torch.float32, seed=0):
    clean = normalize(random(P, 1, D, seed=seed) + 0.6 * random(P, K, D, seed=seed + 1), dim=-1)
    index = torch.randint(0, K, (P, b), generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    cloaked = 3 * clean.gather(1, index[..., None].expand(-1, -1, D)) + random(P, b, D, seed=seed + 2) / D**0.5
    return clean, cloaked.to(dtype), index


def parts(clean, objective="convex_hull"):
    at = hull.build_hull(clean, objective)
    return at.points, at.gram, at.center


def check_hull_loss(clean, cloaked, index, objective, **bounds):
    return check_hull_loss_at(*parts(clean, objective), cloaked, index, objective, **bounds)


def check_hull_loss_at(points, gram, center, cloaked, index, objective, **bounds):
    """Compares all three results with the reference in the same dtype and in float64; returns the kernel's."""
    actual = hull_loss(cloaked, points, gram, center, index, objective, **bounds)
    expected = reference.hull_loss(cloaked, points, gram, center, index, objective, **bounds)
    exact = reference.hull_loss(cloaked.double(), points.double(), gram, center.double(), index, objective, **bounds)
    for ours, theirs in zip(actual, expected, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    # z and its distance from the hull are rounded to float32: 4 of its steps at the size of the unit feature, and
    # 1/|f| times that in the gradient; a gradient in half precision is rounded once more, in the interpreter cut off.
    step = 4 * torch.finfo(torch.float32).eps
    largest = exact[1].abs().max().item()
    assert_within_twice_the_error(actual[0], expected[0], exact[0], step * max(1, exact[0].abs().max().item()))
    floor = step * (1 / cloaked.double().norm(dim=-1)).max().item()
    assert_within_twice_the_error(actual[1], expected[1], exact[1], floor + torch.finfo(cloaked.dtype).eps * largest)
    assert (actual[2] - expected[2]).abs().max() <= max(1e-9, 2 * expected[2].max().item())
    return actual


SIZES = [(1, 1, 1, 1), (2, 2, 3, 63), (3, 1, 2, 513), (1, 1, 10, 512), (1, 1, 17, 1300)]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("sizes", [*SIZES, *((2, 1, 2, 63, dtype) for dtype in HALVES)])
def test_hull_loss_equals_the_reference(objective, sizes, nan_filled):
    check_hull_loss(*clean_and_cloaked(*sizes), objective)


@pytest.mark.parametrize("case", [("affine_hull", 64, 512), ("affine_hull", 3, 8192), ("convex_hull", 33, 63)])
def test_hulls_whose_points_are_read_in_blocks(case, nan_filled):
    objective, K, D = case
    check_hull_loss(*clean_and_cloaked(1, 1, K, D), objective)


def test_a_center_that_changes_from_photo_to_photo(nan_filled):
    # An album: as many masks as photos, no points, and centers of any length, of which some are zero.
    P, D = 300, 63
    center = random(P, D, seed=1) * torch.linspace(0, 2, P, device=DEVICE)[:, None] / D**0.5
    center[[7, -1]] = 0
    points, gram = torch.zeros(P, 1, D, device=DEVICE), torch.zeros(P, 1, 1, dtype=torch.float64, device=DEVICE)
    index = torch.zeros(P, 1, dtype=torch.int64, device=DEVICE)
    cloaked = 20 * random(P, 1, D) / D**0.5
    loss, grad, gap = check_hull_loss_at(points, gram, center, cloaked, index, "fi_uap_plus")
    still = (center == 0).all(-1)
    assert still.sum() == 3
    assert torch.equal((loss == 0).flatten(), still)
    assert torch.equal((grad == 0).all(-1).flatten(), still)
    assert not gap.any()
    views = hull_loss(cloaked, points, gram, with_gaps(center), index, "fi_uap_plus")
    assert_same(views, (loss, grad, gap))


BOUNDS = {"lower": 0.02, "upper": 0.3}


@pytest.mark.parametrize(("kind", "bounds"), [*((kind, {}) for kind in SETS), ("duplicate", BOUNDS)])
def test_the_gap_is_tiny_also_for_degenerate_sets(kind, bounds):
    points, features = (tensor.float().to(DEVICE) for tensor in make_set(kind, P=1, b=1))
    index = torch.zeros(1, 1, dtype=torch.int64, device=DEVICE)
    _, _, gap = check_hull_loss(points, 20 * features, index, "convex_hull", **bounds)
    assert gap.min() >= -1e-12
    assert gap.max() <= 1e-6


def small_problem(kind):
    points, features = (tensor.float().to(DEVICE) for tensor in make_set(kind, P=1, b=1, K=5, D=16))
    gram = points.double() @ points.double().mT
    index = torch.zeros(1, 1, dtype=torch.int64, device=DEVICE)
    return 20 * features, points, gram, torch.zeros(1, 16, device=DEVICE), index, "convex_hull"


# Near-duplicate points are not finished after 13 steps.
@pytest.mark.parametrize("kind", ["random", "collinear", "rank_two", "inside"])
def test_a_finished_problem_stays_where_it_is_to_the_bit(kind, monkeypatch):
    expected = hull_loss(*small_problem(kind))
    monkeypatch.setattr(kernel_hull, "INTERIOR_POINT_STEPS", 40)
    assert_same(hull_loss(*small_problem(kind)), expected)
    monkeypatch.setattr(kernel_hull, "INTERIOR_POINT_STEPS", 3)
    assert hull_loss(*small_problem(kind))[2] > expected[2]


@lets_nan_through
@pytest.mark.skipif(CUDA, reason="only in the interpreter can a part of a kernel be replaced")
def test_newton_steps_end_with_the_problem(monkeypatch):
    taken = 0
    inverse = kernel_hull._inverse

    def counting(*arguments):
        nonlocal taken
        taken += 1
        return inverse(*arguments)

    monkeypatch.setattr(kernel_hull, "_inverse", counting)
    hull_loss(*small_problem("random"))
    assert 3 <= taken < hull.INTERIOR_POINT_STEPS - 1
    taken = 0
    features, *rest = small_problem("random")
    hull_loss(features * math.nan, *rest)
    assert taken <= 1


@lets_nan_through
@pytest.mark.promise("P8")
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_nan_in_one_feature_shows_in_its_results_and_nowhere_else(objective):
    b = 1 if objective == "convex_hull" else 2  # slow in the interpreter
    clean, cloaked, index = clean_and_cloaked(2, b, 3, 63)
    before = hull_loss(cloaked, *parts(clean, objective), index, objective)
    cloaked[1, 0, 5] = math.nan
    after = hull_loss(cloaked, *parts(clean, objective), index, objective)
    expected = reference.hull_loss(cloaked, *parts(clean, objective), index, objective)
    for old, new, theirs in zip(before, after, expected, strict=True):
        assert torch.equal(new.isnan(), theirs.isnan())
        new[1, 0] = old[1, 0]
        assert torch.equal(new, old)


@lets_nan_through
def test_a_photo_that_does_not_exist_gives_nan():
    clean, cloaked, index = clean_and_cloaked(2, 2, 3, 63)
    index[0, 1], index[1, 0] = 3, -1
    loss, _, _ = hull_loss(cloaked, *parts(clean), index, "fi_uap")
    assert loss.isnan().tolist() == [[False, True], [True, False]]


@pytest.mark.promise("P7")
@pytest.mark.parametrize("objective", ["fi_uap", "fi_uap_plus", "affine_hull"])
def test_each_person_has_their_own_hull(objective):
    clean, cloaked, index = clean_and_cloaked(3, 2, 4, 16)
    loss, grad, _ = hull_loss(cloaked, *parts(clean, objective), index, objective)
    for p in range(3):
        one = slice(p, p + 1)
        alone = hull_loss(cloaked[one], *parts(clean[one], objective), index[one], objective)
        assert_same((loss[one], grad[one]), alone[:2])


@pytest.mark.parametrize("objective", ["fi_uap", "affine_hull"])
def test_hull_loss_takes_views(objective):
    clean, cloaked, index = clean_and_cloaked(2, 3, 3, 30)
    points, gram, center = parts(clean, "affine_hull")
    same = index[:, :1].expand(-1, 3)  # stride 0, as the fit's schedule has
    expected = hull_loss(cloaked, points, gram, center, same.contiguous(), objective)
    actual = hull_loss(with_gaps(cloaked), points.mT.contiguous().mT, gram, center, same, objective)
    assert_same(actual, expected)


def step_state(P, b, H, W, formats=(False, False, False), dtype=torch.float32, draw=integers):
    """Gradients, accumulated gradient and look-ahead."""
    return (
        in_format(draw(P, b, 3, H, W).to(dtype), formats[0]),
        in_format(random(P, 3, H, W, seed=1), formats[1]),
        in_format((2 * random(P, 3, H, W, seed=2, uniform=True) - 1) * EPS, formats[2]),
    )


def check_accumulate_step(grads, acc, delta_in, scale=None):
    ours, theirs = copies(acc, delta_in), copies(acc, delta_in)
    accumulate_step_(grads, *ours, ALPHA, EPS, scale)
    reference.accumulate_step_(grads, *theirs, ALPHA, EPS, scale)
    assert_same(ours[1], theirs[1])
    if grads.shape[1] == 1:
        assert_same(ours[0], theirs[0])
    else:  # PyTorch on CUDA multiplies by 1/b
        exact = acc.double()
        reference.accumulate_step_(grads.double(), exact, delta_in.double(), ALPHA, EPS, scale)
        floor = 4 * torch.finfo(torch.float32).eps * exact.abs().max().item()
        assert_within_twice_the_error(ours[0], theirs[0], exact, floor)
    assert not torch.equal(ours[0], acc)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("size", [(1, 1, 7, 7), (2, 3, 7, 7), (3, 10, 5, 13), (1, 17, 8, 8)])
@pytest.mark.parametrize("scale", [None, SCALE], ids=["", "scale"])
def test_accumulate_step_equals_the_reference(dtype, size, scale):
    check_accumulate_step(*step_state(*size, dtype=dtype), scale)


def test_accumulate_step_in_any_memory_format():
    for formats in FORMATS:
        check_accumulate_step(*step_state(2, 3, 13, 11, formats), SCALE)
    grads, acc, delta_in = step_state(2, 3, 7, 7)
    check_accumulate_step(with_gaps(grads), acc, delta_in)


def check_outer_step(acc, velocity, delta, decay=0.0):
    poison = in_format(torch.full_like(acc, math.nan), acc.is_contiguous())  # delta_in, in the other format
    ours, theirs = copies(acc, velocity, delta, poison), copies(acc, velocity, delta, poison)
    outer_step_(*ours, ALPHA, EPS, decay)
    reference.outer_step_(*theirs, ALPHA, EPS, decay)
    assert torch.equal(ours[0], torch.zeros_like(acc))
    assert torch.equal(ours[3], ours[2])
    if decay:
        mean = acc.double().abs().mean((1, 2, 3), keepdim=True).clamp_min(reference.TINY)
        exact = velocity.double() * decay + acc.double() / mean
        floor = 4 * torch.finfo(torch.float32).eps * exact.abs().max().item()
        assert_within_twice_the_error(ours[1], theirs[1], exact, floor)
        # The step itself, given this velocity, is exact.
        assert torch.equal(ours[2], delta.add(ours[1].sign(), alpha=ALPHA).clamp(-EPS, EPS))
    else:
        assert_same(ours[1], velocity)
        assert torch.equal(ours[2], theirs[2])


@pytest.mark.parametrize("decay", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("formats", FORMATS)
def test_outer_step_equals_the_reference(decay, formats):
    acc = integers(3, 3, 13, 11) * torch.tensor([1.0, 1e-5, 0.0], device=DEVICE)[:, None, None, None]
    delta = (2 * random(3, 3, 13, 11, seed=2, uniform=True) - 1) * EPS
    velocity = random(3, 3, 13, 11, seed=3) if decay else torch.full_like(acc, math.nan)
    check_outer_step(*(in_format(t, last) for t, last in zip((acc, velocity, delta), formats, strict=True)), decay)


@lets_nan_through
@pytest.mark.promise("P8")
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_gradient_shows_in_the_mask_and_its_look_ahead(bad):
    grads, acc, delta = step_state(2, 1, 7, 7)
    grads[0, 0, 2, 3, 4] = bad
    for decay in (0.0, 1.0):
        results = []
        for module in (fastcloak.kernels, reference):
            summed, velocity, mask, look_ahead = copies(torch.zeros_like(acc), acc, delta, delta)
            module.accumulate_step_(grads, summed, look_ahead, ALPHA, EPS)
            assert look_ahead.isnan().nonzero().tolist() == [[0, 2, 3, 4]]
            module.outer_step_(summed, velocity, mask, look_ahead, ALPHA, EPS, decay)
            assert mask[0, 2, 3, 4].isnan()
            assert not mask[1].isnan().any()
            results.append([velocity, mask, look_ahead])
        assert_same(*([tensor.isnan() for tensor in tensors] for tensors in results))


@pytest.mark.promise("P1")
def test_delta_never_exceeds_eps():
    acc, delta = random(1, 3, 7, 7), torch.zeros(1, 3, 7, 7, device=DEVICE)
    delta_in = delta.clone()
    for _ in range(12):  # 12 alpha > eps
        accumulate_step_(acc[None], acc.clone(), delta_in, ALPHA, EPS)
        outer_step_(acc.clone(), acc.clone(), delta, torch.empty_like(delta), ALPHA, EPS)
    largest = torch.tensor(EPS, dtype=torch.float32).item()
    assert delta.abs().max().item() == largest
    assert delta_in.abs().max().item() == largest


def batch(P, N, b, H, W, formats=(False, False, False), dtype=torch.float32):
    """Faces, mask, index and output of cloak_batch_."""
    index = torch.randint(0, N, (P, b), generator=torch.Generator().manual_seed(5)).to(DEVICE)
    index[-1, -1] = N - 1
    return (
        in_format(random(P, N, 3, H, W, uniform=True), formats[0]),
        in_format(0.3 * random(P, 3, H, W, seed=1), formats[1]),
        index,
        in_format(torch.empty(P, b, 3, H, W, device=DEVICE, dtype=dtype), formats[2]),
    )


def check_cloak_batch(faces, delta, index, out, scaled=False, bound=None):
    pair = (SCALE, SHIFT) if scaled else (None, None)
    ours, theirs = copies(out.fill_(math.nan), out)
    cloak_batch_(faces, delta, index, ours, *pair, bound)
    reference.cloak_batch_(faces, delta, index, theirs, *pair, bound)
    if out.dtype == torch.bfloat16 and not CUDA:  # the interpreter cuts off where a GPU rounds: one step
        difference = (ours.double() - theirs.double()).abs()
        assert (difference <= torch.finfo(out.dtype).eps * theirs.double().abs()).all()
    else:
        assert_same(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("size", [(1, 1, 1, 7, 7), (2, 10, 3, 13, 5), (1, 4, 8, 7, 7), (3, 3, 17, 8, 8)])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("bounded", [False, True])
def test_cloak_batch_equals_the_reference(dtype, size, scaled, bounded):
    faces, delta, index, out = batch(*size, dtype=dtype)
    bound = random(*delta.shape, seed=2, uniform=True) if bounded else None
    check_cloak_batch(faces, delta, index, out, scaled, bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_cloak_batch_in_any_memory_format(dtype):
    for formats in FORMATS:
        state = batch(2, 4, 3, 13, 11, formats, dtype)
        check_cloak_batch(*state, scaled=True)
        for last in (False, True):
            bound = in_format(random(2, 3, 13, 11, seed=2, uniform=True), last)
            check_cloak_batch(*state, scaled=True, bound=bound)


def test_cloak_batch_takes_views():
    faces, delta, index, out = batch(2, 4, 3, 7, 7)
    expected, actual = copies(out, out)
    same = index[:, :1].expand(-1, 3)
    bound = random(2, 3, 7, 7, seed=2, uniform=True)
    cloak_batch_(faces, delta, same.contiguous(), expected, bound=bound)
    cloak_batch_(with_gaps(faces), with_gaps(delta), same, actual, bound=with_gaps(bound))
    assert torch.equal(actual, expected)


def test_a_bound_of_one_gives_the_bits_of_no_bound():
    faces, delta, index, out = batch(2, 4, 3, 7, 7)
    expected, actual = copies(out, out)
    cloak_batch_(faces, delta, index, expected, SCALE, SHIFT)
    cloak_batch_(faces, delta, index, actual, SCALE, SHIFT, torch.ones_like(delta))
    assert torch.equal(actual, expected)


@lets_nan_through
def test_a_bad_photo_or_index_shows_in_its_picture_only():
    faces, delta, index, out = batch(2, 4, 3, 7, 7)
    index[:] = torch.arange(3)
    faces[0, 1, 0, 2, 3] = math.nan
    faces[1, 0, 0, 2, 3] = math.inf
    check_cloak_batch(faces, delta, index, out)
    bound = torch.ones_like(delta)
    bound[1, 2, 6, 0] = math.nan
    check_cloak_batch(faces, delta, index, out, bound=bound)
    index[1] = torch.tensor([-1, 4, 0])
    cloak_batch_(faces, delta, index, out)
    assert out.isnan().sum((2, 3, 4)).tolist() == [[0, 1, 0], [147, 147, 0]]


def test_pictures_at_full_size():
    check_accumulate_step(*step_state(1, 1, 112, 112, draw=random), SCALE)
    check_cloak_batch(*batch(1, 2, 1, 112, 112, (True, True, True)), scaled=True)
    state = random(1, 3, 112, 112), random(1, 3, 112, 112, seed=1), EPS * random(1, 3, 112, 112, seed=2)
    for decay in (0.0, 1.0):
        check_outer_step(*state, decay)


def calls():
    """The arguments of a small call of every operation, by name."""
    clean, features, index = clean_and_cloaked(2, 3, 4, 16)
    at = dict(zip(("points", "gram", "center"), parts(clean, "affine_hull"), strict=True))
    grads, acc, delta_in = step_state(2, 3, 5, 5)
    step = {"alpha": ALPHA, "eps": EPS}
    masks = {name: random(2, 3, 5, 5, seed=seed) for seed, name in enumerate(MASKS)}
    pictures = dict(zip(("faces", "delta_in", "index", "out"), batch(2, 4, 3, 5, 5), strict=True))
    return {
        "hull_loss": {"features": features, **at, "index": index, "objective": "affine_hull"},
        "accumulate_step_": {"grads": grads, "acc": acc, "delta_in": delta_in, **step, "scale": SCALE},
        "outer_step_": {**masks, **step, "decay": 1.0},
        "cloak_batch_": {**pictures, "scale": SCALE, "shift": SHIFT, "bound": random(2, 3, 5, 5, uniform=True)},
    }


MASKS = ("acc", "velocity", "delta", "delta_in")
GAPS = with_gaps(torch.zeros(2, 3, 5, 5, device=DEVICE))
MANY = {"points": torch.zeros(2, 65, 16), "gram": torch.zeros(2, 65, 65, dtype=torch.float64)}


@pytest.mark.parametrize(
    ("operation", "change", "message"),
    [
        ("hull_loss", {"objective": "hull"}, "objective must be one of fi_uap"),
        ("hull_loss", {"features": torch.zeros(2, 3, 16).double()}, r"features must be \[P, b, D\] .* 'reference'"),
        ("hull_loss", {"center": torch.zeros(1, 16)}, r"center must be \[2, 16\] float32 .*, got \[1, 16\]"),
        ("hull_loss", {"gram": torch.zeros(2, 4, 4)}, r"gram must be \[2, 4, 4\] float64"),
        ("hull_loss", {"index": torch.zeros(2, 3)}, r"index must be \[2, 3\] int64"),
        ("hull_loss", MANY, "K must be at most 64, got 65"),
        ("accumulate_step_", {"acc": GAPS}, "acc must be contiguous or channels_last, got strides .*contiguous"),
        ("accumulate_step_", {"acc": GAPS.double()}, r"acc must be \[P, 3, H, W\] float32"),
        ("accumulate_step_", {"delta_in": random(2, 3, 5, 6)}, r"delta_in must be \[2, 3, 5, 5\]"),
        ("accumulate_step_", {"grads": random(1, 3, 3, 5, 5)}, r"grads must be \[2, b, 3, 5, 5\] .*, got \[1, 3, 3"),
        ("accumulate_step_", {"grads": random(2, 3, 3, 5, 5).double()}, "grads must be .* bfloat16 or float16 on"),
        ("accumulate_step_", {"scale": random(1)}, r"scale must be \[3\] float32"),
        *(("outer_step_", {name: GAPS}, f"{name} must be contiguous or channels_last") for name in MASKS),
        *(("outer_step_", {name: GAPS.half()}, f"{name} must be .* float32") for name in MASKS),
        ("cloak_batch_", {"out": with_gaps(random(2, 3, 3, 5, 5))}, "out must be contiguous or channels_last"),
        ("cloak_batch_", {"out": random(2, 3, 3, 5, 5).double()}, "out must be .* float32 or bfloat16 or float16"),
        ("cloak_batch_", {"faces": random(2, 4, 3, 5, 5).half()}, "faces must be .* float32"),
        ("cloak_batch_", {"faces": random(2, 4, 3, 5, 6)}, r"faces must be \[2, N, 3, 5, 5\]"),
        ("cloak_batch_", {"index": torch.zeros(2, 2, dtype=torch.int64)}, r"index must be \[2, 3\] int64"),
        ("cloak_batch_", {"scale": random(4)}, r"scale must be \[3\] float32"),
        ("cloak_batch_", {"bound": random(1, 3, 5, 5)}, r"bound must be \[2, 3, 5, 5\] float32"),
        ("cloak_batch_", {"bound": random(2, 3, 5, 5).half()}, "bound must be .* float32"),
    ],
)
def test_arguments_that_a_kernel_cannot_take_are_refused_with_a_hint(operation, change, message):
    change = {name: value.to(DEVICE) if torch.is_tensor(value) else value for name, value in change.items()}
    with pytest.raises(ValueError, match=message):
        getattr(fastcloak.kernels, operation)(**calls()[operation] | change)


@pytest.mark.parametrize("operation", calls())
def test_opcheck(operation):
    torch.library.opcheck(getattr(torch.ops.fastcloak, operation).default, (), calls()[operation])


def test_a_step_compiles_as_one_graph():
    clean, _, index = clean_and_cloaked(2, 3, 4, 75)
    faces, delta, _, out = batch(2, 4, 3, 5, 5)
    acc, velocity = torch.zeros_like(delta), torch.zeros_like(delta)
    points, gram, center = parts(clean, "affine_hull")

    def step(module, acc, velocity, delta, delta_in, out):
        module.cloak_batch_(faces, delta_in, index, out)
        loss, slope, gap = module.hull_loss(out.flatten(2), points, gram, center, index, "affine_hull")
        module.accumulate_step_(slope.view_as(out), acc, delta_in, ALPHA, EPS)
        module.outer_step_(acc, velocity, delta, delta_in, ALPHA, EPS)
        return loss + gap

    eager, compiled = (copies(acc, velocity, delta, delta, out) for _ in range(2))
    expected = step(fastcloak.kernels, *eager)
    actual = torch.compile(step, fullgraph=True, backend="aot_eager")(fastcloak.kernels, *compiled)
    assert_same([actual, *compiled], [expected, *eager])


def test_launches_per_operation():
    counts = {}
    for name, arguments in calls().items():
        with kernel_table.recorded(run=True) as launches:
            getattr(fastcloak.kernels, name)(**arguments)
        counts[name] = len(launches)
    assert counts == {"hull_loss": 1, "accumulate_step_": 1, "outer_step_": 2, "cloak_batch_": 1}


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
    cases = list(calls().items())
    cases += [("hull_loss", calls()["hull_loss"] | {"objective": objective}) for objective in OBJECTIVES]
    cases += [("outer_step_", calls()["outer_step_"] | {"decay": 0.0})]
    cases += [("cloak_batch_", calls()["cloak_batch_"] | {"scale": None, "shift": None})]
    cases += [("cloak_batch_", calls()["cloak_batch_"] | {"bound": None})]
    for name, arguments in cases:
        with kernel_table.recorded(run=True) as launches:
            moved.update(read=0, written=0)
            getattr(fastcloak.kernels, name)(**arguments)
        tables = [kernel_table.traffic(launch) for launch in launches]
        assert moved["read"] == sum(t[0] for t in tables), name
        assert moved["written"] == sum(t[1] for t in tables), name
        assert all(t[2] <= t[0] and t[3] == t[1] for t in tables)
