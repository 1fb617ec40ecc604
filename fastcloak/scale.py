"""Cloaks for any number of people, on any number of machines: people are independent, so that each goes its own way.

    people (folder, manifest, Ray Dataset) -> read: decode, detect, align -> fit: one worker per GPU or core -> index

With the extra `ray`, Ray Data runs the stages side by side on a cluster, or on the cores and GPUs of this machine;
without it they run one after the other in this process. The stages are the same functions of rows to rows.

The output folder holds a cloak file per person, `checkpoint.json` (what they were learnt with) and `index/`, a Parquet
data set with a row per person. The cloak files are the truth: who has one is done, whatever became of the job.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from fastcloak.assets import MissingExtraError
from fastcloak.checkpoint import MARKER, claim, fingerprint
from fastcloak.cloak import SHAPE, Cloak, CloakFileError, load
from fastcloak.cluster import Place, Row, Stage, place
from fastcloak.config import configure
from fastcloak.device import resolve_dtype
from fastcloak.faces import named_faces
from fastcloak.fitting import FitInterrupted, FitManyError, Fitter
from fastcloak.folder import PROTECTED, plan_photos, protect_photos
from fastcloak.index import COLUMNS, Index
from fastcloak.models import load_model
from fastcloak.people import cloak_file, read_people
from fastcloak.photos import decode_photo, photo_files
from fastcloak.protect import check_who

__all__ = ["FitSummary", "ProtectSummary", "fit_dataset", "protect_dataset"]

TO_FIT, FITTED, DONE_BEFORE, FAILED, STOP = "to fit", "fitted", "done before", "failed", "stop"
CURE = "name another folder"
DEATHS, MOST_DEATHS = ".deaths", 3
"""Folder that remembers who was worked on when a process died, and how often that may be until they are given up."""

_STATUS = {"person": "string", "status": "string", "reason": "string", "error": "string"}
FACES = {**_STATUS, "faces": "binary", "names": "list<string>"}
RESULTS = {**_STATUS, **COLUMNS}
PHOTOS = {**_STATUS, "photos": "list<string>"}


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
        photos: status (see `fastcloak.folder.Outcome`) -> photos.
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
        source: what `fastcloak.people.read_people` takes: a folder of people's folders, or a manifest (.jsonl,
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
        read = Stage(_Reader, (str(folder),), FACES)
        fit = Stage(_Worker, (there.share(loaded), settings, str(folder), identity), RESULTS, fits=True)
        size = there.batch(total) if people_per_batch == "auto" else int(people_per_batch)
        with closing(_results(source, size, there, [read, fit])) as rows:
            for row in rows:
                if row["status"] != DONE_BEFORE:
                    index.add(row)
                elif row["person"] not in index:  # the job that fitted them was ended before the row was written
                    row = _found(folder, row)
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
            and `photos`, a list of JSON texts, one per photo, of `fastcloak.folder.Outcome`; and the number of people.
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
    check_who(options.get("who", "largest"), None)
    listed = _is_listed(source)
    total = sum(1 for _ in read_people(source)) if listed else None
    if not Path(cloaks).is_dir():
        raise FileNotFoundError(f"cloaks must be the folder that fit-many wrote, got no such folder: {cloaks}")
    folder = Path(out).resolve()
    folder.mkdir(exist_ok=True)
    summary = ProtectSummary()
    with place(concurrency, 0, address, needs_ray=not listed) as there:
        stage = Stage(_Protector, (str(Path(cloaks).resolve()), str(folder), options), PHOTOS)
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


def _unshared(folder: Path) -> str:
    return f"all machines must share the folder {folder}, and {platform.node()} does not"


def _is_listed(source: Any) -> bool:
    return isinstance(source, (str, os.PathLike))


def _batches(source: Any, size: int) -> Iterator[list[Row]]:
    people = read_people(source)
    while batch := [{"person": person, "photos": photos} for person, photos in islice(people, size)]:
        yield batch


def _row(columns: dict[str, str], person: Row, status: str, reason: str | None = None, error: str | None = None) -> Row:
    known = {"person": person["person"], "status": status, "reason": reason, "error": error}
    return {**dict.fromkeys(columns), **known}


def _failed(columns: dict[str, str], person: Row, error: Exception) -> Row:
    return _row(columns, person, FAILED, type(error).__name__, str(error) or repr(error))


class _MachineError(RuntimeError):
    """Nobody's photos are to blame: the job ends."""


