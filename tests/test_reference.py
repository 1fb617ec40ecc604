"""The specification, by numbers worked out by hand and against finite differences."""

import math

import pytest
import torch

from fastcloak.fitting.options import OBJECTIVES
from fastcloak.ops.hull import build_hull
from fastcloak.ops.reference import accumulate_step_, cloak_batch_, hull_loss, outer_step_
from tests.hulls import make_set


def clean_and_cloaked(D=13):
    clean, features = make_set("random", P=2, b=3, K=5, D=D)
    return clean, 3 * features, torch.tensor([[0, 3, 1], [4, 4, 2]])


def call(clean, cloaked, index, objective, **bounds):
    hull = build_hull(clean, objective)
    return hull_loss(cloaked, hull.points, hull.gram, hull.center, index, objective, **bounds)


def channels(*numbers):
    """[1, 3, 1, 1]"""
    return torch.tensor(numbers).view(1, 3, 1, 1)


def test_losses_by_hand():
    # Two clean features at right angles, c = (0.5, 0.5); the cloaked ones point along (1, 0) and (0, -1).
    clean = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    cloaked = torch.tensor([[[2.0, 0.0], [0.0, -3.0]]], dtype=torch.float64)
    index = torch.tensor([[1, 1]])
    expected = {
        "fi_uap": [2.0, 4.0],  # |(1,0)-(0,1)|^2, |(0,-1)-(0,1)|^2
        "fi_uap_plus": [-0.5, 0.5],
        "class_center": [0.5, 2.5],  # (0.5, -0.5), (-0.5, -1.5)
        "affine_hull": [0.0, 2.0],  # the line x + y = 1: (1,0) lies on it, (0,-1) is sqrt 2 away
        "convex_hull": [0.0, 2.0],  # nearest points (1, 0) and (1, 0)
    }
    for objective, losses in expected.items():
        loss, _, _ = call(clean, cloaked, index, objective)
        torch.testing.assert_close(loss, torch.tensor([losses], dtype=torch.float64), atol=1e-9, rtol=0)


def test_gradient_by_hand():
    # d/df |f/|f| - c|^2 at f = (2, 0), c = (0.5, 0.5): 2 (0.5, -0.5) = (1, -1); without its radial part (0, -1),
    # and over |f| = 2.
    clean = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    cloaked = torch.tensor([[[2.0, 0.0]]], dtype=torch.float64)
    _, grad, _ = call(clean, cloaked, torch.tensor([[0]]), "class_center")
    torch.testing.assert_close(grad, torch.tensor([[[0.0, -0.5]]], dtype=torch.float64))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradient_equals_finite_differences_of_the_loss(objective):
    # The weights are found again for each difference: the gradient of the minimum over them is the gradient at fixed
    # weights (envelope theorem).
    clean, cloaked, index = clean_and_cloaked()
    _, grad, _ = call(clean, cloaked, index, objective)
    step = 1e-5
    numeric = torch.empty_like(grad)
    for d in range(cloaked.shape[-1]):
        shift = torch.zeros_like(cloaked)
        shift[..., d] = step
        above, below = (call(clean, cloaked + sign * shift, index, objective)[0] for sign in (1, -1))
        numeric[..., d] = (above - below) / (2 * step)
    torch.testing.assert_close(grad, numeric, atol=2e-7, rtol=1e-5)


def test_fi_uap_plus_gradient_is_half_that_of_class_center():
    batch = clean_and_cloaked()
    torch.testing.assert_close(2 * call(*batch, "fi_uap_plus")[1], call(*batch, "class_center")[1])


def test_fi_uap_plus_takes_any_center():
    # z = (0.6, 0.8), c = (2, -1): -<z, c> = -0.4; slope (-2, 1), without its radial part -0.4 z and over |f| = 5:
    # (-1.76, 1.32) / 5. No center: nothing to move away from.
    cloaked = torch.tensor([3.0, 4.0], dtype=torch.float64).expand(2, 1, 2)
    center = torch.tensor([[2.0, -1.0], [0.0, 0.0]], dtype=torch.float64)
    points, gram, index = torch.zeros(2, 1, 2), torch.zeros(2, 1, 1, dtype=torch.float64), torch.zeros(2, 1).long()
    loss, grad, gap = hull_loss(cloaked, points, gram, center, index, "fi_uap_plus")
    torch.testing.assert_close(loss, torch.tensor([[-0.4], [0.0]], dtype=torch.float64))
    torch.testing.assert_close(grad, torch.tensor([[[-0.352, 0.264]], [[0.0, 0.0]]], dtype=torch.float64))
    assert not gap.any()


def test_hulls_are_nested():
    batch = clean_and_cloaked()
    affine, convex, center = (call(*batch, kind)[0] for kind in ("affine_hull", "convex_hull", "class_center"))
    reduced = call(*batch, "convex_hull", lower=0.1, upper=0.4)[0]
    assert (affine <= convex + 1e-9).all()
    assert (convex < reduced).all()
    assert (reduced < center).all()


