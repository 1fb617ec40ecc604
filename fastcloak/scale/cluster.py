"""Runners of a job's stages: one after the other in this process, or at the same time on a Ray cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

import torch

from fastcloak.models import Surrogate
from fastcloak.scale.rows import PEOPLE, Columns, Row, table
from fastcloak.system import packages
from fastcloak.system.checks import whole

__all__ = ["LocalRunner", "RayRunner", "Stage", "check_resources", "start_runner"]

log = logging.getLogger("fastcloak")

PEOPLE_PER_BATCH, PEOPLE_PER_GPU_BATCH = 16, 64
FIT_SHARE, READ_SHARE = 0.75, 0.25
"""CPUs that a fitting worker and a reading task ask Ray for where fitting runs on CPUs. With whole ones, workers on
every CPU would keep reading from running, and the job would never end. With GPUs both ask for a whole CPU."""


class Stage(Protocol):
    """A step of a job: rows to rows with `columns`. If it fits it runs on workers that stay, else in tasks."""

    columns: Columns
    fits: bool

    def __call__(self, rows: list[Row], /) -> list[Row]:
        """The rows of a batch of people."""


class LocalRunner:
    """Runs the stages one after the other in this process."""

    def batch_size(self, people: int | None) -> int:
        """People that are fitted at once."""
        return PEOPLE_PER_BATCH

    def share(self, model: Surrogate) -> Callable[[], Surrogate]:
        """A function by which a stage gets the model."""
        return lambda: model

    def run(self, batches: Iterable[list[Row]], stages: Sequence[Stage]) -> Generator[Row]:
        """The rows of the last stage."""
        for rows in batches:
            for stage in stages:
                rows = [{name: row.get(name) for name in stage.columns} for row in stage(rows)]
            yield from rows


class RayRunner:
    """Runs the stages at the same time on a Ray cluster with this many CPUs and GPUs."""

    def __init__(self, cpus: float, gpus: float, concurrency: int | None, num_gpus: float | None) -> None:
        self._cpus, self._gpus, self._concurrency = cpus, gpus, concurrency
        self._per_worker = float(gpus > 0) if num_gpus is None else num_gpus
        self._room = int(gpus / self._per_worker if self._per_worker else cpus)

    def batch_size(self, people: int | None) -> int:
        """People that a worker gets at once; fewer than usual where some workers would get none of this many."""
        most = PEOPLE_PER_GPU_BATCH if self._per_worker else PEOPLE_PER_BATCH
        return most if people is None else max(1, min(most, people // (self._concurrency or self._room or 1)))

    def share(self, model: Surrogate) -> Callable[[], Surrogate]:
        """A function by which a stage gets the model; each machine is sent it once."""
        ray = import_module("ray")
        return partial(ray.get, ray.put(model))

    def run(self, batches: Any, stages: Sequence[Stage]) -> Generator[Row]:
        """The rows of the last stage, as they are ready; batches may be a Ray Dataset with a block for each."""
        data = import_module("ray.data")
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        fits_on_cpus = any(stage.fits for stage in stages) and not self._per_worker
        read_share, fit_share = (READ_SHARE, FIT_SHARE) if fits_on_cpus else (1.0, 1.0)
        workers = self._concurrency or max(1, self._room)
        if isinstance(batches, data.Dataset):
            dataset, reading = batches, 1.0  # what reads a Dataset asks for a whole CPU
            workers = self._concurrency or max(1, self._room - fits_on_cpus)
        else:
            blocks = [table(batch, PEOPLE) for batch in batches]
            dataset, reading, workers = data.from_arrow(blocks), read_share, min(workers, len(blocks))
        # GPUs are fed by as many tasks as there is room for; Ray holds them back when rows pile up.
        tasks = workers if fits_on_cpus else None if self._per_worker else self._concurrency
        for stage in stages:
            function: Any = partial(_ray_task, stage)
            resources: dict[str, Any] = {"compute": data.TaskPoolStrategy(size=tasks), "num_cpus": read_share}
            if stage.fits:
                self.warn_if_short(workers, workers * fit_share + reading)
                function = _RayWorker
                resources = {
                    "fn_constructor_args": (stage, fits_on_cpus),
                    "compute": data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
                    "num_cpus": fit_share,
                    "num_gpus": self._per_worker or None,
                }
            dataset = dataset.map_batches(
                function, batch_size=None, batch_format="pyarrow", zero_copy_batch=True, **resources
            )
        dataset.context.enable_progress_bars = False
        dataset.context.execution_no_progress_timeout_s = -1  # a batch may take hours
        results = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
        # Closed here and not by the garbage collector, when Ray may be gone.
        with closing(results):
            for result in results:
                yield from result.to_pylist()

    def warn_if_short(self, workers: int, cpus: float) -> None:
        """Log a warning if the cluster has no room for all workers and the CPUs that they and a reader ask for."""
        if cpus > self._cpus or (self._per_worker and workers > self._room):
            log.warning(
                f"{workers} workers and the reading of photos want more than the {self._cpus:g} CPUs and "
                f"{self._gpus:g} GPUs of Ray: they wait for more, perhaps without end; take a smaller concurrency"
            )


class _RayWorker:
    def __init__(self, stage: Stage, one_thread: bool) -> None:
        if one_thread:
            torch.set_num_threads(1)
        self._stage = stage

    def __call__(self, rows: Any) -> Any:
        return table(self._stage(rows.to_pylist()), self._stage.columns)


def _ray_task(stage: Stage, rows: Any) -> Any:
    torch.set_num_threads(1)
    if find_spec("cv2") is not None:
        import_module("cv2").setNumThreads(1)
    return table(stage(rows.to_pylist()), stage.columns)


def check_resources(concurrency: Any, num_gpus: Any, people_per_batch: Any, address: str | None) -> None:
    """Raise ValueError for numbers of another kind and for an address of Ray Client."""
    numbers = {"concurrency": (concurrency, 0, None), "people_per_batch": (people_per_batch, 1, "auto")}
    for name, (number, least, default) in numbers.items():
        if number != default:
            whole(name, number, least, other=f" or {default!r}")
    real = isinstance(num_gpus, (int, float)) and not isinstance(num_gpus, bool)
    if num_gpus is not None and not (real and 0 <= num_gpus <= 64):
        raise ValueError(f"num_gpus must be a number of GPUs per worker, 0 to 64, or None, got {num_gpus!r}")
    if "://" in (address or ""):
        raise _outside(address)


def _outside(address: str | None) -> ValueError:
    # Ray Data does not work over Ray Client (tried with Ray 2.60).
    return ValueError(
        f"address must be 'auto' or HOST:PORT of a Ray cluster that this machine is part of, got {address}; to start a "
        "job from outside, use: ray job submit --address http://HOST:8265 -- fastcloak fit-many ..."
    )


@contextmanager
def start_runner(
    concurrency: int | None, num_gpus: float | None, address: str | None, *, needs_ray: bool
) -> Iterator[LocalRunner | RayRunner]:
    """A runner on Ray if that is installed and wanted, else in this process. A Ray that it starts ends with it."""
    wants_ray = bool(concurrency) or address is not None or needs_ray
    if concurrency == 0 and wants_ray:
        raise ValueError("concurrency must be 1 or more with an address or a Ray Dataset, got 0, which is without Ray")
    if concurrency != 0 and not wants_ray and find_spec("ray") is None:
        log.warning("one process does all the work; to use all cores, GPUs and machines: pip install 'fastcloak[ray]'")
        concurrency = 0
    if concurrency == 0:
        yield LocalRunner()
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray reports to its makers how it is used
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else it warns of how Ray Data starts its actors
    ray = packages.require("ray", extra="ray")
    packages.require("ray.data", extra="ray")
    with ExitStack() as stack:
        if not ray.is_initialized():
            preset = os.environ.get("RAY_ADDRESS", "") if address in (None, "auto") else ""
            if "://" in preset:
                raise _outside(f"RAY_ADDRESS={preset}")
            dashboard = {} if address else {"include_dashboard": False}
            stack.enter_context(ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **dashboard))
        elif ray.util.client.ray.is_connected():
            raise _outside("a connection of Ray Client")
        found = ray.cluster_resources()
        yield RayRunner(found.get("CPU", 0.0), found.get("GPU", 0.0), concurrency, num_gpus)
