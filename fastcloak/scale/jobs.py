"""Cloaks for any number of people, on any number of machines. People are independent, so each goes their own way.

    people (folder, manifest, Ray Dataset) -> batches -> read: decode, detect, align -> fit -> a row each -> index
                                           -> batches -> protect: add the cloak to each photo -> a row each
                                           -> batches -> tailor: enrol, learn a mask for each photo -> a row each

With the extra `ray` the stages run at the same time on a cluster, or on the cores and GPUs of this machine. Without it
they run one after the other in this process.

The output folder of a fit holds a cloak file per person, `checkpoint.json`, which says what they are fitted with, and
`index/`, a row per person. The cloak files are the truth: whoever has one is done, whatever became of the job.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcloak.fitting.claim import claim, fingerprint
from fastcloak.fitting.options import LAUNCH_OPTIONS, configure
from fastcloak.models import load_model
from fastcloak.photos.detection import check_who
from fastcloak.scale.cluster import LocalRunner, RayRunner, Stage, check_resources, start_runner
from fastcloak.scale.index import Index
from fastcloak.scale.people import read_people
from fastcloak.scale.rows import DONE_BEFORE, FAILED, FITTED, STOP, Row
from fastcloak.scale.stages import CRASHES, FitStage, ProtectStage, ReadStage, TailorStage, row_of_cloak
from fastcloak.system.device import resolve_dtype
from fastcloak.tailoring.options import configure_tailor

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fastcloak.fitting.options import FitterOptions
    from fastcloak.tailoring.options import TailorOptions

__all__ = ["FitSummary", "ProtectSummary", "fit_dataset", "protect_dataset", "tailor_dataset"]

Progress = Callable[[Row, int | None], None]

PROTECT_OPTIONS = ("who", "quality", "strip_gps", "strip_metadata", "overwrite", "again", "dry_run")


@dataclass
class FitSummary:
    """What became of the people of `fit_dataset`."""

    people: int = 0  # in the source; of a Ray Dataset those seen
    fitted: int = 0  # now
    done_before: int = 0  # by an earlier call
    failed: int = 0  # their errors are in the index
    reasons: Counter[str] = field(default_factory=Counter)  # name of an exception -> people
    seconds: float = 0.0

    @property
    def people_per_hour(self) -> float:
        """People who were fitted now, per hour of the job."""
        return 3600 * self.fitted / self.seconds if self.seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """The attributes and `people_per_hour`."""
        return {**vars(self), "people_per_hour": self.people_per_hour}


@dataclass
class ProtectSummary:
    """What became of the people and photos of `protect_dataset` and `tailor_dataset`."""

    people: int = 0  # in the source
    failed: int = 0  # people without a cloak or enrolment, or whose photos could not be found
    photos: Counter[str] = field(default_factory=Counter)  # status of an `Outcome` -> photos
    uncertain: int = 0  # photos with a face of which it is unknown which way up it is
    reasons: Counter[str] = field(default_factory=Counter)  # name of an exception -> people and photos
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The attributes."""
        return dict(vars(self))


