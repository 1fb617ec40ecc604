import numpy as np
import pytest
import quadprog
import scipy.linalg
import torch
from torch.nn.functional import normalize

from bench.speed import hull_solvers
from fastcloak.ops.hull import affine_weights, build_hull, convex_weights, interior_point

SETS = ("random", "duplicate", "near_duplicate", "collinear", "rank_two", "inside")


def make_set(kind, P=3, b=4, K=10, D=64, seed=0):
    """Points [P, K, D] and features [P, b, D], unit rows in float64."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    common = normalize(randn(P, 1, D), dim=-1)
    points = common + randn(P, K, D) * 0.7 / D**0.5
    half = K // 2
    if kind == "duplicate":
        points[:, half:] = points[:, : K - half]
    if kind == "near_duplicate":
        points[:, half:] = points[:, : K - half] + 1e-4 * randn(P, K - half, D)
    if kind == "collinear":
        points = common + torch.rand(P, K, 1, generator=generator, dtype=torch.float64) * randn(P, 1, D) / D**0.5
    if kind == "rank_two":
        points = randn(P, K, 2) @ randn(P, 2, D) / D**0.5
    points = normalize(points, dim=-1)
    chosen = torch.randint(0, K, (b,), generator=generator)
    features = points[:, chosen] + 0.5 * randn(P, b, D) / D**0.5
    if kind == "inside":
        features = torch.softmax(randn(P, b, K), -1) @ points
        return points, features
    return points, normalize(features, dim=-1)


def nearest_convex(points, features, lower=0.0, upper=1.0, solve=convex_weights, **options):
    center = points.mean(1, keepdim=True)
    centred = points - center
    return solve(centred @ centred.mT, (features - center) @ centred.mT, lower, upper, **options)


# convex_weights takes the interior point's answer where the active set has none: both must be right alone.
both_solvers = pytest.mark.parametrize("solve", [convex_weights, interior_point])


def quadprog_point(points, z, lower=0.0, upper=1.0):
    """Nearest hull point by an active-set solver; a 1e-13 ridge because quadprog wants a definite matrix."""
    A, z = points.numpy(), z.numpy()
    K = len(A)
    constraints = np.hstack((np.ones((K, 1)), np.eye(K), -np.eye(K)))
    bounds = np.concatenate(([1.0], np.full(K, lower), np.full(K, -upper)))
    w = quadprog.solve_qp(A @ A.T + 1e-13 * np.eye(K), A @ z, constraints, bounds, 1)[0]
    return torch.from_numpy(w), torch.from_numpy(w @ A)


@pytest.mark.parametrize("kind", SETS)
def test_affine_point_equals_scipy_least_squares(kind):
    points, features = make_set(kind)
    w = affine_weights(features, points)
    assert (w.sum(-1) - 1).abs().max() < 1e-6
    for p in range(len(points)):
        origin, directions = points[p, 0].numpy(), (points[p, 1:] - points[p, 0]).numpy()
        for i in range(features.shape[1]):
            along, *_ = scipy.linalg.lstsq(directions.T, features[p, i].numpy() - origin, cond=1e-10)
            np.testing.assert_allclose((w[p, i] @ points[p]).numpy(), origin + along @ directions, atol=1e-6)


def test_affine_weights_of_independent_points_equal_the_kkt_system():
    points, features = make_set("random")
    K = points.shape[1]
    w = affine_weights(features, points)
    kkt = torch.zeros(K + 1, K + 1, dtype=torch.float64)
    kkt[:K, K] = kkt[K, :K] = 1
    for p in range(len(points)):
        kkt[:K, :K] = points[p] @ points[p].T
        for i in range(features.shape[1]):
            rhs = torch.cat((points[p] @ features[p, i], torch.ones(1, dtype=torch.float64)))
            torch.testing.assert_close(w[p, i], torch.linalg.solve(kkt, rhs)[:K], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.02, 0.3), (-0.3, 1.0)])
@both_solvers
def test_convex_point_equals_quadprog(kind, bounds, solve):
    points, features = make_set(kind)
    w, gap = nearest_convex(points, features, *bounds, solve=solve)
    assert gap.max() < 1e-10
    assert (w.sum(-1) - 1).abs().max() < 1e-12
    assert w.min() >= bounds[0]
    assert w.max() <= bounds[1]
    for p in range(len(points)):
        for i in range(features.shape[1]):
            exact_w, exact_point = quadprog_point(points[p], features[p, i], *bounds)
            torch.testing.assert_close(w[p, i] @ points[p], exact_point, atol=1e-6, rtol=0)
            if kind == "random":  # elsewhere the weights of a point are not unique
                torch.testing.assert_close(w[p, i], exact_w, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("K", [2, 3, 10, 30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@both_solvers
def test_convex_gap_is_tiny_also_from_float32_features(kind, K, dtype, solve):
    points, features = make_set(kind, P=20, K=K, D=512, seed=K)
    hull = build_hull(points.to(dtype), "convex_hull")
    offset = features.to(dtype) - hull.center[:, None]
    w, gap = solve(hull.gram, offset @ hull.points.mT)
    assert gap.max() < 1e-7
    assert (w.sum(-1) - 1).abs().max() < 1e-11


@pytest.mark.parametrize("kind", ["duplicate", "near_duplicate"])
@pytest.mark.parametrize("K", [20, 30])
@both_solvers
def test_no_problem_of_thousands_stalls(kind, K, solve):
    # A step of its own for weights and multipliers left 1 % of these with a gap of 1e-2.
    gram, correlation = hull_solvers.make_set(kind, P=200, K=K)
    assert solve(gram, correlation)[1].max() < 1e-9


def test_the_active_set_answers_most_problems_and_the_interior_point_the_rest(monkeypatch):
    asked = []

    def counted(gram, q, lower, upper):
        asked.append(q[..., 0].numel())
        return interior_point(gram, q, lower, upper)

    monkeypatch.setattr("fastcloak.ops.hull.interior_point", counted)
    nearest_convex(*make_set("random", P=50))
    assert asked == []
    points, features = make_set("near_duplicate", P=50)
    nearest_convex(points, features)
    assert 0 < sum(asked) <= features[..., 0].numel()


def test_gap_bounds_the_distance_to_the_nearest_point():
    points, features = make_set("random")
    exact, _ = nearest_convex(points, features)
    for steps in (0, 1, 2, 4):
        w, gap = nearest_convex(points, features, solve=interior_point, steps=steps)
        error = ((w - exact) @ points).norm(dim=-1)
        assert (error <= (2 * gap).sqrt() + 1e-7).all()
    assert nearest_convex(points, features, solve=interior_point, steps=0)[1].max() > 1e-3  # the certificate can fail


def test_convex_weights_of_two_points_by_hand():
    # Points 0 and 2 on a line: the nearest point to 0.5 is 0.75 * 0 + 0.25 * 2, to 5 it is the end.
    points = torch.tensor([[[0.0], [2.0]]], dtype=torch.float64)
    features = torch.tensor([[[0.5], [5.0]]], dtype=torch.float64)
    w, _ = nearest_convex(points, features)
    torch.testing.assert_close(w, torch.tensor([[[0.75, 0.25], [0.0, 1.0]]], dtype=torch.float64), atol=1e-7, rtol=0)
    w, _ = nearest_convex(points, features, 0.1, 0.9)
    torch.testing.assert_close(w, torch.tensor([[[0.75, 0.25], [0.1, 0.9]]], dtype=torch.float64), atol=1e-7, rtol=0)


def test_nan_features_give_a_nan_gap_and_do_not_hang():
    points, features = make_set("random")
    features[0, 0, 0] = float("nan")
    _, gap = nearest_convex(points, features)
    assert gap[0, 0].isnan()
    assert gap[1].max() < 1e-10


@pytest.mark.parametrize("kind", SETS)
def test_affine_basis_spans_the_hull(kind):
    points, features = make_set(kind)
    hull = build_hull(points, "affine_hull")
    offset = features - hull.center[:, None]
    got = hull.center[:, None] + offset @ hull.points.mT @ hull.points
    torch.testing.assert_close(got, affine_weights(features, points) @ points, atol=1e-8, rtol=0)


def test_convex_hull_points_are_centred_features():
    points, _ = make_set("random")
    hull = build_hull(points.float(), "convex_hull")
    torch.testing.assert_close(hull.center, points.float().mean(1))
    torch.testing.assert_close(hull.points + hull.center[:, None], points.float())
    centred = points - points.mean(1, keepdim=True)
    torch.testing.assert_close(hull.gram, centred @ centred.mT, atol=1e-6, rtol=0)
