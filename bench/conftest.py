"""`pytest bench`: options, the machine in every file of rows, and comparisons within one run.

pytest bench                                    MobileFaceNet, a few minutes on two cores
pytest bench --net iresnet50 --rounds 1         the network that most figures are about; slow on a CPU
pytest bench --benchmark-json rows.json         keeps the rows
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from bench.harness import nets
from bench.harness.machine import Timing, copy_bandwidth, row_context

PHOTOS = 10


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--net", choices=sorted(nets.NETS), default="mobilefacenet", help="network (%(default)s)")
    parser.addoption("--rounds", type=int, default=3, help="measurements of everything slow (%(default)s)")
    parser.addoption("--compile", action="store_true", help="also torch.compile, which takes minutes")
    parser.addoption("--dtype", choices=["float32", "bfloat16"], default="float32", help="fastcloak's (%(default)s)")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.update(row_context())


@pytest.fixture(scope="session")
def net(request: pytest.FixtureRequest) -> nn.Module:
    """The chosen network on faces in [0, 1], weights as they come."""
    return nets.OnFaces(nets.NETS[request.config.getoption("--net")]()).to(_device())


@pytest.fixture(scope="session")
def dtype(request: pytest.FixtureRequest) -> str:
    """What fastcloak's surrogate computes in; the published loop and the peers take float32."""
    return str(request.config.getoption("--dtype"))


@pytest.fixture(scope="session")
def faces() -> Tensor:
    """[10, 3, 112, 112], one person."""
    return nets.faces(PHOTOS).to(_device())


@pytest.fixture(scope="session")
def copied_per_second() -> float:
    """Bytes per second of a large copy, the roof of elementwise operations."""
    return copy_bandwidth()


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Compare(Protocol):
    """Type of the fixture `compare`."""

    def __call__(self, name: str, call: Callable[[], float], others: Mapping[str, Callable[[], float]]) -> None:
        """Measures and records."""


@pytest.fixture
def compare(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Compare:
    """Measures several things in turns, one row of the benchmark with their ratios.

    Every call returns the seconds that it measured itself for one unit (a step, an image-gradient). The benchmark's own
    times are those of the whole first call. Callers check results, and thereby warm up, before.
    """

    def run(name: str, call: Callable[[], float], others: Mapping[str, Callable[[], float]]) -> None:
        seconds: dict[str, list[float]] = {key: [] for key in (name, *others)}

        def measure_others() -> None:
            for key, other in others.items():
                seconds[key].append(other())

        def measured() -> None:
            seconds[name].append(call())

        pedantic: Callable[..., object] = benchmark.pedantic
        pedantic(measured, setup=measure_others, rounds=request.config.getoption("--rounds"), iterations=1)
        timings = {key: Timing(tuple(values)) for key, values in seconds.items()}
        for key, timing in timings.items():
            low, high = timing.spread
            benchmark.extra_info[f"{key}: seconds, 20 %, 80 %"] = (timing.median, low, high)
            if key != name:
                benchmark.extra_info[f"{key} / {name}"] = round(timing.over(timings[name]), 3)

    return run