def fit_dataset(
    people: Any,
    model: Any,
    output: str | os.PathLike[str],
    *,
    address: str | None = None,
    concurrency: int | None = None,
    num_gpus: float | None = None,
    people_per_batch: int | str = "auto",
    progress: Progress | None = None,
    **options: Unpack[FitterOptions],
) -> FitSummary:
    """Fit a cloak for each of many people, on one machine or many; go on where an earlier call stopped.

    A person who cannot be fitted is a row of the index with the error, and is tried again by the next call. Whoever has
    a cloak in `output` is not fitted again; remove the file to change that. Others do the work of machines and workers
    that are lost. On CPUs a worker computes with one thread. Each cloak is then, bit for bit, that of `fit` with one
    thread on the same kind of processor, whatever the number of workers.

    Args:
        people: a folder of people's folders or a manifest (.jsonl, .parquet), see
            `fastcloak.scale.people.read_people`. Or a Ray Dataset with rows of `person`, each a name of its own, and
            `photos`, a list of paths or of the bytes of photo files.
        model: the surrogate, as for `fit`. Workers are sent it: other machines need not have its file.
        output: a new folder, or that of an earlier call with the same model and options. All machines must share it.
        address: of a Ray cluster that this machine is part of: "auto" or "host:6379". None: the one that this process
            is connected to, or of RAY_ADDRESS, or of `ray start` on this machine, else a new one of this machine.
        concurrency: workers that fit. None: one per GPU, or per CPU without GPUs, that Ray has when the job begins.
            0: in this process, without Ray, as also happens where Ray is not installed.
        num_gpus: GPUs per worker, also a part of one. None: 1 if Ray has any, else 0.
        people_per_batch: people that a worker gets at once, and has to fit again if it is lost. "auto": 64 with a GPU,
            else 16, or fewer where that would leave workers without people.
        progress: callback for each person with the row of the index and its `status` ("fitted", "done before",
            "failed"), and the number of people, None for a Ray Dataset.
        options: those of `fit` except checkpoint and resume, and `memory_budget` of `fit_many`, for each worker.

    Raises:
        ValueError: bad options, people or output, or an address of Ray Client; before anyone is fitted.
        FileNotFoundError: the people are not there.
        MissingExtraError: Ray is needed and not installed, or faces must be found without the extra `faces`.
        CheckpointError: `output` cannot be written, or another job is using it.
        RuntimeError: a worker cannot write the cloaks, does not share `output`, or cannot load what it needs.
        KeyboardInterrupt: Ctrl-C; people who are finished have a cloak, and the next call goes on.
    """
    began = time.perf_counter()
    check_resources(concurrency, num_gpus, people_per_batch, address)
    config = configure({name: value for name, value in options.items() if name not in LAUNCH_OPTIONS})
    dtype = str(resolve_dtype(options.get("dtype", "auto")) or "auto").removeprefix("torch.")
    total = _count(people)
    loaded = load_model(model)
    folder = Path(output).resolve()
    summary = FitSummary()
    with (
        claim(folder, fingerprint(loaded, loaded, config, dtype=dtype), hint="name another folder") as identity,
        Index(folder) as index,
        start_runner(concurrency, num_gpus, address, needs_ray=total is None) as runner,
    ):
        (folder / CRASHES).mkdir(exist_ok=True)
        stages: tuple[Stage, ...] = (ReadStage(folder), FitStage(folder, identity, runner.share(loaded), dict(options)))
        size = runner.batch_size(total) if people_per_batch == "auto" else int(people_per_batch)
        with closing(_run(runner, _batches(people, size), stages)) as rows:
            for row in rows:
                known = row["status"] == DONE_BEFORE and row["person"] in index
                if row["status"] == DONE_BEFORE and not known:  # the job that fitted them ended before it wrote the row
                    row = row_of_cloak(folder, row)
                if not known:
                    index.add(row)
                summary.people += 1
                summary.fitted += row["status"] == FITTED
                summary.done_before += row["status"] == DONE_BEFORE
                summary.failed += row["status"] == FAILED
                summary.reasons.update(filter(None, [row["reason"]]))
                if progress is not None:
                    progress(row, total)
    summary.seconds = time.perf_counter() - began
    return summary


def protect_dataset(
    people: Any,
    cloaks: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    address: str | None = None,
    concurrency: int | None = None,
    people_per_batch: int = 1,
    progress: Progress | None = None,
    **options: Any,
) -> ProtectSummary:
    """Add each person's cloak to their photos. Photos done before are skipped, and one that fails stops nothing.

    Args:
        people: as for `fit_dataset`, with paths of photos or of folders of photos, taken with subfolders.
        cloaks: the folder that `fit_dataset` wrote.
        output: folder for the protected photos, in a folder per person. All machines must share it.
        address: as for `fit_dataset`.
        concurrency: people at a time. None: as many as there are CPUs; 0: in this process.
        people_per_batch: people per task of Ray.
        progress: callback for each person with a row of `person`, `status` ("protected" or "failed"), `reason`, `error`
            and `photos`: for each an `Outcome` of `fastcloak.protection.album` as JSON. And with the number of people.
        options: `who` ("largest" or "all"), `quality`, `strip_gps`, `strip_metadata`, `overwrite`, `again`, `dry_run`,
            as for `protect_photos`.

    Raises:
        ValueError, FileNotFoundError, MissingExtraError, KeyboardInterrupt: as `fit_dataset`.
        RuntimeError: a worker does not share the folders, or lacks the extra `faces`.
    """
    began = time.perf_counter()
    check_resources(concurrency, None, people_per_batch, address)
    if unknown := set(options).difference(PROTECT_OPTIONS):
        raise TypeError(f"unknown option {', '.join(sorted(unknown))}; options are {', '.join(PROTECT_OPTIONS)}")
    check_who(options.get("who", "largest"))
    total = _count(people)
    if not Path(cloaks).is_dir():
        raise FileNotFoundError(f"cloaks must be the folder that fit-many wrote, got no such folder: {cloaks}")
    folder = Path(output).resolve()
    folder.mkdir(exist_ok=True)
    stage = ProtectStage(Path(cloaks).resolve(), folder, options)
    with start_runner(concurrency, 0, address, needs_ray=total is None) as runner:
        summary = _write_photos(runner, _batches(people, people_per_batch), stage, total, progress)
    summary.seconds = time.perf_counter() - began
    return summary