def test_almost_closed_bounds_give_the_class_center():
    batch = clean_and_cloaked()
    loss, grad, gap = call(*batch, "convex_hull", lower=0.2 - 1e-7, upper=0.2 + 1e-7)
    expected = call(*batch, "class_center")
    torch.testing.assert_close((loss, grad), expected[:2], atol=1e-6, rtol=0)
    assert gap.max() < 1e-6


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_features_stay_within_their_rounding(objective, dtype):
    clean, cloaked, index = clean_and_cloaked(D=63)
    loss, grad, _ = call(clean.float(), cloaked.to(dtype), index, objective)
    exact_loss, exact_grad, _ = call(clean.float().double(), cloaked.to(dtype).double(), index, objective)
    assert (loss.dtype, grad.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(loss.double(), exact_loss, atol=2e-5, rtol=1e-5)
    scale = exact_grad.abs().max().item()
    torch.testing.assert_close(grad.double(), exact_grad, atol=scale * max(torch.finfo(dtype).eps, 1e-4), rtol=0)


def test_accumulate_step_by_hand():
    grads = torch.tensor([1.0, -2.0, 0.0, 4.0, -2.0, 0.0]).view(1, 2, 3, 1, 1)  # mean 2.5, -2, 0
    acc, delta_in = channels(10.0, 10.0, 10.0), channels(0.0, -0.03, 0.02)
    accumulate_step_(grads, acc, delta_in, alpha=0.01, eps=0.03)
    torch.testing.assert_close(acc, channels(12.5, 8.0, 10.0))
    torch.testing.assert_close(delta_in, channels(0.01, -0.03, 0.02))
    accumulate_step_(grads, acc, delta_in, alpha=0.01, eps=0.03, scale=torch.tensor([2.0, -1.0, 1.0]))
    torch.testing.assert_close(acc, channels(17.5, 10.0, 10.0))
    torch.testing.assert_close(delta_in, channels(0.02, -0.02, 0.02))


def test_outer_step_by_hand():
    acc, velocity = channels(3.0, -1.0, 0.0), torch.full((1, 3, 1, 1), math.nan)
    delta, delta_in = channels(0.025, 0.0, 0.01), torch.full((1, 3, 1, 1), math.nan)
    outer_step_(acc, velocity, delta, delta_in, alpha=0.01, eps=0.03)
    torch.testing.assert_close(delta, channels(0.03, -0.01, 0.01))
    assert torch.equal(delta_in, delta)
    assert torch.equal(acc, torch.zeros_like(acc))
    assert velocity.isnan().all()  # without momentum it is not even read


def test_momentum_by_hand():
    # mean|g| = 2: g/mean = (1.5, -1, 0.5); velocity = 0.5 (-4, 0, 0) + that = (-0.5, -1, 0.5).
    acc, velocity, delta = channels(3.0, -2.0, 1.0), channels(-4.0, 0.0, 0.0), torch.zeros(1, 3, 1, 1)
    outer_step_(acc, velocity, delta, torch.zeros(1, 3, 1, 1), alpha=0.01, eps=0.03, decay=0.5)
    torch.testing.assert_close(velocity, channels(-0.5, -1.0, 0.5))
    torch.testing.assert_close(delta, channels(-0.01, -0.01, 0.01))


def test_cloak_batch_by_hand():
    faces = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1, 1).expand(1, 3, 3, 1, 1)
    out = torch.full((1, 2, 3, 1, 1), math.nan)
    cloak_batch_(faces, channels(0.1, -0.1, 0.0), torch.tensor([[2, 0]]), out)
    torch.testing.assert_close(out.flatten(), torch.tensor([1.0, 0.9, 1.0, 0.1, 0.0, 0.0]))


def test_cloak_batch_with_a_bound_by_hand():
    # Changes 0.5 * 0.5, 0.25 * -1 and 0.75 * 1: at 0, clipped below in the second channel, at 1 above in the others.
    faces = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1, 1).expand(1, 3, 3, 1, 1)
    out = torch.full((1, 3, 3, 1, 1), math.nan)
    mask, bound = channels(0.5, -1.0, 1.0), channels(0.5, 0.25, 0.75)
    cloak_batch_(faces, mask, torch.tensor([[1, 0, 2]]), out, bound=bound)
    assert out.flatten().tolist() == [0.75, 0.25, 1.0, 0.25, 0.0, 0.75, 1.0, 0.75, 1.0]
    scale, shift = torch.tensor([2.0, 4.0, -2.0]), torch.tensor([-1.0, 0.0, 1.0])
    cloak_batch_(faces, mask, torch.tensor([[1, 0, 2]]), out, scale, shift, bound)
    assert out.flatten().tolist() == [0.5, 1.0, -1.0, -0.5, 0.0, -0.5, 1.0, 3.0, -1.0]


def test_a_bound_is_each_values_largest_change():
    generator = torch.Generator().manual_seed(0)
    faces = torch.rand(2, 1, 3, 7, 5, generator=generator)
    mask, bound = (torch.rand(2, 3, 7, 5, generator=generator) for _ in range(2))
    mask = 2 * mask - 1
    index, out = torch.zeros(2, 1, dtype=torch.int64), torch.empty(2, 1, 3, 7, 5)
    cloak_batch_(faces, mask, index, out, bound=bound)
    exact = (faces.double() + bound.double()[:, None] * mask.double()[:, None]).clamp(0, 1)
    torch.testing.assert_close(out.double(), exact, atol=2e-7, rtol=0)
    assert ((out - faces).abs() <= bound[:, None] + 2e-7).all()
    for name, value in (("nothing", 0.0), ("the mask", 1.0)):
        expected = torch.empty_like(out)
        cloak_batch_(faces, value * mask, index, expected)
        cloak_batch_(faces, mask, index, out, bound=torch.full_like(bound, value))
        assert torch.equal(out, expected), name


def test_cloak_batch_takes_each_person_their_own_mask_and_photos():
    generator = torch.Generator().manual_seed(0)
    faces = torch.rand(2, 4, 3, 7, 5, generator=generator)
    delta = torch.rand(2, 3, 7, 5, generator=generator) - 0.5
    index = torch.tensor([[3, 0, 0], [1, 2, 1]])
    out = torch.empty(2, 3, 3, 7, 5)
    cloak_batch_(faces, delta, index, out)
    for p in range(2):
        assert torch.equal(out[p], (faces[p, index[p]] + delta[p]).clamp(0, 1))
