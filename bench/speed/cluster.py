"""What Ray costs: `fit_dataset` against `fit_many` in as many processes, and memory against people done.

    python -m bench.speed.cluster overhead -o bench/results/scale_cpu.csv   needs extras demo and ray: SFace
    python -m bench.speed.cluster memory -o bench/results/scale_memory.csv   10,000 people, none
    python -m bench.speed.figures    draws both: bench/results/scale_cpu.png, .svg

`overhead`: ten pictures of 112 px a person, on SFace; equally many people for every worker, one thread each, all at the
niceness of Ray's workers. Only steady work counts: for `fit_many` all people after a first one, with reading photos;
for `fit_dataset` what arrives after as many batches as there are workers, until the last one arrives.

    seconds_per_person       elapsed * workers / people: what a worker spends on a person, idle or not
    overhead                 seconds_per_person over that of `fit_many` with as many processes in this run, minus 1
    overhead_without_reading the same with `fit_many`'s time for reading left out: workers are given what was read
    overhead_cpu             the same of processor time of all processes, Ray's own too, reading left out as well
    overhead_own_clock       seconds_per_person over fit_seconds_per_person, minus 1. The latter is the index's
                             `seconds`: the steps of a fit, without reading and without features of the clean photos

    others                   share of the cores' time that programs of others took meanwhile: near 0, or the row's times
                             are theirs too, and only `overhead_cpu` says something

More workers than cores can be no faster; what they add to `overhead` is then shared by `fit_many`.

`memory`: a head and two nodes on this machine; at 30 % of the people a worker is killed, at 60 % a node. In the end
each cloak is loaded and held against that of `fit_many` in this process. Proportional set size without shared memory
of the driver, of Ray's processes that run Python ("workers"; of these those that fit), and of Ray's others; the object
store by what is in it. Slopes are of the rows after the first fifth of the people.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from bench.harness import nets
from bench.harness.command import command
from bench.harness.machine import ROOT
from bench.harness.rows import Rows, read
from bench.speed.figures import slope
from fastcloak import load, load_model
from fastcloak.fitting.fitter import Fitter
from fastcloak.photos.inputs import load_faces, photo_files
from fastcloak.scale.jobs import fit_dataset
from fastcloak.scale.people import read_people
from fastcloak.system.files import cloak_file

CPUS = 4  # that Ray is given; workers ask for 0.75
WORKERS = (1, 2, 4)
PHOTOS, SMALL_PHOTOS = 10, 4
PICTURES = 64
INNER_STEPS = 4
SMALL: dict[str, Any] = {"preset": "plain", "steps": 4, "inner_steps": 2, "dtype": "float32"}
# 15 is what Ray gives its workers by default; the variable is Ray's.
NICENESS = int(os.environ.get("RAY_worker_niceness", "15"))  # noqa: SIM112
SAMPLE_SECONDS = 2.0
CLOCK = os.sysconf("SC_CLK_TCK")
HELP = {"people": "for each worker, or in all", "batch": "people per batch", "steps": f"of {INNER_STEPS} inner steps"}
HELP |= {"rounds": "measurements of everything, in turns", "workers": "on the cluster"}
SIZES = ("driver_mb", "workers_mb", "fitting_mb", "ray_mb", "object_store_mb")


class SmallNet(nn.Module):
    """[n, 3, 112, 112] in [0, 1] -> [n, 16] in under a millisecond, random weights: what is left is not the network."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 7, stride=4, padding=3),
            nn.PReLU(8),
            nn.Conv2d(8, 16, 5, stride=4, padding=2),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(16 * 49, 16),
        )
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        embeddings: Tensor = self.body(x * 2 - 1)
        return embeddings


@dataclass(frozen=True)
class Process:
    """A process: id, name (15 letters), when it began, and seconds of processor time until now."""

    pid: int
    name: str
    began: int
    cpu: float