def tailor_dataset(
    people: Any,
    enrolments: str | os.PathLike[str],
    models: Any,
    output: str | os.PathLike[str],
    *,
    address: str | None = None,
    concurrency: int | None = None,
    num_gpus: float | None = None,
    people_per_batch: int = 1,
    progress: Progress | None = None,
    device: str = "auto",
    backend: str = "auto",
    engine: str = "auto",
    dtype: str = "auto",
    who: str = "me",
    quality: int | None = None,
    strip_gps: bool = False,
    strip_metadata: bool = False,
    overwrite: bool = False,
    again: bool = False,
    dry_run: bool = False,
    **options: Unpack[TailorOptions],
) -> ProtectSummary:
    """Give each photo of each person a mask of its own, as `tailor_photos` does. Nobody's photos stop the others'.

    Args:
        people: as for `protect_dataset`: their albums.
        enrolments: a folder with a folder for each person, of about ten photos of them alone. It has the person's name.
        models: the networks to learn on, one or more; whatever `load_model` takes. Workers are sent them.
        output, people_per_batch, progress: as for `protect_dataset`.
        address, concurrency, num_gpus: as for `fit_dataset`. A worker reads its photos itself: let some share a GPU.
        device, backend, engine, dtype: as for `fit`.
        who: "me", the person's face, or "largest".
        quality, strip_gps, strip_metadata, overwrite, again, dry_run: as for `tailor_photos`.
        options: as for `tailor`.

    Raises:
        ValueError, TypeError, FileNotFoundError, MissingExtraError, KeyboardInterrupt: as `fit_dataset`.
        RuntimeError: a worker does not share the folders, or cannot load what it needs.
    """
    began = time.perf_counter()
    check_resources(concurrency, num_gpus, people_per_batch, address)
    configure_tailor(options)
    resolve_dtype(dtype)
    if who not in ("me", "largest"):
        raise ValueError(f"who must be 'me' or 'largest', got {who!r:.60}; everyone's album is theirs alone")
    total = _count(people)
    if not Path(enrolments).is_dir():
        raise FileNotFoundError(f"enrolments must be a folder with a folder for each person, got none at {enrolments}")
    loaded = load_model(models)
    folder = Path(output).resolve()
    folder.mkdir(exist_ok=True)
    (folder / CRASHES).mkdir(exist_ok=True)
    learning: dict[str, Any] = {"device": device, "backend": backend, "engine": engine, "dtype": dtype, **options}
    saving = {
        "who": who,
        "quality": quality,
        "strip_gps": strip_gps,
        "strip_metadata": strip_metadata,
        "overwrite": overwrite,
        "again": again,
        "dry_run": dry_run,
    }
    with start_runner(concurrency, num_gpus, address, needs_ray=total is None) as runner:
        stage = TailorStage(Path(enrolments).resolve(), folder, runner.share(loaded), learning, saving)
        summary = _write_photos(runner, _batches(people, people_per_batch), stage, total, progress)
    summary.seconds = time.perf_counter() - began
    return summary


def _write_photos(
    runner: LocalRunner | RayRunner, batches: Any, stage: Stage, total: int | None, progress: Progress | None
) -> ProtectSummary:
    """Run a stage that writes photos, and count what becomes of them."""
    summary = ProtectSummary()
    with closing(_run(runner, batches, [stage])) as rows:
        for row in rows:
            outcomes = [json.loads(outcome) for outcome in row["photos"] or ()]
            summary.people += 1
            summary.failed += row["status"] == FAILED
            summary.photos.update(outcome["status"] for outcome in outcomes)
            summary.uncertain += sum(outcome["uncertain"] > 0 for outcome in outcomes)
            summary.reasons.update(one["reason"] for one in (row, *outcomes) if one["reason"])
            if progress is not None:
                progress(row, total)
    return summary


def _count(people: Any) -> int | None:
    """How many there are; None for a Ray Dataset, which is read only once."""
    if isinstance(people, (str, os.PathLike)):
        return sum(1 for _ in read_people(people))
    if not hasattr(people, "repartition"):
        raise TypeError(f"people must be a folder, a manifest or a Ray Dataset, got {type(people).__name__}")
    return None


def _batches(people: Any, size: int) -> Any:
    """A list of rows for each batch; a Ray Dataset is cut into blocks of this size."""
    if not isinstance(people, (str, os.PathLike)):
        return people.repartition(target_num_rows_per_block=size)
    rows = ({"person": person, "photos": photos} for person, photos in read_people(people))
    return iter(lambda: list(islice(rows, size)), [])


def _run(runner: LocalRunner | RayRunner, batches: Any, stages: Sequence[Stage]) -> Generator[Row]:
    """A row per person, as they are ready, until one says that the job cannot go on."""
    with closing(runner.run(batches, stages)) as rows:
        for row in rows:
            if row["status"] == STOP:
                raise RuntimeError(row["error"])
            yield row
