"""What workers do: read, fit, protect; one row per person."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fastcloak.cloak import SHAPE, Cloak, load
from fastcloak.fitting.claim import MARKER
from fastcloak.fitting.fitter import Fitter
from fastcloak.photos.files import decode_photo
from fastcloak.photos.inputs import named_faces, photo_files
from fastcloak.protection.album import PROTECTED, plan_photos, protect_photos
from fastcloak.scale.cluster import Row
from fastcloak.scale.index import COLUMNS
from fastcloak.system.errors import CloakFileError, FitInterrupted, FitManyError, MissingExtraError
from fastcloak.system.files import cloak_file

TO_FIT, FITTED, DONE_BEFORE, FAILED, STOP = "to fit", "fitted", "done before", "failed", "stop"
DEATHS, MOST_DEATHS = ".deaths", 3
"""Folder that remembers who was worked on when a process died, and how often that may be until they are given up."""

_STATUS = {"person": "string", "status": "string", "reason": "string", "error": "string"}
FACES = {**_STATUS, "faces": "binary", "names": "list<string>"}
RESULTS = {**_STATUS, **COLUMNS}
PHOTOS = {**_STATUS, "photos": "list<string>"}


def _unshared(folder: Path) -> str:
    return f"all machines must share the folder {folder}, and {platform.node()} does not"


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


class Reader:
    """Photos to aligned faces, for those who have no cloak yet."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._deaths = _Deaths(self._folder, "read")

    def __call__(self, people: list[Row]) -> list[Row]:
        """Read the photos of a batch of people."""
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


class Worker:
    """Faces to cloaks and rows of the index; makes the surrogate ready once, with the first people that it gets."""

    def __init__(self, model: Any, settings: dict[str, Any], folder: str, identity: str) -> None:
        self._model, self._settings, self._folder, self._identity = model, settings, Path(folder), identity
        self._deaths = _Deaths(self._folder, "fit")
        self._fitter: Fitter | None = None

    def __call__(self, people: list[Row]) -> list[Row]:
        """Fit a batch of people."""
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


def found(folder: Path, row: Row) -> Row:
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


class Protector:
    """Photos to protected photos, for those who have a cloak."""

    def __init__(self, cloaks: str, folder: str, options: dict[str, Any]) -> None:
        self._cloaks, self._folder, self._options = Path(cloaks), Path(folder), options

    def __call__(self, people: list[Row]) -> list[Row]:
        """Protect the photos of a batch of people."""
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
