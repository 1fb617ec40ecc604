"""Every engine and backend on the same steps: launching must be cheap, and must not change the cloak.

`pytest bench` leaves out what takes minutes or what this machine has not: `--compile` adds torch.compile.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bench.conftest import Compare
from fastcloak import fit
from fastcloak.models import Surrogate

PAIRS = [("compile", "reference"), ("cudagraph", "reference"), ("eager", "triton"), ("cudagraph", "triton")]


@pytest.mark.parametrize(("engine", "backend"), PAIRS)
def test_step(
    compare: Compare,
    step: Callable[..., float],
    request: pytest.FixtureRequest,
    model: Surrogate,
    faces: Tensor,
    dtype: str,
    engine: str,
    backend: str,
) -> None:
    """Seconds of a plain GA step (10 inner steps of one photo) against the eager reference."""
    if engine == "compile" and not request.config.getoption("--compile"):
        pytest.skip("torch.compile takes minutes: --compile")
    if not torch.cuda.is_available() and (engine == "cudagraph" or backend == "triton"):
        pytest.skip("needs a CUDA device")
    plain, other = (
        fit(faces, model, preset="plain", steps=1, warmup=1, dtype=dtype, engine=which, backend=how)
        for which, how in (("eager", "reference"), (engine, backend))
    )
    assert (other.info["engine"], other.info["backend"]) == (engine, backend)
    assert other.info["losses"] == pytest.approx(plain.info["losses"], rel=1e-3 if dtype == "float32" else 3e-2)
    # Another order of sums turns signs near zero; ten inner steps build on each other.
    assert (other.delta != plain.delta).float().mean() < 0.3
    compare(
        f"{engine}, {backend}",
        lambda: step(preset="plain", steps=3, engine=engine, backend=backend),
        {"eager": lambda: step(preset="plain", steps=3, engine="eager", backend="reference")},
    )