def processes() -> list[Process]:
    found: dict[int, tuple[int, Process]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            head, _, tail = (folder / "stat").read_text().rpartition(") ")
        except OSError:  # it has ended
            continue
        fields = tail.split()
        name, pid = head.partition("(")[2], int(folder.name)
        found[pid] = int(fields[1]), Process(pid, name, int(fields[19]), (int(fields[11]) + int(fields[12])) / CLOCK)
    below = {os.getpid()}
    while more := {pid for pid, (parent, _) in found.items() if parent in below and pid not in below}:
        below |= more
    return [found[pid][1] for pid in below]


def busy() -> float:
    """Seconds that the cores were busy with anything, or taken away by another machine, since this one was started."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    user, nice, system, _, _, interrupts, soft, steal = map(int, fields[1:9])
    return (user + nice + system + interrupts + soft + steal) / CLOCK


def memory_of(pid: int) -> int:
    """Bytes, shared pages divided among those who share them, without shared memory, where the object store is."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    sizes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines[1:]) if rest}
    return 1024 * (sizes.get("Pss", 0) - sizes.get("Pss_Shmem", 0))


@contextmanager
def cluster(nodes: int = 0) -> Iterator[tuple[Any, Any, list[Any]]]:
    """A Ray of our own on this machine, whose workers find `bench`; gone at the end, whatever happens.

    Yields Ray, its cluster and its nodes besides the head; without them the head works itself, and is no cluster.
    """
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/"}
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray, made, added = import_module("ray"), None, []
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if nodes:
            head = {"num_cpus": 1, "include_dashboard": False}
            made = import_module("ray.cluster_utils").Cluster(initialize_head=True, head_node_args=head)
            added = [made.add_node(num_cpus=2) for _ in range(nodes)]
            ray.init(made.address, **quiet)
        else:  # "local": never someone else's cluster that runs on this machine
            ray.init("local", num_cpus=CPUS, include_dashboard=False, **quiet)
        yield ray, made, added
    finally:
        ray.shutdown()
        if made is not None:
            made.shutdown()


def save_pictures(pictures: Tensor, folder: Path) -> list[Path]:
    folder.mkdir(parents=True)
    files = [folder / f"{i}.png" for i in range(len(pictures))]
    for file, picture in zip(files, (pictures * 255).round().byte().permute(0, 2, 3, 1).numpy(), strict=True):
        Image.fromarray(picture).save(file, compress_level=1)
    return files


@dataclass
class Arrivals:
    """A `progress` function that keeps when each batch came, and what our processes and all had computed by then."""

    size: int
    began: float = field(default_factory=time.perf_counter)
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    people: list[int] = field(default_factory=list)
    fit_seconds: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    _batch: int = -1
    _each: dict[tuple[int, int], float] = field(default_factory=dict)  # also of those that have ended

    def __call__(self, row: dict[str, Any], total: int | None) -> None:
        """Called with each person's row of the index; people are named by their place in the source."""
        if row["status"] != "fitted":
            raise RuntimeError(f"everyone must be fitted, got {row}")
        batch = int(row["person"]) // self.size
        if batch != self._batch:
            self._batch = batch
            self.seconds.append(time.perf_counter() - self.began)
            self._each |= {(process.pid, process.began): process.cpu for process in processes()}
            self.cpu.append(sum(self._each.values()))
            self.busy.append(busy())
            self.people.append(0)
            self.fit_seconds.append(0.0)
        self.people[-1] += 1
        self.fit_seconds[-1] += row["seconds"]

    def steady(self, workers: int) -> dict[str, float]:
        people = sum(self.people[workers:])
        if not people:
            raise ValueError(f"a worker must get two batches or more, got {len(self.people)} for {workers} workers")
        elapsed, cpu, anything = (clock[-1] - clock[workers - 1] for clock in (self.seconds, self.cpu, self.busy))
        row = {"steady_people_per_hour": 3600 * people / elapsed, "seconds_per_person": elapsed * workers / people}
        row["fit_seconds_per_person"] = sum(self.fit_seconds[workers:]) / people
        others = (anything - cpu) / (elapsed * len(os.sched_getaffinity(0)))
        return row | {"cpu_seconds_per_person": cpu / people, "others": others}


def alone(folders: list[Path], steps: int, ready: Any) -> dict[str, float]:
    """In a process of its own: what fit_many of these people takes, once all are ready."""
    os.nice(NICENESS - os.nice(0))
    torch.set_num_threads(1)
    fitter = Fitter(load_model("sface"), preset="plain", steps=steps, inner_steps=INNER_STEPS)
    fitter.fit_many({"": load_faces(photo_files(folders[0]))}, progress=False)
    ready.wait()
    began, cpu = time.perf_counter(), time.process_time()
    faces = {folder.name: load_faces(photo_files(folder)) for folder in folders}
    read_seconds, read_cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    cloaks = fitter.fit_many(faces, progress=False)
    measured = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    measured |= {"read_seconds": read_seconds, "read_cpu_seconds": read_cpu_seconds}
    return measured | {"fit_seconds": sum(cloak.info["seconds"] for cloak in cloaks.values())}


def many(folders: list[Path], workers: int, steps: int) -> dict[str, Any]:
    """`fit_many` in several processes that begin together."""
    share, spawning = len(folders) // workers, multiprocessing.get_context("spawn")
    with spawning.Manager() as manager, ProcessPoolExecutor(workers, spawning) as pool:
        ready = manager.Barrier(workers + 1)
        parts = [folders[i * share : (i + 1) * share] for i in range(workers)]
        running = [pool.submit(alone, part, steps, ready) for part in parts]
        ready.wait(600)  # for ever would be too long where one of them failed
        began, busy_before = time.perf_counter(), busy()
        measured = [one.result() for one in running]
        wall, anything = time.perf_counter() - began, busy() - busy_before
    mean = {key: sum(one[key] for one in measured) / len(folders) for key in measured[0]}
    others = anything - sum(one["cpu_seconds"] for one in measured)
    row = {"how": "fit_many", "wall_seconds": wall}
    row["steady_people_per_hour"] = sum(3600 * share / one["seconds"] for one in measured)
    row |= {f"{key}_per_person": value for key, value in mean.items()}
    row["fit_seconds"] = mean["fit_seconds"] * len(folders)
    return row | {"others": others / (wall * len(os.sched_getaffinity(0)))}


def on_ray(source: Path, out: Path, workers: int, batch: int, steps: int) -> dict[str, Any]:
    model = load_model("sface")
    began = time.perf_counter()
    with cluster():
        ready = time.perf_counter() - began
        arrivals = Arrivals(batch)
        ways: dict[str, Any] = {"concurrency": workers, "people_per_batch": batch, "progress": arrivals}
        options: dict[str, Any] = {"preset": "plain", "steps": steps, "inner_steps": INNER_STEPS}
        summary = fit_dataset(source, model, out, **ways, **options)
    assert summary.fitted == sum(arrivals.people) == len(list(out.glob("*.safetensors")))
    row = {"how": "fit_dataset", "cluster_seconds": ready, "wall_seconds": summary.seconds}
    row |= {"first_seconds": arrivals.seconds[0], "fit_seconds": sum(arrivals.fit_seconds)}
    return row | arrivals.steady(workers)


def with_overhead(ours: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    reading, cpu = base["read_seconds_per_person"], base["read_cpu_seconds_per_person"]
    if ours is base:
        reading = cpu = 0.0
    seconds, usual = ours["seconds_per_person"], base["seconds_per_person"]
    row = {**ours, "overhead": seconds / usual - 1, "overhead_without_reading": seconds / (usual - reading) - 1}
    row["overhead_cpu"] = ours["cpu_seconds_per_person"] / (base["cpu_seconds_per_person"] - cpu) - 1
    return row | {"overhead_own_clock": seconds / ours["fit_seconds_per_person"] - 1}


def overhead(output: Path, people: int, batch: int, steps: int, rounds: int) -> None:
    """Rows of `fit_many` and `fit_dataset` in turns, with 1, 2 and 4 workers."""
    rows = Rows(output)
    with tempfile.TemporaryDirectory(prefix="fastcloak-scale-") as temporary:
        folder = Path(temporary)
        everyone = [folder / str(max(WORKERS)) / f"{i:04d}" for i in range(max(WORKERS) * people)]
        for i, person in enumerate(everyone):
            save_pictures(nets.faces(PHOTOS, seed=i), person)
        for workers in WORKERS[:-1]:
            (folder / str(workers)).mkdir()
            for person in everyone[: workers * people]:
                (folder / str(workers) / person.name).symlink_to(person)
        for turn in range(rounds):
            for workers in WORKERS:
                base = many(everyone[: workers * people], workers, steps)
                ours = on_ray(folder / str(workers), folder / f"out-{turn}-{workers}", workers, batch, steps)
                row = {"round": turn, "workers": workers, "people": workers * people, "people_per_batch": batch}
                # The threads are a worker's, not those of this process.
                row |= {"steps": steps, "inner_steps": INNER_STEPS, "photos": PHOTOS, "threads": 1}
                for measured in (with_overhead(base, base), with_overhead(ours, base)):
                    rows.add({**row, **measured})
                    print(measured, flush=True)


def memory(output: Path, people: int, batch: int, workers: int) -> None:
    """Rows of memory against people done, while a worker and a node are lost; then every cloak against `fit_many`."""
    rows = Rows(output)
    with tempfile.TemporaryDirectory(prefix="fastcloak-scale-") as temporary, cluster(nodes=2) as (ray, made, nodes):
        folder = Path(temporary)
        files = [file.name for file in save_pictures(nets.faces(PICTURES), folder / "pictures")]
        source, out = folder / "pictures" / "people.jsonl", folder / "out"
        with open(source, "w") as manifest:
            for i in range(people):
                photos = [files[(i + 7 * j) % PICTURES] for j in range(SMALL_PHOTOS)]
                manifest.write(json.dumps({"person": f"{i:06d}", "photos": photos}) + "\n")
        began, done, next_sample, event = time.perf_counter(), 0, 0.0, ""

        def watch(person: dict[str, Any], total: int | None) -> None:
            nonlocal done, next_sample, event
            done += 1
            if done == people * 3 // 10:
                fitting = [process.pid for process in processes() if process.name.startswith("ray::MapWorker")]
                os.kill(fitting[0], signal.SIGKILL)
                event = "worker killed"
            if done == people * 6 // 10:
                made.remove_node(nodes[0], allow_graceful=False)
                event = "node killed"
            seconds = time.perf_counter() - began
            if seconds >= next_sample or event:
                next_sample = seconds + SAMPLE_SECONDS
                rows.add({"seconds": seconds, "people": done, "event": event, "batch": batch, **_memory(ray)})
                event = ""

        # Workers import the network; one of a module that was run as a program would be sent to them.
        net = import_module("bench.speed.cluster").SmallNet()
        summary = fit_dataset(source, net, out, concurrency=workers, people_per_batch=batch, progress=watch, **SMALL)
        print(f"{summary}, {summary.people_per_hour:.0f} people per hour")
        last = {"seconds": time.perf_counter() - began, "people": done, "batch": batch, **_memory(ray)}
        torch.set_num_threads(1)
        differing = compare(source, out, net)
        if not len(differing) == len(list(out.glob("*.safetensors"))) == people:
            raise RuntimeError(f"everyone must have a cloak, got {len(differing)}")
        index = import_module("pyarrow.parquet").read_table(out / "index").to_pylist()
        if len(index) != len({row["person"] for row in index}) or any(row["error"] for row in index):
            raise RuntimeError("the index must have a row for everyone, once")
    last |= {"cloaks": len(differing), "rows_of_index": len(index), "pixels_that_differ": max(differing)}
    rows.add({**last, "cloaks_that_differ": sum(share > 0 for share in differing)})
    print(f"{len(differing)} cloaks loaded; {sum(map(bool, differing))} differ from fit_many's, one thread")
    written = read(output)
    for column in SIZES:
        largest = max(float(row[column]) for row in written)
        print(f"{column}: {slope(written, column):+.0f} bytes per person, largest {largest:.1f}")


def compare(source: Path, out: Path, net: nn.Module) -> list[float]:
    """Of each person's cloak the share of pixels that differ from what `fit_many` learns in this process."""
    fitter = Fitter(net, **SMALL)
    differing = []
    for name, photos in read_people(source):
        cloak = load(out / cloak_file(name))
        expected = fitter.fit_many({name: photos}, progress=False)[name]
        differing.append((cloak.delta != expected.delta).float().mean().item())
    return differing


def _memory(ray: Any) -> dict[str, Any]:
    sizes, workers = dict.fromkeys(SIZES, 0.0), 0
    for process in processes():
        size = memory_of(process.pid) / 2**20
        if process.pid == os.getpid():
            sizes["driver_mb"] += size
        elif process.name.startswith("ray::"):
            workers += size > 0
            sizes["workers_mb"] += size
            sizes["fitting_mb"] += size * process.name.startswith("ray::MapWorker")
        else:
            sizes["ray_mb"] += size
    key = "object_store_memory"
    sizes["object_store_mb"] = (ray.cluster_resources()[key] - ray.available_resources().get(key, 0)) / 2**20
    return {**sizes, "workers": workers}


def main() -> None:
    parser = command(__doc__)
    modes = parser.add_subparsers(dest="mode", required=True)
    for mode, options in (
        ("overhead", {"people": 48, "batch": 16, "steps": 3, "rounds": 1}),
        ("memory", {"people": 10_000, "batch": 16, "workers": 2}),
    ):
        one = modes.add_parser(mode, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        one.add_argument("-o", "--output", type=Path, required=True)
        for name, value in options.items():
            one.add_argument(f"--{name}", type=int, default=value, help=HELP[name])
    given = vars(parser.parse_args())
    (overhead if given.pop("mode") == "overhead" else memory)(**given)


if __name__ == "__main__":
    main()
