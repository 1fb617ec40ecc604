"""Hulls and their nearest points, against SciPy and quadprog and by their duality gap."""

import numpy as np
import pytest
import quadprog
import scipy.linalg
import torch

from bench.speed import hull_solvers
from fastcloak.ops.hull import build_hull, convex_weights, interior_point
from tests.hulls import SETS, make_set

# convex_weights takes the interior point's answer where the active set has none: both must be right alone.
both_solvers = pytest.mark.parametrize("solve", [convex_weights, interior_point])
every_set = pytest.mark.parametrize("kind", SETS)


def nearest_convex(points, features, lower=0.0, upper=1.0, solve=convex_weights, **options):
    center = points.mean(1, keepdim=True)
    centred = points - center
    return solve(centred @ centred.mT, (features - center) @ centred.mT, lower, upper, **options)


def quadprog_point(points, z, lower=0.0, upper=1.0):
    """Nearest hull point by an active-set solver; a 1e-13 ridge because quadprog wants a definite matrix."""
    A, z = points.numpy(), z.numpy()
    K = len(A)
    constraints = np.hstack((np.ones((K, 1)), np.eye(K), -np.eye(K)))
    bounds = np.concatenate(([1.0], np.full(K, lower), np.full(K, -upper)))
    w = quadprog.solve_qp(A @ A.T + 1e-13 * np.eye(K), A @ z, constraints, bounds, 1)[0]
    return torch.from_numpy(w), torch.from_numpy(w @ A)


@every_set
def test_affine_point_equals_scipy_least_squares(kind):
    points, features = make_set(kind)
    hull = build_hull(points, "affine_hull")
    nearest = hull.center[:, None] + (features - hull.center[:, None]) @ hull.points.mT @ hull.points
    for p in range(len(points)):
        origin, directions = points[p, 0].numpy(), (points[p, 1:] - points[p, 0]).numpy()
        for i in range(features.shape[1]):
            along, *_ = scipy.linalg.lstsq(directions.T, features[p, i].numpy() - origin, cond=1e-10)
            np.testing.assert_allclose(nearest[p, i].numpy(), origin + along @ directions, atol=1e-6)


@every_set
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


@every_set
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
    gaps = {}
    for steps in (0, 1, 2, 4):
        w, gaps[steps] = nearest_convex(points, features, solve=interior_point, steps=steps)
        error = ((w - exact) @ points).norm(dim=-1)
        assert (error <= (2 * gaps[steps]).sqrt() + 1e-7).all()
    assert gaps[0].max() > 1e-3  # the certificate can fail


def test_convex_weights_of_two_points_by_hand():
    # Points 0 and 2 on a line: the nearest point to 0.5 is 0.75 * 0 + 0.25 * 2, to 5 it is the end.
    points = torch.tensor([[[0.0], [2.0]]], dtype=torch.float64)
    features = torch.tensor([[[0.5], [5.0]]], dtype=torch.float64)
    for bounds, second in (((0.0, 1.0), [0.0, 1.0]), ((0.1, 0.9), [0.1, 0.9])):
        w, _ = nearest_convex(points, features, *bounds)
        expected = torch.tensor([[[0.75, 0.25], second]], dtype=torch.float64)
        torch.testing.assert_close(w, expected, atol=1e-7, rtol=0)


def test_nan_features_give_a_nan_gap_and_do_not_hang():
    points, features = make_set("random")
    features[0, 0, 0] = float("nan")
    _, gap = nearest_convex(points, features)
    assert gap[0, 0].isnan()
    assert gap[1].max() < 1e-10


def test_convex_hull_points_are_centred_features():
    points, _ = make_set("random")
    hull = build_hull(points.float(), "convex_hull")
    torch.testing.assert_close(hull.center, points.float().mean(1))
    torch.testing.assert_close(hull.points + hull.center[:, None], points.float())
    centred = points - points.mean(1, keepdim=True)
    torch.testing.assert_close(hull.gram, centred @ centred.mT, atol=1e-6, rtol=0)
