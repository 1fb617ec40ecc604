"""The hot operations in plain PyTorch, as share of the roofline, and the convex hull against quadprog.

`share_of_copy` is the number of bytes that the operation must move (each input read once, each output written once),
per second, over what a plain copy reaches on the same machine: 1 is the roof.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.conftest import DEVICE, Compare
from bench.harness.machine import copy_bandwidth, seconds_of, synchronise
from bench.speed import hull_solvers
from bench.speed.operations import Operation, hull_operations, picture_operations
from fastcloak.ops import reference
from fastcloak.ops.hull import convex_weights, duality_gap

pytestmark = pytest.mark.benchmark(max_time=0.3)


@pytest.fixture(scope="session")
def copied_per_second() -> float:
    return copy_bandwidth(DEVICE)


def operations() -> list[Operation]:
    found: list[Operation] = []
    for persons, batch in ((1, 1), (1, 10), (8, 10)):
        found += hull_operations(persons, batch, torch.float32, DEVICE)
        for dtype, last in ((torch.float32, False), (torch.bfloat16, True)):
            found += picture_operations(persons, batch, dtype, last, DEVICE)
    return found


@pytest.mark.parametrize("operation", operations(), ids=str)
def test_operation(benchmark: BenchmarkFixture, copied_per_second: float, operation: Operation) -> None:
    (call, arguments), (exact, theirs) = operation.call_of(reference), operation.call_of(reference, torch.float64)
    error, agrees = operation.compared(call(), arguments, exact(), theirs)
    assert agrees, error

    def run() -> None:
        call()
        synchronise(DEVICE)

    benchmark(run)
    if benchmark.stats is not None:
        rate = operation.moved / benchmark.stats["median"]
        share = round(rate / copied_per_second, 3)
        benchmark.extra_info.update(bytes=operation.moved, gb_per_s=rate / 1e9, share_of_copy=share)


@pytest.mark.parametrize("kind", hull_solvers.SETS)
def test_convex_weights_of_5000_problems(compare: Compare, kind: str) -> None:
    """500 people x 10 photos, K = 10 points, against quadprog one by one."""
    on_host = hull_solvers.make_set(kind)
    gram, correlation = (tensor.to(DEVICE) for tensor in on_host)
    w, gap = convex_weights(gram, correlation)
    assert gap.max() <= 1e-6
    # The gap once more, apart from what the solver says.
    assert duality_gap(on_host[0][:, None], on_host[1], w.cpu(), 0.0, 1.0).max() <= 1e-6
    compare(
        "fastcloak",
        lambda: seconds_of(lambda: convex_weights(gram, correlation), DEVICE),
        {"quadprog": lambda: seconds_of(lambda: hull_solvers.active_set(*on_host), DEVICE)},
    )
