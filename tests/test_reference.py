import math

import pytest
import torch
from torch.nn.functional import normalize

from fastcloak.fitting.options import OBJECTIVES
from fastcloak.ops.hull import build_hull
from fastcloak.ops.reference import accumulate_step_, cloak_batch_, hull_loss, outer_step_


def clean_and_cloaked(P=2, b=3, K=5, D=13, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randn(P, 1, D, generator=generator, dtype=dtype) + 0.6 * torch.randn(
        P, K, D, generator=generator, dtype=dtype
    )
    index = torch.randint(0, K, (P, b), generator=generator)
    cloaked = 3 * clean.gather(1, index[..., None].expand(-1, -1, D)) + torch.randn(
        P, b, D, generator=generator, dtype=dtype
    )
    return normalize(clean, dim=-1), cloaked, index


def call(clean, cloaked, index, objective, **bounds):
    hull = build_hull(clean, objective)
    return hull_loss(cloaked, hull.points, hull.gram, hull.center, index, objective, **bounds)


def test_losses_by_hand():
    # Two clean features at right angles, c = (0.5, 0.5); the cloaked one points along (1, 0) with length 2.
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
def test_gradient_equals_autograd_of_the_loss(objective):
    clean, cloaked, index = clean_and_cloaked()
    hull = build_hull(clean, objective)

    def loss_of(features):
        # The gradient of the minimum over the weights is the gradient at fixed weights (envelope theorem): finite
        # differences of the loss itself, weights found anew each time, must agree.
        return hull_loss(features, hull.points, hull.gram, hull.center, index, objective)[0]

    _, grad, _ = call(clean, cloaked, index, objective)
    step = 1e-5
    numeric = torch.empty_like(grad)
    for d in range(cloaked.shape[-1]):
        shift = torch.zeros_like(cloaked)
        shift[..., d] = step
        numeric[..., d] = (loss_of(cloaked + shift) - loss_of(cloaked - shift)) / (2 * step)
    torch.testing.assert_close(grad, numeric, atol=2e-7, rtol=1e-5)


def test_fi_uap_plus_gradient_is_half_that_of_class_center():
    batch = clean_and_cloaked()
    torch.testing.assert_close(2 * call(*batch, "fi_uap_plus")[1], call(*batch, "class_center")[1])


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
    torch.testing.assert_close(loss, call(*batch, "class_center")[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(grad, call(*batch, "class_center")[1], atol=1e-6, rtol=0)
    assert gap.max() < 1e-6


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_features_stay_within_their_rounding(objective, dtype):
    clean, cloaked, index = clean_and_cloaked(D=63)
    loss, grad, _ = call(clean.float(), cloaked.to(dtype), index, objective)
    exact_loss, exact_grad, _ = call(clean.float().double(), cloaked.to(dtype).double(), index, objective)
    assert loss.dtype == torch.float32
    assert grad.dtype == dtype
    torch.testing.assert_close(loss.double(), exact_loss, atol=2e-5, rtol=1e-5)
    scale = exact_grad.abs().max().item()
    torch.testing.assert_close(grad.double(), exact_grad, atol=scale * max(torch.finfo(dtype).eps, 1e-4), rtol=0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_nan_in_one_feature_shows_in_its_loss_and_nowhere_else(objective):
    clean, cloaked, index = clean_and_cloaked()
    expected, _, _ = call(clean, cloaked, index, objective)
    cloaked[1, 2, 0] = math.nan
    loss, _, _ = call(clean, cloaked, index, objective)
    assert loss[1, 2].isnan()
    expected[1, 2] = loss[1, 2] = 0
    assert torch.equal(loss, expected)


def state(P=2, seed=3):
    generator = torch.Generator().manual_seed(seed)
    grads = torch.randn(P, 3, 3, 7, 5, generator=generator)
    acc = torch.randn(P, 3, 7, 5, generator=generator)
    delta = torch.rand(P, 3, 7, 5, generator=generator) * 0.06 - 0.03
    return grads, acc, delta


def test_accumulate_step_by_hand():
    grads = torch.tensor([1.0, -2.0, 0.0, 4.0, -2.0, 0.0]).view(1, 2, 3, 1, 1)  # mean 2.5, -2, 0
    acc = torch.tensor([10.0, 10.0, 10.0]).view(1, 3, 1, 1)
    delta_in = torch.tensor([0.0, -0.03, 0.02]).view(1, 3, 1, 1)
    accumulate_step_(grads, acc, delta_in, alpha=0.01, eps=0.03)
    torch.testing.assert_close(acc.flatten(), torch.tensor([12.5, 8.0, 10.0]))
    torch.testing.assert_close(delta_in.flatten(), torch.tensor([0.01, -0.03, 0.02]))


def test_normalised_accumulation_adds_mean_one():
    grads, acc, delta = state()
    before = acc.clone()
    accumulate_step_(1e-6 * grads, acc, delta.clone(), 0.01, 0.03, normalise=True)
    added = acc - before
    torch.testing.assert_close(added.abs().mean((1, 2, 3)), torch.ones(2), atol=1e-5, rtol=0)
    acc_of_zero = torch.zeros_like(acc)
    accumulate_step_(torch.zeros_like(grads), acc_of_zero, delta.clone(), 0.01, 0.03, normalise=True)
    assert torch.equal(acc_of_zero, torch.zeros_like(acc))


def test_accumulate_step_takes_channels_last_gradients():
    grads, acc, delta = state()
    other_acc, other_delta = acc.clone(), delta.clone()
    accumulate_step_(grads, acc, delta, 0.01, 0.03)
    last = grads.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, grads.shape[:2])
    accumulate_step_(last, other_acc, other_delta, 0.01, 0.03)
    assert torch.equal(delta, other_delta)
    assert torch.equal(acc, other_acc)


def test_outer_step_by_hand():
    acc = torch.tensor([3.0, -1.0, 0.0]).view(1, 3, 1, 1)
    velocity = torch.full((1, 3, 1, 1), math.nan)
    delta = torch.tensor([0.025, 0.0, 0.01]).view(1, 3, 1, 1)
    delta_in = torch.full((1, 3, 1, 1), math.nan)
    outer_step_(acc, velocity, delta, delta_in, alpha=0.01, eps=0.03)
    torch.testing.assert_close(delta.flatten(), torch.tensor([0.03, -0.01, 0.01]))
    assert torch.equal(delta_in, delta)
    assert torch.equal(acc, torch.zeros_like(acc))
    assert velocity.isnan().all()  # without momentum it is not even read


def test_momentum_by_hand():
    # mean|g| = 2: g/mean = (1.5, -1, 0.5); velocity = 0.5 (-4, 0, 0) + that = (-0.5, -1, 0.5).
    acc = torch.tensor([3.0, -2.0, 1.0]).view(1, 3, 1, 1)
    velocity = torch.tensor([-4.0, 0.0, 0.0]).view(1, 3, 1, 1)
    delta = torch.zeros(1, 3, 1, 1)
    outer_step_(acc, velocity, delta, torch.zeros(1, 3, 1, 1), alpha=0.01, eps=0.03, decay=0.5)
    torch.testing.assert_close(velocity.flatten(), torch.tensor([-0.5, -1.0, 0.5]))
    torch.testing.assert_close(delta.flatten(), torch.tensor([-0.01, -0.01, 0.01]))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_gradient_shows_in_the_mask(bad):
    grads, acc, delta = state()
    grads[0, 1, 2, 3, 4] = bad
    delta_in = delta.clone()
    accumulate_step_(grads, acc, delta_in, 0.01, 0.03)
    outer_step_(acc, torch.zeros_like(acc), delta, delta_in.clone(), 0.01, 0.03)
    for mask in (delta_in, delta):
        assert mask[0, 2, 3, 4].isnan()
        assert mask.isnan().sum() == 1


def test_cloak_batch_by_hand():
    faces = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1, 1).expand(1, 3, 3, 1, 1)
    delta = torch.tensor([0.1, -0.1, 0.0]).view(1, 3, 1, 1)
    out = torch.full((1, 2, 3, 1, 1), math.nan)
    cloak_batch_(faces, delta, torch.tensor([[2, 0]]), out)
    torch.testing.assert_close(out.flatten(), torch.tensor([1.0, 0.9, 1.0, 0.1, 0.0, 0.0]))


def test_cloak_batch_takes_each_person_their_own_mask_and_photos():
    generator = torch.Generator().manual_seed(0)
    faces = torch.rand(2, 4, 3, 7, 5, generator=generator)
    delta = torch.rand(2, 3, 7, 5, generator=generator) - 0.5
    index = torch.tensor([[3, 0, 0], [1, 2, 1]])
    out = torch.empty(2, 3, 3, 7, 5)
    cloak_batch_(faces, delta, index, out)
    for p in range(2):
        for i in range(3):
            assert torch.equal(out[p, i], (faces[p, index[p, i]] + delta[p]).clamp(0, 1))
