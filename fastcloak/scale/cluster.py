"""Where the stages of a job run: on a Ray cluster side by side, or in this process one after the other.

A stage is a function of rows to rows; a row is a dict with a value for each of the stage's columns.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from fastcloak.models import Surrogate
from fastcloak.system import packages

__all__ = [
    "PEOPLE",
    "Here",
    "OnRay",
    "OverClient",
    "Place",
    "Row",
    "Stage",
    "place",
    "table",
]

log = logging.getLogger("fastcloak")

Row = dict[str, Any]
PEOPLE = {"person": "string", "photos": "list<string>"}
"""What goes into the first stage."""
PEOPLE_PER_BATCH, PEOPLE_PER_GPU_BATCH = 16, 64
FIT_SHARE, READ_SHARE = 0.75, 0.25
"""CPUs that a fitting worker and a reading task ask Ray for where both run on CPUs: so that workers on every CPU never
keep the reading from running, which would stop the job for good. With GPUs both ask for a whole one."""


@dataclass(frozen=True)
class Stage:
    """A step of the way: `make(*arguments)` gives a function of rows to rows with `columns`."""

    make: Callable[..., Callable[[list[Row]], list[Row]]]
    arguments: tuple[Any, ...]
    columns: dict[str, str]
    fits: bool = False


class Here:
    """Runs the stages one after the other in this process."""

    def batch(self, people: int | None) -> int:
        """How many people to do at once, of so many in all."""
        return PEOPLE_PER_BATCH

    def share(self, model: Surrogate) -> Callable[[], Surrogate]:
        """What gives the model to a stage."""
        return lambda: model

    def run(self, batches: Iterable[list[Row]], size: int, stages: list[Stage]) -> Generator[Row]:
        """The rows that batches come to."""
        functions = [stage.make(*stage.arguments) for stage in stages]
        for rows in batches:
            for function in functions:
                rows = function(rows)
            yield from rows


class OnRay:
    """Runs the stages side by side on a Ray cluster: reading as tasks, fitting on workers that stay."""

    def __init__(self, concurrency: int | None, num_gpus: float | None) -> None:
        self._ray, self._data = import_module("ray"), import_module("ray.data")
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        there = self._ray.cluster_resources()
        self._cpus, gpus = there.get("CPU", 0.0), there.get("GPU", 0.0)
        self._gpus = float(gpus > 0) if num_gpus is None else num_gpus
        self._concurrency = concurrency
        self._most = int(gpus / self._gpus if self._gpus else self._cpus)

    def batch(self, people: int | None) -> int:
        """How many people a worker gets at once, of so many in all; fewer where some would have nothing to do."""
        most = PEOPLE_PER_GPU_BATCH if self._gpus else PEOPLE_PER_BATCH
        return most if people is None else max(1, min(most, people // (self._concurrency or self._most or 1)))

    def share(self, model: Surrogate) -> Callable[[], Surrogate]:
        """What gives the model to a stage, wherever that runs; it is sent to each machine once."""
        return partial(self._ray.get, self._ray.put(model))

    def run(self, people: Any, size: int, stages: list[Stage]) -> Generator[Row]:
        """The rows that batches, or a Ray Dataset in batches of `size`, come to, as they are done."""
        with closing(self.blocks(people, size, stages)) as blocks:
            for rows in blocks:
                yield from rows

    def blocks(self, people: Any, size: int, stages: list[Stage]) -> Generator[list[Row]]:
        """The same, in lists of what came together."""
        lazy = isinstance(people, self._data.Dataset)
        # What reads a Dataset asks for a whole CPU, and so does all beside GPUs.
        beside = any(stage.fits for stage in stages) and not self._gpus
        share = READ_SHARE if beside else 1.0
        workers = self._concurrency or max(1, self._most - (lazy and beside))
        if lazy:
            dataset = people.repartition(target_num_rows_per_block=size)
        else:
            batches = [table(batch, PEOPLE) for batch in people]
            dataset, workers = self._data.from_arrow(batches), min(workers, len(batches))
        for stage in stages:
            if stage.fits:
                self._check(workers, 1.0 if lazy else share)
                dataset = dataset.map_batches(
                    _RayWorker,
                    fn_constructor_args=(stage, not self._gpus),
                    compute=self._data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
                    num_gpus=self._gpus or None,
                    num_cpus=FIT_SHARE if beside else 1.0,
                    **_WHOLE_BLOCKS,
                )
            else:
                # Beside fitting on CPUs as many as fit; beside GPUs as many as there is room for, and the queue bears.
                at_a_time = workers if beside else None if self._gpus else self._concurrency
                dataset = dataset.map_batches(
                    partial(_in_ray_task, stage),
                    compute=self._data.TaskPoolStrategy(size=at_a_time),
                    num_cpus=share,
                    **_WHOLE_BLOCKS,
                )
        dataset.context.enable_progress_bars = False
        dataset.context.execution_no_progress_timeout_s = -1  # a batch may take hours
        # Closed here and not when it is collected, when Ray may be gone.
        results = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
        with closing(results):
            for result in results:
                yield result.to_pylist()

    def _check(self, workers: int, reading: float) -> None:
        if workers * self._gpus > self._most * self._gpus or (
            workers * (1.0 if self._gpus else FIT_SHARE) + reading > self._cpus
        ):
            log.warning(
                "%d workers and the reading of photos beside them want more than the %g CPUs and %g GPUs of Ray: "
                "they wait for more, perhaps without end; take a smaller concurrency",
                workers,
                self._cpus,
                self._most * self._gpus,
            )


class OverClient:
    """Has the stages run from within a cluster that is reached by ray://, since Ray Data does not work from without."""

    def __init__(self, concurrency: int | None, num_gpus: float | None) -> None:
        self._ray = import_module("ray")
        self._within = self._ray.remote(num_cpus=0)(_Within).remote(concurrency, num_gpus)

    def batch(self, people: int | None) -> int:
        """As `OnRay`."""
        return int(self._ray.get(self._within.batch.remote(people)))

    def share(self, model: Surrogate) -> Callable[[], Surrogate]:
        """As `OnRay`."""
        return partial(self._ray.get, self._ray.put(model))

    def run(self, people: Any, size: int, stages: list[Stage]) -> Generator[Row]:
        """As `OnRay`."""
        self._ray.get(self._within.begin.remote(list(people), size, stages))
        try:
            while (rows := self._ray.get(self._within.next.remote())) is not None:
                yield from rows
        finally:
            self._ray.kill(self._within)