class _Deaths:
    """How often a process died while it worked on a person, so that nobody's photos kill one worker after the other.

    A file per person at work, with a byte for each time it was begun; a process that dies leaves it behind.
    """

    def __init__(self, folder: Path, work: str) -> None:
        self._folder, self._work = folder / DEATHS, work

    def of(self, name: str) -> int:
        try:
            return self._file(name).stat().st_size
        except FileNotFoundError:
            return 0

    @contextmanager
    def counted(self, names: Sequence[str]) -> Iterator[None]:
        files = [self._file(name) for name in names]
        try:
            for file in files:
                with open(file, "ab") as one:
                    one.write(b".")
        except OSError as error:
            raise _MachineError(f"cannot write below {self._folder}: {error}") from error
        try:
            yield
        finally:
            for file in files:
                file.unlink(missing_ok=True)

    def row(self, columns: dict[str, str], person: Row) -> Row:
        """What is said of a person who was too often there when a process died; the next job tries again."""
        self._file(person["person"]).unlink(missing_ok=True)
        words = f"{MOST_DEATHS} processes died while they worked on this person; look at the photos, and at the memory"
        return _row(columns, person, FAILED, "ProcessDied", words)

    def _file(self, name: str) -> Path:
        return self._folder / f"{self._work}-{hashlib.sha256(name.encode()).hexdigest()[:32]}"


