"""What Ray costs: `fit_dataset` against `fit_many` in as many processes, and memory against people done.

    python -m bench.speed.cluster overhead -o bench/results/scale_cpu.csv   needs extras demo and ray: SFace
    python -m bench.speed.cluster memory -o bench/results/scale_memory.csv   10,000 people, none
    python -m bench.speed.cluster plot    draws both: bench/results/scale_cpu.png, .svg

`overhead`: ten pictures of 112 px a person, on SFace; the same number of people for every worker, one thread each, all
at the niceness of Ray's workers. Only steady work counts: for `fit_many` all people after a first one, photos being
read included; for `fit_dataset` what arrives after as many batches as there are workers, until the last one arrives.

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
import csv
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from bench.harness import nets
from bench.harness.machine import row_context
from bench.harness.rows import BLUE, GREY, read, where
from fastcloak import load, load_model
from fastcloak.fitting.fitter import Fitter
from fastcloak.photos.inputs import load_faces, photo_files
from fastcloak.scale.jobs import fit_dataset
from fastcloak.scale.people import read_people
from fastcloak.system.files import cloak_file

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
CPUS = 4  # that Ray is told of; workers ask for 0.75
WORKERS = (1, 2, 4)
PHOTOS, SMALL_PHOTOS = 10, 4
PICTURES = 64
INNER_STEPS = 4
SMALL: dict[str, Any] = {"preset": "plain", "steps": 4, "inner_steps": 2}
# 15 is what Ray gives its workers if not told otherwise; the variable is Ray's.
NICENESS = int(os.environ.get("RAY_worker_niceness", "15"))  # noqa: SIM112
SAMPLE_SECONDS = 2.0
SETTLED = 0.2
CLOCK = os.sysconf("SC_CLK_TCK")


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
        """Raw embeddings."""
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
    """This process and all below it."""
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
def cluster() -> Iterator[Any]:
    """A Ray of our own on this machine, whose workers find `bench`; gone at the end, whatever happens."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray = import_module("ray")
    # "local": never someone else's cluster that runs on this machine.
    ray.init("local", num_cpus=CPUS, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield ray
    finally:
        ray.shutdown()


def save_pictures(pictures: Tensor, folder: Path) -> list[Path]:
    """Pictures [n, 3, 112, 112] in [0, 1] as PNG files."""
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
        """From the arrival of as many batches as there are workers, so that all have begun, to that of the last."""
        people = sum(self.people[workers:])
        if not people:
            raise ValueError(f"a worker must get two batches or more, got {len(self.people)} for {workers} workers")
        elapsed, cpu, anything = (clock[-1] - clock[workers - 1] for clock in (self.seconds, self.cpu, self.busy))
        return {
            "steady_people_per_hour": 3600 * people / elapsed,
            "seconds_per_person": elapsed * workers / people,
            "fit_seconds_per_person": sum(self.fit_seconds[workers:]) / people,
            "cpu_seconds_per_person": cpu / people,
            "others": (anything - cpu) / (elapsed * len(os.sched_getaffinity(0))),
        }


def alone(folders: Sequence[str], steps: int) -> None:
    """In a process of its own: fit_many of these people, when standard input says so; prints what it took."""
    os.nice(NICENESS - os.nice(0))
    torch.set_num_threads(1)
    fitter = Fitter(load_model("sface"), preset="plain", steps=steps, inner_steps=INNER_STEPS)
    fitter.fit_many({"": load_faces(photo_files([folders[0]]))}, progress=False)
    print("ready", flush=True)
    sys.stdin.readline()
    began, cpu = time.perf_counter(), time.process_time()
    faces = {folder: load_faces(photo_files([folder])) for folder in folders}
    after, cpu_after = time.perf_counter(), time.process_time()
    cloaks = fitter.fit_many(faces, progress=False)
    measured = {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "read_seconds": after - began,
        "read_cpu_seconds": cpu_after - cpu,
        "fit_seconds": sum(cloak.info["seconds"] for cloak in cloaks.values()),
    }
    print(json.dumps(measured), flush=True)


def many(folders: list[Path], workers: int, steps: int) -> dict[str, Any]:
    """`fit_many` in several processes that begin together."""
    share = len(folders) // workers
    command = [sys.executable, "-m", "bench.speed.cluster", "alone", "--steps", str(steps)]
    running = [
        subprocess.Popen(
            [*command, *map(str, folders[i * share : (i + 1) * share])],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(workers)
    ]
    try:
        for process in running:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise RuntimeError("a process with fit_many failed; its words are above")
        began, busy_before = time.perf_counter(), busy()
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        measured = [json.loads(process.communicate()[0]) for process in running]
        wall, anything = time.perf_counter() - began, busy() - busy_before
    finally:
        for process in running:
            process.kill()
            process.wait()
    mean = {key: sum(one[key] for one in measured) / len(folders) for key in measured[0]}
    return {
        "how": "fit_many",
        "wall_seconds": wall,
        "steady_people_per_hour": sum(3600 * share / one["seconds"] for one in measured),
        "seconds_per_person": mean["seconds"],
        "fit_seconds_per_person": mean["fit_seconds"],
        "fit_seconds": mean["fit_seconds"] * len(folders),
        "cpu_seconds_per_person": mean["cpu_seconds"],
        "read_seconds_per_person": mean["read_seconds"],
        "read_cpu_seconds_per_person": mean["read_cpu_seconds"],
        "others": (anything - sum(one["cpu_seconds"] for one in measured)) / (wall * len(os.sched_getaffinity(0))),
    }


def on_ray(source: Path, out: Path, workers: int, batch: int, steps: int) -> dict[str, Any]:
    """`fit_dataset` on a cluster that was begun for it."""
    model = load_model("sface")
    began = time.perf_counter()
    with cluster():
        ready = time.perf_counter() - began
        arrivals = Arrivals(batch)
        summary = fit_dataset(
            source,
            model,
            out,
            concurrency=workers,
            people_per_batch=batch,
            progress=arrivals,
            preset="plain",
            steps=steps,
            inner_steps=INNER_STEPS,
        )
    assert summary.fitted == sum(arrivals.people) == len(list(out.glob("*.safetensors")))
    return {
        "how": "fit_dataset",
        "cluster_seconds": ready,
        "wall_seconds": summary.seconds,
        "first_seconds": arrivals.seconds[0],
        "fit_seconds": sum(arrivals.fit_seconds),
        **arrivals.steady(workers),
    }


def with_overhead(ours: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """A row with what it took more than `fit_many`, as shares."""
    reading, cpu = base["read_seconds_per_person"], base["read_cpu_seconds_per_person"]
    if ours is base:
        reading = cpu = 0.0
    return {
        **ours,
        "overhead": ours["seconds_per_person"] / base["seconds_per_person"] - 1,
        "overhead_without_reading": ours["seconds_per_person"] / (base["seconds_per_person"] - reading) - 1,
        "overhead_cpu": ours["cpu_seconds_per_person"] / (base["cpu_seconds_per_person"] - cpu) - 1,
        "overhead_own_clock": ours["seconds_per_person"] / ours["fit_seconds_per_person"] - 1,
    }


def overhead(output: Path, people: int, batch: int, steps: int, rounds: int) -> None:
    """Rows of `fit_many` and `fit_dataset` in turns, with 1, 2 and 4 workers."""
    columns = ["round", "how", "workers", "people", "people_per_batch", "steps", "inner_steps", "photos"]
    columns += ["cluster_seconds", "wall_seconds", "first_seconds", "steady_people_per_hour", "seconds_per_person"]
    columns += ["fit_seconds_per_person", "cpu_seconds_per_person", "read_seconds_per_person"]
    columns += ["read_cpu_seconds_per_person", "fit_seconds", "overhead", "overhead_without_reading", "overhead_cpu"]
    columns += ["overhead_own_clock", "others", *row_context()]
    rows = []
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
                for measured in (with_overhead(base, base), with_overhead(ours, base)):
                    row = {"round": turn, "workers": workers, "people": workers * people, "people_per_batch": batch}
                    row |= {"steps": steps, "inner_steps": INNER_STEPS, "photos": PHOTOS, **measured, **row_context()}
                    # A worker's, not those of this process.
                    rows.append({**row, "threads": 1})
                    print(_rounded(measured), flush=True)
                _write(output, columns, rows)


def memory(output: Path, people: int, batch: int, workers: int) -> None:
    """Rows of memory against people done, while a worker and a node are lost; then every cloak against `fit_many`."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="fastcloak-scale-") as temporary, nodes() as (ray, made, lost):
        folder = Path(temporary)
        files = [file.name for file in save_pictures(nets.faces(PICTURES), folder / "pictures")]
        source, out = folder / "pictures" / "people.jsonl", folder / "out"
        with open(source, "w") as manifest:
            for i in range(people):
                photos = [files[(i + 7 * j) % PICTURES] for j in range(SMALL_PHOTOS)]
                manifest.write(json.dumps({"person": f"{i:06d}", "photos": photos}) + "\n")
        began, done, next_sample, events = time.perf_counter(), 0, 0.0, ""
        context = row_context()

        def watch(person: dict[str, Any], total: int | None) -> None:
            nonlocal done, next_sample, events
            done += 1
            if done == people * 3 // 10:
                fitting = [process.pid for process in processes() if process.name.startswith("ray::MapWorker")]
                os.kill(fitting[0], signal.SIGKILL)
                events = "worker killed"
            if done == people * 6 // 10:
                made.remove_node(lost, allow_graceful=False)
                events = "node killed"
            seconds = time.perf_counter() - began
            if seconds < next_sample and done < people and not events:
                return
            next_sample = seconds + SAMPLE_SECONDS
            rows.append(
                {"seconds": seconds, "people": done, "event": events, "batch": batch, **_memory(ray), **context}
            )
            events = ""

        # Workers import the network; one of a module that was run as a program would be sent to them.
        net = import_module("bench.speed.cluster").SmallNet()
        options = {**SMALL, "dtype": "float32"}
        summary = fit_dataset(source, net, out, concurrency=workers, people_per_batch=batch, progress=watch, **options)
        print(f"{summary}, {summary.people_per_hour:.0f} people per hour")
        torch.set_num_threads(1)
        differing = compare(source, out, net, options)
        if not len(differing) == len(list(out.glob("*.safetensors"))) == people:
            raise RuntimeError(f"everyone must have a cloak, got {len(differing)}")
        index = import_module("pyarrow.parquet").read_table(out / "index").to_pylist()
        if len(index) != len({row["person"] for row in index}) or any(row["error"] for row in index):
            raise RuntimeError("the index must have a row for everyone, once")
    rows[-1]["cloaks"] = len(differing)
    rows[-1]["rows_of_index"] = len(index)
    rows[-1]["cloaks_that_differ"] = sum(share > 0 for share in differing)
    rows[-1]["pixels_that_differ"] = max(differing)
    columns = [*rows[0], "cloaks", "rows_of_index", "cloaks_that_differ", "pixels_that_differ"]
    _write(output, columns, rows)
    print(f"{len(differing)} cloaks loaded; {rows[-1]['cloaks_that_differ']} differ from fit_many's, one thread")
    for column in ("driver_mb", "workers_mb", "fitting_mb", "ray_mb", "object_store_mb"):
        print(f"{column}: {slope(rows, column):+.0f} bytes per person, largest {max(row[column] for row in rows):.1f}")


@contextmanager
def nodes() -> Iterator[tuple[Any, Any, Any]]:
    """A Ray cluster of a head and two nodes on this machine: ray, the cluster, and a node to lose."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/"}
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray, cluster_utils = import_module("ray"), import_module("ray.cluster_utils")
    head = {"num_cpus": 1, "include_dashboard": False}
    made = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    try:
        lost = [made.add_node(num_cpus=2), made.add_node(num_cpus=2)][0]
        ray.init(made.address, log_to_driver=False, logging_level=logging.ERROR)
        yield ray, made, lost
    finally:
        ray.shutdown()
        made.shutdown()


def compare(source: Path, out: Path, net: nn.Module, options: dict[str, Any]) -> list[float]:
    """Of each person's cloak the share of pixels that differ from what `fit_many` learns in this process."""
    fitter = Fitter(net, **options)
    differing = []
    for name, photos in read_people(source):
        cloak = load(out / cloak_file(name))
        expected = fitter.fit_many({name: photos}, progress=False)[name]
        differing.append((cloak.delta != expected.delta).float().mean().item())
    return differing


def _memory(ray: Any) -> dict[str, Any]:
    sizes = {"driver_mb": 0, "workers_mb": 0, "fitting_mb": 0, "ray_mb": 0}
    workers = 0
    for process in processes():
        size = memory_of(process.pid)
        if process.pid == os.getpid():
            sizes["driver_mb"] += size
        elif process.name.startswith("ray::"):
            workers += size > 0
            sizes["workers_mb"] += size
            sizes["fitting_mb"] += size * process.name.startswith("ray::MapWorker")
        else:
            sizes["ray_mb"] += size
    key = "object_store_memory"
    stored = ray.cluster_resources()[key] - ray.available_resources().get(key, 0)
    return {
        **{name: round(size / 2**20, 3) for name, size in sizes.items()},
        "object_store_mb": round(stored / 2**20, 3),
        "workers": workers,
    }


def slope(rows: Sequence[dict[str, Any]], column: str) -> float:
    """Bytes per person: least squares over the rows after the first fifth of the people."""
    last = float(rows[-1]["people"])
    points = [(float(row["people"]), float(row[column])) for row in rows if float(row["people"]) > SETTLED * last]
    if len(points) < 2:
        return float("nan")
    people, megabytes = np.array(points).T
    return float(np.polyfit(people, megabytes * 2**20, 1)[0])


def draw(rates: list[dict[str, str]], sizes: list[dict[str, str]]) -> Any:
    """People per hour against workers, and memory against people done."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for how, colour, style in (("fit_many", GREY, "s--"), ("fit_dataset", BLUE, "o-")):
        points = [(int(row["workers"]), float(row["steady_people_per_hour"])) for row in rates if row["how"] == how]
        workers = sorted({count for count, _ in points})
        middle = [float(np.median([rate for count, rate in points if count == w])) for w in workers]
        label = "fit_many, a process each" if how == "fit_many" else "fit_dataset on Ray"
        left.plot(workers, middle, style, color=colour, label=label)
        if how == "fit_many":
            cores = int(rates[0]["cores"])
            ideal = [middle[0] / workers[0] * min(count, cores) for count in workers]
            left.plot(workers, ideal, ":", color="black", linewidth=1, label=f"ideal on {cores} cores")
    left.set_ylim(bottom=0)
    left.set_xticks(workers, [str(count) for count in workers])
    left.set_xlabel("workers, one thread each")
    left.set_ylabel("people per hour")
    first = rates[0]
    gradients = int(first["steps"]) * int(first["inner_steps"])
    left.set_title(f"SFace, {first['photos']} photos, {gradients} image-gradients a person", fontsize=10)
    people = [int(row["people"]) for row in sizes]
    curves = (
        ("driver_mb", "driver", BLUE, "-"),
        ("workers_mb", "Ray's Python processes", "#c8553d", "-"),
        ("fitting_mb", "of these: fitting", "#c8553d", "--"),
        ("ray_mb", "Ray's others", GREY, "-"),
        ("object_store_mb", "object store", "black", ":"),
    )
    for column, label, colour, style in curves:
        y = [float(row[column]) for row in sizes]
        grown = f"{slope(sizes, column) / 1024:+.2f} KB a person"
        words = f"{label}: {f'{max(y):.0f} MB at most' if column == 'object_store_mb' else grown}"
        right.plot(people, y, style, color=colour, label=words)
    for row in sizes:
        if row["event"]:
            right.axvline(int(row["people"]), color=GREY, linewidth=0.8)
            right.text(int(row["people"]), 5, f" {row['event']}", fontsize=7, rotation=90, va="bottom", ha="right")
    right.set_ylim(bottom=0, top=1.45 * max(float(row["workers_mb"]) for row in sizes))
    right.set_xlabel("people done")
    right.set_ylabel("MB")
    right.set_title(f"memory, a network that costs nothing, batches of {sizes[0]['batch']}", fontsize=10)
    for panel in (left, right):
        panel.legend(fontsize=8, frameon=False)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(where(rates[0]), fontsize=7, color=GREY)
    return figure


def plot(overheads: Path, memories: Path) -> None:
    """Draws the rows of both, next to the first."""
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = "fastcloak"  # the same rows give the same file
    figure = draw(read(overheads), read(memories))
    figure.savefig(overheads.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(overheads.with_suffix(".png"), dpi=110)


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {key: f"{value:.5g}" if isinstance(value, float) else value for key, value in row.items()}


def _write(output: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    with open(output, "w", newline="") as file:
        table = csv.DictWriter(file, columns, restval="")
        table.writeheader()
        table.writerows(map(_rounded, rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    one = modes.add_parser("overhead")
    one.add_argument("-o", "--output", type=Path, required=True)
    one.add_argument("--people", type=int, default=48, help="for each worker (%(default)s)")
    one.add_argument("--batch", type=int, default=16, help="people per batch (%(default)s)")
    one.add_argument("--steps", type=int, default=3, help=f"of {INNER_STEPS} inner steps (%(default)s)")
    one.add_argument("--rounds", type=int, default=1, help="measurements of everything, in turns (%(default)s)")
    two = modes.add_parser("memory")
    two.add_argument("-o", "--output", type=Path, required=True)
    two.add_argument("--people", type=int, default=10_000, help="(%(default)s)")
    two.add_argument("--batch", type=int, default=16, help="people per batch (%(default)s)")
    two.add_argument("--workers", type=int, default=2, help="(%(default)s)")
    three = modes.add_parser("plot")
    three.add_argument("--overhead", type=Path, default=RESULTS / "scale_cpu.csv")
    three.add_argument("--memory", type=Path, default=RESULTS / "scale_memory.csv")
    four = modes.add_parser("alone")
    four.add_argument("--steps", type=int, required=True)
    four.add_argument("folders", nargs="+")
    arguments = parser.parse_args()
    if arguments.mode == "overhead":
        overhead(arguments.output, arguments.people, arguments.batch, arguments.steps, arguments.rounds)
    elif arguments.mode == "memory":
        memory(arguments.output, arguments.people, arguments.batch, arguments.workers)
    elif arguments.mode == "plot":
        plot(arguments.overhead, arguments.memory)
    else:
        alone(arguments.folders, arguments.steps)


if __name__ == "__main__":
    main()
