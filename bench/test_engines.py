"""Every engine and backend on the same steps: launching must be cheap, and must not change the cloak.

`pytest bench` leaves out what takes minutes or what this machine has not: `--compile` adds torch.compile.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.conftest import Compare
from bench.harness import nets
from bench.harness.machine import StepClock
from fastcloak import fit

CUDA = torch.cuda.is_available()


@pytest.mark.parametrize(
    ("engine", "backend"),
    [("compile", "reference"), ("cudagraph", "reference"), ("eager", "triton"), ("cudagraph", "triton")],
)
def test_step(
    compare: Compare,
    request: pytest.FixtureRequest,
    net: nn.Module,
    faces: Tensor,
    dtype: str,
    engine: str,
    backend: str,
) -> None:
    """Seconds of a plain GA step (10 inner steps of one photo) against the eager reference."""
    if engine == "compile" and not request.config.getoption("--compile"):
        pytest.skip("torch.compile takes minutes: --compile")
    if not CUDA and (engine == "cudagraph" or backend == "triton"):
        pytest.skip("needs a CUDA device")
    assert isinstance(net, nets.OnFaces)
    model = nets.surrogate(net.net)

    setting: dict[str, Any] = {"preset": "plain", "dtype": dtype}

    def step(engine: str, backend: str) -> float:
        clock = StepClock(faces.device)
        fit(
            faces, model, preset="plain", steps=3, warmup=0, dtype=dtype, engine=engine, backend=backend, progress=clock
        )
        return clock.timing().median

    options: dict[str, Any] = {"steps": 1, "warmup": 1, **setting}
    plain = fit(faces, model, engine="eager", backend="reference", **options)
    other = fit(faces, model, engine=engine, backend=backend, **options)
    assert (other.info["engine"], other.info["backend"]) == (engine, backend)
    assert other.info["losses"] == pytest.approx(plain.info["losses"], rel=1e-3 if dtype == "float32" else 3e-2)
    # Another order of sums turns signs near zero; ten inner steps build on each other.
    assert (other.delta != plain.delta).float().mean() < 0.3
    compare(f"{engine}, {backend}", lambda: step(engine, backend), {"eager": lambda: step("eager", "reference")})