class _Reader:
    """Photos to aligned faces, for those who have no cloak yet."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._deaths = _Deaths(self._folder, "read")

    def __call__(self, people: list[Row]) -> list[Row]:
        return [self._read(person) for person in people]

    def _read(self, person: Row) -> Row:
        try:
            if not (self._folder / DEATHS).is_dir():
                return _row(FACES, person, STOP, error=_unshared(self._folder))
            if (self._folder / cloak_file(person["person"])).exists():
                return _row(FACES, person, DONE_BEFORE)
            if self._deaths.of(person["person"]) >= MOST_DEATHS:
                return self._deaths.row(FACES, person)
            with self._deaths.counted([person["person"]]):
                names, faces = named_faces(_photos(person["photos"]))
        except (MissingExtraError, _MachineError) as error:
            return _row(FACES, person, STOP, error=str(error))
        except Exception as error:  # one person's photos must not end the others' work
            return _failed(FACES, person, error)
        # They are on the grid of grey levels: 8 bits hold them, and give the same numbers back.
        grid = (faces * 255).round().to(torch.uint8)
        return {**_row(FACES, person, TO_FIT), "faces": grid.numpy().tobytes(), "names": names}


def _photos(photos: Sequence[str | bytes]) -> list[Any]:
    if photos and all(isinstance(photo, bytes) for photo in photos):
        return [decode_photo(photo, name=f"photo {i}").pixels for i, photo in enumerate(photos)]  # type: ignore[arg-type]
    return photo_files(photos)  # type: ignore[arg-type]


class _Worker:
    """Faces to cloaks and rows of the index; makes the surrogate ready once, with the first people that it gets."""

    def __init__(self, model: Any, settings: dict[str, Any], folder: str, identity: str) -> None:
        self._model, self._settings, self._folder, self._identity = model, settings, Path(folder), identity
        self._deaths = _Deaths(self._folder, "fit")
        self._fitter: Fitter | None = None

    def __call__(self, people: list[Row]) -> list[Row]:
        rows = [_row(RESULTS, person, person["status"], person["reason"], person["error"]) for person in people]
        to_fit = [i for i, person in enumerate(people) if person["status"] == TO_FIT]
        dead = {i: self._deaths.of(people[i]["person"]) for i in to_fit}
        # After a death one by one, to see of whom.
        groups = [[i] for i in to_fit] if any(dead.values()) else [to_fit] if to_fit else []
        try:
            for group in groups:
                if dead[group[0]] >= MOST_DEATHS:
                    rows[group[0]] = self._deaths.row(RESULTS, people[group[0]])
                    continue
                with self._deaths.counted([people[i]["person"] for i in group]):
                    rows_of_group = self._fit([people[i] for i in group])
                for i, row in zip(group, rows_of_group, strict=True):
                    rows[i] = row
        except Exception as error:  # none of a person's: the machine, the model, the disk
            return [_row(RESULTS, person, STOP, type(error).__name__, str(error) or repr(error)) for person in people]
        return rows

    def _fit(self, people: list[Row]) -> list[Row]:
        keys = [f"{person['person']} ({i})" for i, person in enumerate(people)]
        faces = {
            key: dict(
                zip(
                    person["names"],
                    torch.frombuffer(bytearray(person["faces"]), dtype=torch.uint8).view(-1, *SHAPE),
                    strict=True,
                )
            )
            for key, person in zip(keys, people, strict=True)
        }
        errors: dict[str, Exception] = {}
        try:
            cloaks = self._ready().fit_many(faces, progress=False)
        except FitManyError as some:
            cloaks, errors = some.cloaks, some.errors
        except FitInterrupted as stop:
            for key, person in zip(keys, people, strict=True):
                if key in stop.cloaks:
                    self._save(person, stop.cloaks[key])
            raise
        return [
            self._save(person, cloaks[key]) if key in cloaks else _failed(RESULTS, person, errors[key])
            for key, person in zip(keys, people, strict=True)
        ]

    def _ready(self) -> Fitter:
        if self._fitter is None:
            if _identity(self._folder) != self._identity:
                raise OSError(_unshared(self._folder))
            try:
                model = self._model()
            except Exception as error:  # Ray's, with a traceback in its words
                words = str(error).partition("\n")[0]
                cure = "its code must be installed on all machines"
                raise RuntimeError(f"a worker cannot load the model; {cure}: {words}") from None
            self._fitter = Fitter(model, **self._settings)
        return self._fitter

    def _save(self, person: Row, cloak: Cloak) -> Row:
        path = self._folder / cloak_file(person["person"])
        cloak.save(path)
        return {**_row(RESULTS, person, FITTED), **_about(path, cloak)}


def _about(path: Path, cloak: Cloak) -> Row:
    """What the index says of a cloak."""
    info = cloak.info
    return {
        "path": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "eps": cloak.eps,
        "photos": info["photos"],
        "loss": info["losses"][-1] if info["losses"] else None,
        "image_gradients": info["image_gradients"],
        "seconds": info["seconds"],
    }


def _found(folder: Path, row: Row) -> Row:
    """The row of someone whose cloak was found in the folder."""
    try:
        path = folder / cloak_file(row["person"])
        return {**row, **_about(path, load(path))}
    except (OSError, CloakFileError, KeyError, TypeError, IndexError) as error:
        return _failed(RESULTS, row, CloakFileError(f"{error}; remove the file to have this person fitted"))


def _identity(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / MARKER).read_bytes())["identity"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


class _Protector:
    """Photos to protected photos, for those who have a cloak."""

    def __init__(self, cloaks: str, folder: str, options: dict[str, Any]) -> None:
        self._cloaks, self._folder, self._options = Path(cloaks), Path(folder), options

    def __call__(self, people: list[Row]) -> list[Row]:
        return [self._protect(person) for person in people]

    def _protect(self, person: Row) -> Row:
        name = person["person"]
        try:
            for folder in (self._cloaks, self._folder):
                if not folder.is_dir():
                    return _row(PHOTOS, person, STOP, error=_unshared(folder))
            file = self._cloaks / cloak_file(name)
            if not file.exists():
                raise FileNotFoundError(f"{name} has no cloak in {self._cloaks}; run fit-many first")
            cloak = load(file)
            if cloak.idle is not None:
                raise ValueError(f"the cloak of {name} protects nothing: {cloak.idle}; fit it again")
            plan = plan_photos(person["photos"], self._folder / Path(cloak_file(name)).stem)
            if plan.manifest is not None and not self._options.get("dry_run"):
                plan.manifest.parent.mkdir(exist_ok=True)
            outcomes = protect_photos(plan, cloak, **self._options)
        except MissingExtraError as error:
            return _row(PHOTOS, person, STOP, error=str(error))
        except Exception as error:  # one person's photos must not end the others' work
            return _failed(PHOTOS, person, error)
        return {**_row(PHOTOS, person, PROTECTED), "photos": [json.dumps(asdict(one), default=str) for one in outcomes]}


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
