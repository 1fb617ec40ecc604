"""Other people's attacks and solvers against fastcloak, per image-gradient, on the same network in the same run.

`fastcloak / torchattacks` of 0.5 means that fastcloak takes half the time. The peers compute in float32 on the network
unchanged; `--dtype` and all that `fastcloak.models.prepare` does are fastcloak's own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench.conftest import DEVICE, Compare
from bench.harness.machine import seconds_of
from bench.harness.nets import OnFaces
from bench.speed import peers
from fastcloak.ops.hull import build_hull, convex_weights

STEPS = 2
# torchattacks asks for the picture's gradient alone: frozen weights change nothing.
ATTACKS = [("torchattacks", True), ("foolbox", True), ("foolbox", False), ("art", True), ("art", False)]


@pytest.mark.parametrize(
    ("peer", "weights"), ATTACKS, ids=lambda value: {True: "as they come", False: "frozen"}.get(value, value)
)
def test_attack(
    compare: Compare, step: Callable[..., float], net: OnFaces, faces: Tensor, peer: str, weights: bool
) -> None:
    """Seconds per image-gradient of fi_uap, ten photos; that the peers work is tested in tests/test_bench.py."""
    pytest.importorskip(peer, reason=f"{peer} is not installed; it is in the extra bench")
    attack, theirs = peers.ATTACKS[peer], copy.deepcopy(net).requires_grad_(weights)
    clean = peers.clean_units(theirs, faces)
    attacked = attack(theirs, faces, clean, STEPS)
    assert peers.own_feature_distance(theirs, faces, attacked.pictures) > 0

    def one_gradient() -> float:
        passes: list[int] = []
        seconds = seconds_of(lambda: passes.append(attack(theirs, faces, clean, STEPS).passes.gradients), DEVICE)
        return seconds / passes[0]

    ours = {"fastcloak": lambda: step(method="opom", objective="fi_uap", steps=STEPS) / len(faces)}
    compare(peer, one_gradient, ours)


@pytest.mark.parametrize(("peer", "solve"), [("cvxpy", peers.cvxpy_weights), ("quadprog", peers.quadprog_weights)])
def test_convex_hull_of_ten_photos(compare: Compare, peer: str, solve: peers.Solve) -> None:
    """The hull weights of one published step: ten photos, K = 10, D = 512."""
    pytest.importorskip(peer, reason=f"{peer} is not installed; it is in the extra bench")
    generator, cpu = torch.Generator().manual_seed(0), torch.device("cpu")
    base, own, noise = (torch.randn(n, 512, generator=generator) for n in (1, 10, 10))
    points = normalize(base + 0.7 * own, dim=1)
    features = normalize(points + 0.02 * noise, dim=1)
    hull = build_hull(points[None], "convex_hull")

    def weights() -> Tensor:
        return convex_weights(hull.gram, (features - hull.center)[None] @ hull.points.mT)[0][0]

    assert (solve(features, points).double() - weights()).abs().max() < 1e-2
    ours = {"fastcloak": lambda: seconds_of(weights, cpu)}
    compare(peer, lambda: seconds_of(lambda: solve(features, points), cpu), ours)
