"""Other people's attacks and solvers against fastcloak, per image-gradient, on the same network in the same run.

`fastcloak / torchattacks` of 0.5 means that fastcloak takes half the time. The peers compute in float32 on the network
as it is; `--dtype` and all that `fastcloak.models.prepare` does are fastcloak's own.
"""

from __future__ import annotations

import copy
import time

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from bench.conftest import Compare
from bench.harness import nets
from bench.harness.machine import StepClock, synchronise
from bench.speed import peers
from fastcloak import fit
from fastcloak.ops.hull import build_hull, convex_weights

EPS = 8 / 255
STEPS = 2


# torchattacks asks for the picture's gradient alone: frozen weights change nothing.
@pytest.mark.parametrize(
    ("peer", "weights"),
    [
        ("torchattacks", "as they come"),
        ("foolbox", "as they come"),
        ("foolbox", "frozen"),
        ("art", "as they come"),
        ("art", "frozen"),
    ],
)
def test_attack(compare: Compare, net: nn.Module, faces: Tensor, dtype: str, peer: str, weights: str) -> None:
    """Seconds per image-gradient of fi_uap, ten photos."""
    pytest.importorskip(peer, reason=f"{peer} is not installed; it is in the extra bench")
    attack, theirs = peers.ATTACKS[peer], copy.deepcopy(net).requires_grad_(weights == "as they come")
    clean = peers.clean_units(theirs, faces)
    assert isinstance(net, nets.OnFaces)
    model = nets.surrogate(net.net)

    attacked = attack(theirs, faces, clean, STEPS)
    assert (attacked.pictures - faces).abs().max() <= EPS + 1e-6
    noisy = (faces + EPS * torch.rand_like(faces).mul(2).sub(1)).clamp(0, 1)
    reached = peers.own_feature_distance(theirs, faces, attacked.pictures)
    assert reached > (0 if peer == "art" else peers.own_feature_distance(theirs, faces, noisy))
    if peer != "art":
        assert attacked.passes.gradients == STEPS * len(faces)
    cloak = fit(faces, model, method="opom", objective="fi_uap", steps=STEPS, dtype=dtype)
    assert cloak.info["image_gradients"] == STEPS * len(faces)
    assert peers.own_feature_distance(theirs, faces, cloak.apply(faces)) > 0

    def one_gradient() -> float:
        synchronise(faces.device)
        began = time.perf_counter()
        passes = attack(theirs, faces, clean, STEPS).passes
        synchronise(faces.device)
        return (time.perf_counter() - began) / passes.gradients

    def our_gradient() -> float:
        clock = StepClock(faces.device)
        fit(faces, model, method="opom", objective="fi_uap", steps=2, dtype=dtype, progress=clock)
        return clock.timing().median / len(faces)

    compare(peer, one_gradient, {"fastcloak": our_gradient})


@pytest.mark.parametrize(("peer", "solve"), [("cvxpy", peers.cvxpy_weights), ("quadprog", peers.quadprog_weights)])
def test_convex_hull_of_ten_photos(compare: Compare, peer: str, solve: peers.Solve) -> None:
    """The hull weights of one published step: ten photos, K = 10, D = 512."""
    pytest.importorskip(peer, reason=f"{peer} is not installed; it is in the extra bench")
    generator = torch.Generator().manual_seed(0)

    def randn(n: int) -> Tensor:
        return torch.randn(n, 512, generator=generator)

    points = normalize(randn(1) + 0.7 * randn(10), dim=1)
    features = normalize(points + 0.02 * randn(10), dim=1)
    hull = build_hull(points[None], "convex_hull")

    def weights() -> Tensor:
        return convex_weights(hull.gram, (features - hull.center)[None] @ hull.points.mT)[0][0]

    assert (solve(features, points).double() - weights()).abs().max() < 1e-2

    def theirs() -> float:
        began = time.perf_counter()
        solve(features, points)
        return time.perf_counter() - began

    def ours() -> float:
        began = time.perf_counter()
        weights()
        return time.perf_counter() - began

    compare(peer, theirs, {"fastcloak": ours})
