"""Cloaks for any number of people, on any number of machines: people are independent, so that each goes its own way.

    people (folder, manifest, Ray Dataset) -> read: decode, detect, align -> fit: one worker per GPU or core -> index

With the extra `ray`, Ray Data runs the stages side by side on a cluster, or on the cores and GPUs of this machine;
without it they run one after the other in this process. The stages are the same functions of rows to rows.

The output folder holds a cloak file per person, `checkpoint.json` (what they were learnt with) and `index/`, a Parquet
data set with a row per person. The cloak files are the truth: who has one is done, whatever became of the job.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from fastcloak.fitting.claim import claim, fingerprint
from fastcloak.fitting.options import configure
from fastcloak.models import load_model
from fastcloak.photos.detection import check_who
from fastcloak.scale.cluster import Place, Row, Stage, place
from fastcloak.scale.index import Index
from fastcloak.scale.people import read_people
from fastcloak.scale.stages import (
    DEATHS,
    DONE_BEFORE,
    FACES,
    FAILED,
    FITTED,
    PHOTOS,
    RESULTS,
    STOP,
    Protector,
    Reader,
    Worker,
    found,
)
from fastcloak.system.device import resolve_dtype

__all__ = ["FitSummary", "ProtectSummary", "fit_dataset", "protect_dataset"]
CURE = "name another folder"


@dataclass
class FitSummary:
    """What became of a job.

    Attributes:
        people: in the source; for a Ray Dataset those seen.
        fitted: who got a cloak now.
        done_before: who had one of an earlier run.
        failed: who got none; the index has the words.
        reasons: kind of error (the exception's name) -> people.
        seconds: that the job took.
    """

    people: int = 0
    fitted: int = 0
    done_before: int = 0
    failed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def people_per_hour(self) -> float:
        """People who got a cloak now, per hour of the job."""
        return 3600 * self.fitted / self.seconds if self.seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """The attributes and `people_per_hour`."""
        return {**vars(self), "people_per_hour": self.people_per_hour}


@dataclass
class ProtectSummary:
    """What became of the photos of many people.

    Attributes:
        people: in the source.
        failed: people without a cloak, or whose photos could not be found.
        photos: status (see `fastcloak.protection.album.Outcome`) -> photos.
        uncertain: photos with a face of which it cannot be told which way up it is.
        reasons: kind of error -> people and photos that failed for it.
        seconds: that the job took.
    """

    people: int = 0
    failed: int = 0
    photos: Counter[str] = field(default_factory=Counter)
    uncertain: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The attributes."""
        return dict(vars(self))


def fit_dataset(
    source: Any,
    model: Any,
    out: str | os.PathLike[str],
    *,
    concurrency: int | None = None,
    num_gpus: float | None = None,
    people_per_batch: int | str = "auto",
    address: str | None = None,
    progress: Callable[[Row, int | None], None] | None = None,
    device: str = "auto",
    backend: str = "auto",
    engine: str = "auto",
    dtype: str | torch.dtype = "auto",
    memory_budget: int | None = None,
    strict: bool = False,
    **options: Any,
) -> FitSummary:
    """Learns a cloak for everyone in a source, on one machine or many, and goes on where an earlier call stopped.

    A person who cannot be fitted is a row of the index with the error, and is tried again by the next call; who has a
    cloak in `out` is not fitted again (remove the file to have it done anew). Machines and workers that are lost are
    made up for by others. On CPUs a worker computes with one thread: each cloak is, bit for bit, that of `fit` with one
    thread on the same kind of processor, however many workers there are.

    Args:
        source: what `fastcloak.scale.people.read_people` takes: a folder of people's folders, or a manifest (.jsonl,
            .parquet); or a Ray Dataset with rows of `person`, a name of its own each, and `photos`, a list of paths, or
            of the bytes of photo files.
        model: the surrogate, as for `fit`; it is sent to the workers, so that its file need not be on other machines.
        out: a new folder, or that of an earlier call with the same model and options; all machines must share it.
        concurrency: workers that fit. None: one per GPU, or per CPU where there is no GPU, that Ray's cluster has when
            the job begins; 0: in this process, without Ray, as also happens where Ray is not installed.
        num_gpus: GPUs per worker, also a part of one. None: 1 if Ray has any, else 0.
        people_per_batch: people that a worker gets at once, and has to fit again if it is lost. "auto": 64 with a GPU,
            else 16, or fewer where that would leave workers without people.
        address: of a Ray cluster, as for `ray.init`: "auto", "host:6379" or "ray://host:10001". None: the one that
            this process is connected to, or of RAY_ADDRESS, or of `ray start` on this machine; else a new one of this
            machine.
        progress: called with the row of the index, and its `status`, of each person as they are known ("fitted", "done
            before", "failed"), and the number of people in all, None for a Ray Dataset.
        device, backend, engine, dtype, memory_budget, strict: as for `fit_many`, of each worker.
        options: every other option of `fit`.

    Raises:
        ValueError: bad options, source or `out`; before anyone is fitted.
        FileNotFoundError: the source is not there.
        MissingExtraError: something asked for needs Ray and it is not installed, or faces must be found and the extra
            `faces` is not.
        CheckpointError: `out` cannot be written, or another job is using it.
        RuntimeError: a worker cannot write the cloaks, does not share `out`, or cannot load what it needs.
        KeyboardInterrupt: Ctrl-C; who is finished has a cloak, and the next call goes on.
    """
    began = time.perf_counter()
    _check_numbers(concurrency, num_gpus, people_per_batch)
    config = configure(options)
    listed = _is_listed(source)
    total = sum(1 for _ in read_people(source)) if listed else None
    loaded = load_model(model)
    folder = Path(out).resolve()
    settings = {
        "device": device,
        "backend": backend,
        "engine": engine,
        "dtype": dtype,
        "memory_budget": memory_budget,
        "strict": strict,
        **options,
    }
    known = fingerprint(loaded, loaded, config, dtype=str(resolve_dtype(dtype) or "auto").removeprefix("torch."))
    summary = FitSummary()
    with (
        claim(folder, known, cure=CURE) as identity,
        Index(folder) as index,
        place(concurrency, num_gpus, address, needs_ray=not listed) as there,
    ):
        (folder / DEATHS).mkdir(exist_ok=True)
        read = Stage(Reader, (str(folder),), FACES)
        fit = Stage(Worker, (there.share(loaded), settings, str(folder), identity), RESULTS, fits=True)
        size = there.batch(total) if people_per_batch == "auto" else int(people_per_batch)
        with closing(_results(source, size, there, [read, fit])) as rows:
            for row in rows:
                if row["status"] != DONE_BEFORE:
                    index.add(row)
                elif row["person"] not in index:  # the job that fitted them was ended before the row was written
                    row = found(folder, row)
                    index.add(row)
                summary.people += 1
                summary.fitted += row["status"] == FITTED
                summary.done_before += row["status"] == DONE_BEFORE
                summary.failed += row["status"] == FAILED
                if row["reason"]:
                    summary.reasons[row["reason"]] += 1
                if progress is not None:
                    progress(row, total)
    summary.seconds = time.perf_counter() - began
    return summary


def protect_dataset(
    source: Any,
    cloaks: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    concurrency: int | None = None,
    people_per_batch: int = 1,
    address: str | None = None,
    progress: Callable[[Row, int | None], None] | None = None,
    **options: Any,
) -> ProtectSummary:
    """Adds everyone's cloak to their photos; what is done is skipped, and a photo that fails stops nothing.

    Args:
        source: as for `fit_dataset`: who, and which photos or folders of photos, with subfolders.
        cloaks: the folder that `fit_dataset` wrote.
        out: folder for the protected photos, in a folder for each person; all machines must share it.
        concurrency: people at a time. None: as many as there are CPUs; 0: in this process.
        people_per_batch: people per task of Ray.
        address: as for `fit_dataset`.
        progress: called for each person with a row of `person`, `status` ("protected" or "failed"), `reason`, `error`
            and `photos`, a list of JSON texts, one per photo, of `fastcloak.protection.album.Outcome`; and the number
            of people.
        options: `who` ("largest" or "all"), `quality`, `strip_gps`, `strip_metadata`, `overwrite`, `again`, `dry_run`,
            as for `protect_photos`.

    Raises:
        ValueError, FileNotFoundError, MissingExtraError, KeyboardInterrupt: as `fit_dataset`.
        RuntimeError: a worker does not share the folders, or lacks the extra `faces`.
    """
    began = time.perf_counter()
    _check_numbers(concurrency, None, people_per_batch)
    unknown = set(options) - {"who", "quality", "strip_gps", "strip_metadata", "overwrite", "again", "dry_run"}
    if unknown:
        raise TypeError(f"unknown option {', '.join(sorted(unknown))}")
    check_who(options.get("who", "largest"))
    listed = _is_listed(source)
    total = sum(1 for _ in read_people(source)) if listed else None
    if not Path(cloaks).is_dir():
        raise FileNotFoundError(f"cloaks must be the folder that fit-many wrote, got no such folder: {cloaks}")
    folder = Path(out).resolve()
    folder.mkdir(exist_ok=True)
    summary = ProtectSummary()
    with place(concurrency, 0, address, needs_ray=not listed) as there:
        stage = Stage(Protector, (str(Path(cloaks).resolve()), str(folder), options), PHOTOS)
        with closing(_results(source, people_per_batch, there, [stage])) as rows:
            for row in rows:
                summary.people += 1
                summary.failed += row["status"] == FAILED
                if row["reason"]:
                    summary.reasons[row["reason"]] += 1
                for outcome in map(json.loads, row["photos"] or ()):
                    summary.photos[outcome["status"]] += 1
                    summary.uncertain += outcome["uncertain"] > 0
                    if outcome["reason"]:
                        summary.reasons[outcome["reason"]] += 1
                if progress is not None:
                    progress(row, total)
    summary.seconds = time.perf_counter() - began
    return summary


def _results(source: Any, size: int, there: Place, stages: list[Stage]) -> Generator[Row]:
    """A row for everyone in the source, as they are finished, until one says that the job cannot go on."""
    with closing(there.run(_batches(source, size) if _is_listed(source) else source, size, stages)) as rows:
        for row in rows:
            if row["status"] == STOP:
                raise RuntimeError(row["error"])
            yield row


def _is_listed(source: Any) -> bool:
    return isinstance(source, (str, os.PathLike))


def _batches(source: Any, size: int) -> Iterator[list[Row]]:
    people = read_people(source)
    while batch := [{"person": person, "photos": photos} for person, photos in islice(people, size)]:
        yield batch


def _check_numbers(concurrency: Any, num_gpus: Any, people_per_batch: Any) -> None:
    if concurrency is not None and not (_is_whole(concurrency) and concurrency >= 0):
        raise ValueError(f"concurrency must be a whole number, 0 or more, or None, got {concurrency!r}")
    real = isinstance(num_gpus, (int, float)) and not isinstance(num_gpus, bool)
    if num_gpus is not None and not (real and 0 <= num_gpus <= 64):
        raise ValueError(f"num_gpus must be a number of GPUs per worker, 0 to 64, or None, got {num_gpus!r}")
    if people_per_batch != "auto" and not (_is_whole(people_per_batch) and people_per_batch >= 1):
        raise ValueError(f"people_per_batch must be a whole number, 1 or more, or 'auto', got {people_per_batch!r}")


def _is_whole(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)
