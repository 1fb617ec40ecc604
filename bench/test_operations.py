"""Every hot operation of `fastcloak.ops.reference` alone, and the hull solver at scale.

`share of copy` is the least number of bytes that the operation must move (each input read once, each output written
once), per second, over what a plain copy reaches on the same machine: 1 is the roof.
"""

from __future__ import annotations

import time

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.nn.functional import normalize

from bench.conftest import Compare
from bench.harness.machine import synchronise
from bench.speed import hull_solvers
from fastcloak.fitting.options import OBJECTIVES
from fastcloak.ops import reference
from fastcloak.ops.hull import build_hull, convex_weights, duality_gap

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EPS, ALPHA = 8 / 255, 1 / 255
SIZES = [(1, 1), (1, 10), (8, 10)]  # P persons, b photos
PHOTOS, D = 10, 512

pytestmark = pytest.mark.benchmark(max_time=0.3)
sized = pytest.mark.parametrize(("P", "b"), SIZES, ids=[f"P={P} b={b}" for P, b in SIZES])


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def pictures(*shape: int) -> Tensor:
    return torch.rand(*shape, 3, 112, 112, generator=torch.Generator().manual_seed(1)).to(DEVICE)


def time_operation(benchmark: BenchmarkFixture, call: object, moved: int, copied_per_second: float) -> None:
    """Times a call and records its share of the roofline; `moved` is the least number of bytes."""
    assert callable(call)

    def run() -> None:
        call()
        synchronise(DEVICE)

    benchmark(run)
    if benchmark.stats is not None:
        rate = moved / benchmark.stats["median"]
        benchmark.extra_info.update(bytes=moved, gb_per_s=rate / 1e9, share_of_copy=round(rate / copied_per_second, 3))


@sized
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_hull_loss(benchmark: BenchmarkFixture, copied_per_second: float, P: int, b: int, objective: str) -> None:
    clean = normalize(randn(P, 1, D) + 0.7 * randn(P, PHOTOS, D, seed=1), dim=-1)
    features = 20 * normalize(clean[:, torch.arange(b) % PHOTOS] + 0.02 * randn(P, b, D, seed=2), dim=-1)
    hull = build_hull(clean, objective)
    index = (torch.arange(b, device=DEVICE) % PHOTOS).expand(P, b)

    def call() -> tuple[Tensor, Tensor, Tensor]:
        return reference.hull_loss(features, hull.points, hull.gram, hull.center, index, objective)

    loss, grad, gap = call()
    exact_loss, exact_grad, _ = reference.hull_loss(
        features.double(), hull.points.double(), hull.gram, hull.center.double(), index, objective
    )
    assert torch.allclose(loss.double(), exact_loss, atol=1e-5)
    assert torch.allclose(grad.double(), exact_grad, atol=1e-5)
    assert gap.max() <= 1e-6
    moved = 4 * (2 * features.numel() + hull.points.numel() + hull.center.numel() + 2 * P * b)
    moved += 8 * hull.gram.numel() if objective == "convex_hull" else 0
    time_operation(benchmark, call, moved, copied_per_second)


@sized
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_accumulate_step(benchmark: BenchmarkFixture, copied_per_second: float, P: int, b: int, layout: str) -> None:
    grads = randn(P * b, 3, 112, 112)
    if layout == "channels_last":
        grads = grads.to(memory_format=torch.channels_last)
    grads = grads.view(P, b, 3, 112, 112)
    acc, delta_in = torch.zeros(P, 3, 112, 112, device=DEVICE), EPS * randn(P, 3, 112, 112, seed=1).clamp(-1, 1)
    expected = (delta_in + ALPHA * grads.double().mean(1).sign()).clamp(-EPS, EPS)
    reference.accumulate_step_(grads, acc, delta_in, ALPHA, EPS)
    # A mean that rounds across zero turns its sign.
    assert (delta_in - expected).abs().gt(1e-7).float().mean() < 1e-4
    assert torch.allclose(acc.double(), grads.double().mean(1), atol=1e-6)
    time_operation(
        benchmark,
        lambda: reference.accumulate_step_(grads, acc, delta_in, ALPHA, EPS),
        4 * (grads.numel() + 4 * acc.numel()),
        copied_per_second,
    )


@pytest.mark.parametrize("P", [1, 8])
@pytest.mark.parametrize("decay", [0.0, 1.0], ids=["plain", "momentum"])
def test_outer_step(benchmark: BenchmarkFixture, copied_per_second: float, P: int, decay: float) -> None:
    gradient = randn(P, 3, 112, 112)
    delta, velocity = torch.zeros_like(gradient), torch.zeros_like(gradient)
    delta_in, acc = torch.ones_like(gradient), gradient.clone()
    reference.outer_step_(acc, velocity, delta, delta_in, ALPHA, EPS, decay)
    assert torch.allclose(delta, ALPHA * gradient.sign())
    assert torch.equal(delta_in, delta)
    assert not acc.any()
    time_operation(
        benchmark,
        lambda: reference.outer_step_(acc, velocity, delta, delta_in, ALPHA, EPS, decay),
        4 * gradient.numel() * (7 if decay else 5),
        copied_per_second,
    )


@sized
@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_cloak_batch(
    benchmark: BenchmarkFixture, copied_per_second: float, P: int, b: int, out_dtype: torch.dtype
) -> None:
    faces, delta_in = pictures(P, PHOTOS), EPS * randn(P, 3, 112, 112).clamp(-1, 1)
    index = torch.stack([torch.randperm(PHOTOS, generator=torch.Generator().manual_seed(p))[:b] for p in range(P)])
    index = index.to(DEVICE)
    out = torch.full((P, b, 3, 112, 112), torch.nan, device=DEVICE, dtype=out_dtype)
    reference.cloak_batch_(faces, delta_in, index, out)
    for p in range(P):
        expected = (faces[p, index[p]] + delta_in[p]).clamp(0, 1)
        assert torch.equal(out[p], expected.to(out_dtype))
    moved = 4 * (out.numel() + delta_in.numel()) + out.numel() * out.element_size()
    time_operation(benchmark, lambda: reference.cloak_batch_(faces, delta_in, index, out), moved, copied_per_second)


@pytest.mark.parametrize("kind", hull_solvers.SETS)
def test_convex_weights_of_5000_problems(compare: Compare, kind: str) -> None:
    """500 people x 10 photos, K = 10 points, against quadprog one by one."""
    gram, correlation = (tensor.to(DEVICE) for tensor in hull_solvers.make_set(kind))
    w, gap = convex_weights(gram, correlation)
    assert gap.max() <= 1e-6
    # Not the solver's word alone: the gap once more, and quadprog's optimum where it solves the set.
    on_host = gram.cpu(), correlation.cpu()
    assert duality_gap(on_host[0][:, None], on_host[1], w.cpu(), 0.0, 1.0).max() <= 1e-6
    few = slice(0, 5)
    exact = hull_solvers.active_set(on_host[0][few], on_host[1][few])
    assert duality_gap(on_host[0][few, None], on_host[1][few], exact, 0.0, 1.0).max() <= 1e-6

    def ours() -> float:
        began = time.perf_counter()
        convex_weights(gram, correlation)
        synchronise(DEVICE)
        return time.perf_counter() - began

    def quadprog() -> float:
        began = time.perf_counter()
        hull_solvers.active_set(*on_host)
        return time.perf_counter() - began

    compare("fastcloak", ours, {"quadprog": quadprog})
