"""What workers do: read, fit, protect, tailor.

A stage turns a row per person into another; nobody's photos stop the others.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fastcloak.cloak import SHAPE, Cloak, load
from fastcloak.fitting.claim import MARKER
from fastcloak.fitting.fitter import Fitter
from fastcloak.models import Surrogate
from fastcloak.photos.files import decode_photo
from fastcloak.photos.inputs import named_faces, photo_files
from fastcloak.protection.album import PROTECTED, Outcome, Plan, plan_photos, protect_photos
from fastcloak.protection.enrolment import enrol, recogniser
from fastcloak.scale.rows import DONE_BEFORE, FACES, FAILED, FITTED, PHOTOS, RESULTS, STOP, TO_FIT, Row, make_row
from fastcloak.system.errors import CloakFileError, FitInterrupted, FitManyError, MissingExtraError
from fastcloak.system.files import cloak_file
from fastcloak.tailoring.album import tailor_photos
from fastcloak.tailoring.tailor import Tailor

__all__ = ["CRASHES", "FitStage", "ProtectStage", "ReadStage", "TailorStage", "row_of_cloak"]

CRASHES, MOST_CRASHES = ".crashes", 3
"""Folder of the crash counters, and at how many crashes a person is given up."""


def _unshared(folder: Path) -> OSError:
    return OSError(f"all machines must share the folder {folder}, and {platform.node()} does not")


class _CrashCounter:
    """How often a process died while it worked on a person, so that no photos kill one worker after another.

    A file per person at work, with a byte for each start. A process that dies leaves it behind.
    """

    def __init__(self, folder: Path, work: str) -> None:
        self._folder, self._work = folder / CRASHES, work

    def of(self, person: Row) -> int:
        try:
            return self._file(person).stat().st_size
        except FileNotFoundError:
            return 0

    @contextmanager
    def counting(self, people: Sequence[Row]) -> Iterator[None]:
        files = [self._file(person) for person in people]
        for file in files:
            with open(file, "ab") as counter:
                counter.write(b".")
        try:
            yield
        finally:
            for file in files:
                file.unlink(missing_ok=True)

    def give_up(self, person: Row) -> Row:
        """The row of a person with too many crashes; the next job starts to count again."""
        self._file(person).unlink(missing_ok=True)
        error = f"{MOST_CRASHES} processes died while they worked on this person; look at the photos, and at the memory"
        return {**make_row(person, FAILED), "reason": "ProcessDied", "error": error}

    def _file(self, person: Row) -> Path:
        return self._folder / f"{self._work}-{hashlib.sha256(person['person'].encode()).hexdigest()[:32]}"


def _loaded(model: Callable[[], Surrogate]) -> Surrogate:
    try:
        return model()
    except Exception as error:  # Ray's, whose message holds a traceback
        reason = str(error).partition("\n")[0]
        hint = "its code must be installed on all machines"
        raise RuntimeError(f"a worker cannot load the model; {hint}: {reason}") from None


class ReadStage:
    """Photos to aligned faces, for people who have no cloak yet."""

    columns, fits = FACES, False

    def __init__(self, folder: Path) -> None:
        self._folder, self._crashes = folder, _CrashCounter(folder, "read")

    def __call__(self, people: list[Row]) -> list[Row]:
        """Read the photos of a batch of people."""
        try:
            if not (self._folder / CRASHES).is_dir():
                raise _unshared(self._folder)
            return [self._read(person) for person in people]
        except (MissingExtraError, OSError) as error:
            return [make_row(person, STOP, error) for person in people]

    def _read(self, person: Row) -> Row:
        if (self._folder / cloak_file(person["person"])).exists():
            return make_row(person, DONE_BEFORE)
        if self._crashes.of(person) >= MOST_CRASHES:
            return self._crashes.give_up(person)
        photos = person["photos"]
        with self._crashes.counting([person]):
            try:
                if photos and all(isinstance(photo, bytes) for photo in photos):
                    photos = [decode_photo(photo, name=f"photo {i}").pixels for i, photo in enumerate(photos)]
                else:
                    photos = photo_files(photos)
                names, faces = named_faces(photos)
            except MissingExtraError:
                raise
            except Exception as error:  # whatever it is, the others go on
                return make_row(person, FAILED, error)
        # They are on the grid of grey levels: 8 bits hold them, and give the same numbers back.
        grid = (faces * 255).round().to(torch.uint8)
        return {**make_row(person, TO_FIT), "faces": grid.numpy().tobytes(), "names": names}


class FitStage:
    """Faces to cloaks, and to rows of the index. Prepares the network once, for the first people."""

    columns, fits = RESULTS, True

    def __init__(self, folder: Path, identity: str, model: Callable[[], Surrogate], options: dict[str, Any]) -> None:
        self._folder, self._identity, self._model, self._options = folder, identity, model, options
        self._crashes = _CrashCounter(folder, "fit")
        self._fitter: Fitter | None = None

    def __call__(self, people: list[Row]) -> list[Row]:
        """Fit and save the cloaks of a batch of people."""
        to_fit = [person for person in people if person["status"] == TO_FIT]
        try:
            crashes = sum(map(self._crashes.of, to_fit))
            if crashes and len(people) > 1:  # one by one, to see whose photos it was
                return [row for person in people for row in self([person])]
            if crashes >= MOST_CRASHES:
                return [self._crashes.give_up(people[0])]
            with self._crashes.counting(to_fit):
                fitted = iter(self._fit(to_fit) if to_fit else [])
        except Exception as error:  # not of a person: the machine, the network, the disk
            return [make_row(person, STOP, error) for person in people]
        return [next(fitted) if person["status"] == TO_FIT else person for person in people]

    def _fit(self, people: list[Row]) -> list[Row]:
        self._fitter = self._fitter or self._prepare()
        faces = {}
        for person in people:
            pixels = torch.frombuffer(bytearray(person["faces"]), dtype=torch.uint8).view(-1, *SHAPE)
            faces[person["person"]] = dict(zip(person["names"], pixels, strict=True))
        errors: dict[str, Exception] = {}
        try:
            cloaks = self._fitter.fit_many(faces, progress=False)
        except FitManyError as some:
            cloaks, errors = some.cloaks, some.errors
        except FitInterrupted as stop:
            self._save(stop.cloaks)
            raise
        self._save(cloaks)
        return [
            {**make_row(person, FITTED), **_about(self._folder, name, cloaks[name])}
            if (name := person["person"]) in cloaks
            else make_row(person, FAILED, errors[name])
            for person in people
        ]

    def _prepare(self) -> Fitter:
        marker = self._folder / MARKER
        if not marker.exists() or self._identity.encode() not in marker.read_bytes():
            raise _unshared(self._folder)
        return Fitter(_loaded(self._model), **self._options)

    def _save(self, cloaks: dict[str, Cloak]) -> None:
        for name, cloak in cloaks.items():
            cloak.save(self._folder / cloak_file(name))


def _about(folder: Path, name: str, cloak: Cloak) -> Row:
    path, info = folder / cloak_file(name), cloak.info
    return {
        "path": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "eps": cloak.eps,
        "photos": info["photos"],
        "loss": info["losses"][-1] if info["losses"] else None,
        "image_gradients": info["image_gradients"],
        "seconds": info["seconds"],
    }


def row_of_cloak(folder: Path, row: Row) -> Row:
    """The row of a person who was done before, from the cloak file."""
    name = row["person"]
    try:
        return {**row, **_about(folder, name, load(folder / cloak_file(name)))}
    except (OSError, CloakFileError, KeyError, TypeError, IndexError) as error:
        unread = CloakFileError(f"{error}; remove the file to have this person fitted")
        return {**row, **make_row(row, FAILED, unread)}


def _plan(person: Row, output: Path, dry_run: bool) -> Plan:
    plan = plan_photos(person["photos"], output / Path(cloak_file(person["person"])).stem)
    if plan.manifest is not None and not dry_run:
        plan.manifest.parent.mkdir(exist_ok=True)
    return plan


def _outcomes(person: Row, outcomes: list[Outcome]) -> Row:
    return {**make_row(person, PROTECTED), "photos": [json.dumps(asdict(one), default=str) for one in outcomes]}


class ProtectStage:
    """Photos to protected photos, for people who have a cloak."""

    columns, fits = PHOTOS, False

    def __init__(self, cloaks: Path, output: Path, options: dict[str, Any]) -> None:
        self._cloaks, self._output, self._options = cloaks, output, options

    def __call__(self, people: list[Row]) -> list[Row]:
        """Protect the photos of a batch of people."""
        return [self._protect(person) for person in people]

    def _protect(self, person: Row) -> Row:
        for folder in (self._cloaks, self._output):
            if not folder.is_dir():
                return make_row(person, STOP, _unshared(folder))
        name, file = person["person"], self._cloaks / cloak_file(person["person"])
        try:
            if not file.exists():
                raise FileNotFoundError(f"{name} has no cloak in {self._cloaks}; run fit-many first")
            cloak = load(file)
            if cloak.idle is not None:
                raise ValueError(f"the cloak of {name} protects nothing: {cloak.idle}; fit it again")
            plan = _plan(person, self._output, bool(self._options.get("dry_run")))
            return _outcomes(person, protect_photos(plan, cloak, **self._options))
        except MissingExtraError as error:
            return make_row(person, STOP, error)
        except Exception as error:  # whatever it is, the others go on
            return make_row(person, FAILED, error)


class TailorStage:
    """Photos to photos with masks of their own, for people with photos to learn from.

    Prepares the networks once, for the first person.
    """

    columns, fits = PHOTOS, True

    def __init__(
        self,
        enrolments: Path,
        output: Path,
        model: Callable[[], Surrogate],
        learning: dict[str, Any],
        options: dict[str, Any],
    ) -> None:
        # `learning` are options of Tailor, `options` the others of tailor_photos.
        self._enrolments, self._output, self._model = enrolments, output, model
        self._learning, self._options = learning, options
        self._crashes = _CrashCounter(output, "tailor")
        self._ready: tuple[Tailor, Surrogate] | None = None

    def __call__(self, people: list[Row]) -> list[Row]:
        """Tailor the photos of a batch of people."""
        return [self._person(person) for person in people]

    def _person(self, person: Row) -> Row:
        try:
            for folder in (self._enrolments, self._output, self._output / CRASHES):
                if not folder.is_dir():
                    raise _unshared(folder)
            if self._crashes.of(person) >= MOST_CRASHES:
                return self._crashes.give_up(person)
            self._ready = self._ready or self._prepare()
            with self._crashes.counting([person]):
                return self._tailored(person, *self._ready)
        except Exception as error:  # not of a person: the machine, the networks, the disk
            return make_row(person, STOP, error)

    def _prepare(self) -> tuple[Tailor, Surrogate]:
        """The networks to learn on, and the one that finds a person in photos."""
        model = _loaded(self._model)
        return Tailor(None, model, **self._learning), recogniser(model.members)

    def _tailored(self, person: Row, tailor: Tailor, finder: Surrogate) -> Row:
        name = person["person"]
        try:
            folder = self._enrolments / name
            # The name may be that of a manifest, and must not lead elsewhere.
            if name.startswith(".") or folder.parent != self._enrolments or not folder.is_dir():
                raise FileNotFoundError(f"{name} has no folder of photos in {self._enrolments}; make one")
            plan = _plan(person, self._output, bool(self._options.get("dry_run")))
            me = enrol(photo_files([folder]), finder)
            return _outcomes(person, tailor_photos(plan, me, tailor, **self._options))
        except MissingExtraError:
            raise
        except Exception as error:  # whatever it is, the others go on
            return make_row(person, FAILED, error)
