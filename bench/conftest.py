"""`pytest bench`: options, the machine in every file of rows, and comparisons within one run.

pytest bench                                    MobileFaceNet, a few minutes on two cores
pytest bench --net iresnet50 --rounds 1         the network that most figures are about; slow on a CPU
pytest bench --benchmark-json rows.json         keeps the rows
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bench.harness import nets
from bench.harness.machine import StepClock, Timing, row_context
from fastcloak import fit
from fastcloak.models import Surrogate

PHOTOS = 10
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Compare = Callable[[str, Callable[[], float], Mapping[str, Callable[[], float]]], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--net", choices=sorted(nets.NETS), default="mobilefacenet", help="network (%(default)s)")
    parser.addoption("--rounds", type=int, default=3, help="measurements of everything slow (%(default)s)")
    parser.addoption("--compile", action="store_true", help="also torch.compile, which takes minutes")
    parser.addoption("--dtype", choices=["float32", "bfloat16"], default="float32", help="fastcloak's (%(default)s)")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.update(row_context())


@pytest.fixture(scope="session")
def net(request: pytest.FixtureRequest) -> nets.OnFaces:
    """The chosen network on faces in [0, 1], weights as they come."""
    return nets.OnFaces(nets.NETS[request.config.getoption("--net")]()).to(DEVICE)


@pytest.fixture(scope="session")
def model(net: nets.OnFaces) -> Surrogate:
    return nets.surrogate(net.net)


@pytest.fixture(scope="session")
def dtype(request: pytest.FixtureRequest) -> str:
    """What fastcloak's surrogate computes in; the published loop and the peers take float32."""
    return str(request.config.getoption("--dtype"))


@pytest.fixture(scope="session")
def faces() -> Tensor:
    """[10, 3, 112, 112], one person."""
    return nets.faces(PHOTOS).to(DEVICE)


def step_seconds(fitting: Callable[..., object], *arguments: Any, **options: Any) -> float:
    """Median seconds of a step of `fit` or of what takes its `progress`, but for the first."""
    clock = StepClock(DEVICE)
    fitting(*arguments, progress=clock, **options)
    return clock.timing().median


@pytest.fixture
def step(faces: Tensor, model: Surrogate, dtype: str) -> Callable[..., float]:
    """Seconds of a step of `fastcloak.fit` with these options."""
    return lambda **options: step_seconds(fit, faces, model, warmup=0, dtype=dtype, **options)


@pytest.fixture
def compare(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Compare:
    """Measures several things in turns, one row of the benchmark with their ratios.

    Every call returns the seconds that it measured itself for one unit (a step, an image-gradient). The benchmark's own
    times are those of the whole first call. Callers check results, and thereby warm up, before.
    """

    def run(name: str, call: Callable[[], float], others: Mapping[str, Callable[[], float]]) -> None:
        calls = {name: call, **others}
        seconds: dict[str, list[float]] = {key: [] for key in calls}

        def measure(*keys: str) -> None:
            for key in keys:
                seconds[key].append(calls[key]())

        rounds = request.config.getoption("--rounds")
        pedantic: Callable[..., object] = benchmark.pedantic
        pedantic(lambda: measure(name), setup=lambda: measure(*others), rounds=rounds, iterations=1)
        timings = {key: Timing(tuple(values)) for key, values in seconds.items()}
        for key, timing in timings.items():
            benchmark.extra_info[f"{key}: seconds, 20 %, 80 %"] = (timing.median, *timing.spread)
            if key != name:
                benchmark.extra_info[f"{key} / {name}"] = round(timing.over(timings[name]), 3)

    return run