class _Within:
    def __init__(self, concurrency: int | None, num_gpus: float | None) -> None:
        self._on_ray = OnRay(concurrency, num_gpus)

    def batch(self, people: int | None) -> int:
        return self._on_ray.batch(people)

    def begin(self, people: list[list[Row]], size: int, stages: list[Stage]) -> None:
        self._blocks = self._on_ray.blocks(people, size, stages)

    def next(self) -> list[Row] | None:
        return next(self._blocks, None)


Place = Here | OnRay | OverClient

_WHOLE_BLOCKS: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}


class _RayWorker:
    def __init__(self, stage: Stage, one_thread: bool) -> None:
        if one_thread:
            torch.set_num_threads(1)
        self._function, self._columns = stage.make(*stage.arguments), stage.columns

    def __call__(self, people: Any) -> Any:
        return table(self._function(people.to_pylist()), self._columns)


def _in_ray_task(stage: Stage, people: Any) -> Any:
    torch.set_num_threads(1)
    if find_spec("cv2") is not None:
        import_module("cv2").setNumThreads(1)
    return table(stage.make(*stage.arguments)(people.to_pylist()), stage.columns)


@contextmanager
def place(concurrency: int | None, num_gpus: float | None, address: str | None, needs_ray: bool) -> Iterator[Place]:
    """Where to run: on Ray if it is there, unless it is not wanted."""
    wanted = bool(concurrency) or address is not None or needs_ray
    if concurrency == 0 and (address is not None or needs_ray):
        raise ValueError("concurrency must be 1 or more with an address or a Ray Dataset, got 0, which is without Ray")
    if concurrency != 0 and not wanted and find_spec("ray") is None:
        log.warning(
            "one process does all the work; for all cores, GPUs and other machines: pip install 'fastcloak[ray]'"
        )
        concurrency = 0
    if concurrency == 0:
        yield Here()
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray tells its makers how it is used
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else it warns of how Ray Data starts its actors
    ray = packages.require("ray", extra="ray")
    packages.require("ray.data", extra="ray")
    if ray.is_initialized():
        yield _on(ray, concurrency, num_gpus)
        return
    dashboard = {} if address else {"include_dashboard": False}
    with ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **dashboard):
        yield _on(ray, concurrency, num_gpus)


def _on(ray: Any, concurrency: int | None, num_gpus: float | None) -> Place:
    over_client = ray.util.client.ray.is_connected()
    return OverClient(concurrency, num_gpus) if over_client else OnRay(concurrency, num_gpus)


def table(rows: list[Row], columns: dict[str, str]) -> Any:
    """A pyarrow Table of rows, with columns name -> "string", "int64", "double", "binary" or "list<string>"."""
    pyarrow = import_module("pyarrow")
    kinds = {"list<string>": pyarrow.list_(pyarrow.string()), "binary": pyarrow.large_binary()}
    schema = [(name, kinds.get(kind) or pyarrow.type_for_alias(kind)) for name, kind in columns.items()]
    return pyarrow.Table.from_pylist(rows, schema=pyarrow.schema(schema))
