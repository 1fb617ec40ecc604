"""Many photos at once: plan what goes where, skip what is done, protect the rest side by side, and stop for nothing.

The output folder remembers what was written into it in `.fastcloak.jsonl`: a line per photo with the SHA-256 of the
original, of the protected photo and of the cloak, and the options. A line is written before its photo is, so that after
a crash a photo is either as its line says, or done again.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from fastcloak.cloak import Cloak
from fastcloak.photos.files import SUFFIXES, photo_files
from fastcloak.protection.enrolment import Enrolment
from fastcloak.protection.photo import ALREADY_PROTECTED, check_who, protect_payload
from fastcloak.system.errors import AlreadyProtectedError, MissingExtraError
from fastcloak.system.files import atomic_write

__all__ = [
    "MANIFEST",
    "Outcome",
    "Plan",
    "plan_photos",
    "protect_photos",
]

MANIFEST = ".fastcloak.jsonl"
PROTECTED, DONE_BEFORE, PLANNED, ALREADY, FAILED = "protected", "done before", "planned", "already protected", "failed"


@dataclass(frozen=True)
class Plan:
    """Which photo goes where.

    Attributes:
        photos: (source, destination), in order, each source once.
        manifest: the file that remembers what was done, or None for a single photo with a name of its own.
    """

    photos: tuple[tuple[Path, Path], ...]
    manifest: Path | None


@dataclass(frozen=True)
class Outcome:
    """What became of one photo.

    Attributes:
        source: the photo.
        destination: the protected photo.
        status: "protected"; "done before": the same photo, cloak and options as in an earlier run; "planned": would
            be protected, in a dry run; "already protected": it carries this cloak, nothing was written; or "failed".
        faces: how many faces were cloaked; 0 if that was not looked at.
        face_sizes: see `ProtectedPhoto`.
        warnings: see `ProtectedPhoto`.
        uncertain: see `ProtectedPhoto`; such a photo is never done before.
        reason: kind of failure, the name of its exception.
        error: what went wrong, in words.
        seconds: that it took.
    """

    source: Path
    destination: Path
    status: str
    faces: int = 0
    face_sizes: tuple[float, ...] = ()
    warnings: tuple[str, ...] = ()
    uncertain: int = 0
    reason: str = ""
    error: str = ""
    seconds: float = 0.0


def plan_photos(paths: Iterable[str | PathLike[str]], output: str | PathLike[str]) -> Plan:
    """Say which photo goes where: a folder's photos keep their place below it, single photos their name.

    Args:
        paths: photos, and folders whose photos are taken with those of subfolders. What lies in `output` is left out
            where that is a subfolder of theirs.
        output: the folder to write to, which need not exist; or for a single photo the file to write.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: no photo at all.
        NotADirectoryError: `output` is a file, and not one photo's.
    """
    output = Path(output)
    given = [Path(path) for path in paths]
    if len(given) == 1 and given[0].is_file() and output.suffix.lower() in SUFFIXES and not output.is_dir():
        return Plan(((given[0], output),), None)
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"output must be a folder, got the file {output}; name another")
    photos: dict[Path, Path] = {}
    for path in given:
        found = photo_files([path], recursive=True)
        if path.is_dir() and not (output.exists() and output.samefile(path)):
            inside = output.resolve()
            found = [file for file in found if inside not in file.resolve().parents]
            if not found:
                raise ValueError(f"{path} must hold photos outside the output folder {output}, got none; name another")
        for file in found:
            photos.setdefault(file, output / (file.relative_to(path) if path.is_dir() else file.name))
    if not photos:
        raise ValueError("paths must hold at least one photo or folder, got none; name some")
    return Plan(tuple(photos.items()), output / MANIFEST)


def protect_photos(
    plan: Plan,
    cloak: Cloak,
    *,
    who: str = "largest",
    enrolment: Enrolment | None = None,
    quality: int | None = None,
    strip_gps: bool = False,
    strip_metadata: bool = False,
    overwrite: bool = False,
    again: bool = False,
    dry_run: bool = False,
    jobs: int = 1,
    progress: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Protect the photos of a plan; one that fails never stops the others, and no original is ever written over.

    A photo is done before if its destination is as an earlier run wrote it from the same content with the same cloak
    and options. A destination that an earlier run wrote otherwise, and nobody changed since, is written anew.

    A photo is already protected if its faces carry the cloak, or if the `.fastcloak.jsonl` of a folder that it is in
    says that it was written with this cloak, for the same faces.

    Args:
        plan: from `plan_photos`.
        cloak: the person's.
        who, enrolment, quality, strip_gps, strip_metadata: see `protect_photo`.
        again: protect photos that are already protected too.
        overwrite: replace other files that are in the way too, but never an original.
        dry_run: do everything but write.
        jobs: photos at a time, in threads. Each takes about 20 bytes a pixel of memory.
        progress: called with each outcome as it is known, in this thread.

    Returns:
        An outcome per photo, in the order of the plan.

    Raises:
        ValueError: a word for `who`, or a number of jobs, that there is not.
        MissingExtraError: faces must be found and the extra for that is not installed.
        OSError: the output folder cannot be made.
    """
    check_who(who, enrolment)
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise ValueError(f"jobs must be a whole number, 1 or more, got {jobs!r}")
    options = {"who": who, "quality": quality, "strip_gps": strip_gps, "strip_metadata": strip_metadata}
    made_by: dict[str, Any] = {**options, "cloak": cloak.id, "person": _person(enrolment)}
    originals = {_file_id(source) for source, _ in plan.photos if source.exists()}
    work = partial(
        _protect,
        cloak=cloak,
        enrolment=enrolment,
        options=options,
        made_by=made_by,
        originals=originals,
        record=_Record(plan.manifest, dry_run),
        memory=None if again else _Memory(),
        overwrite=overwrite,
        dry_run=dry_run,
    )
    outcomes: dict[Future[Outcome], Outcome] = {}
    with ThreadPoolExecutor(jobs, "fastcloak") as executor:
        futures = [executor.submit(work, source, destination) for source, destination in plan.photos]
        try:
            for future in as_completed(futures):
                outcomes[future] = future.result()
                if progress:
                    progress(outcomes[future])
        except BaseException:
            executor.shutdown(cancel_futures=True)
            # Photos that were on the way are done now.
            for future in futures:
                if progress and future not in outcomes and not future.cancelled() and future.exception() is None:
                    progress(future.result())
            raise
    return [outcomes[future] for future in futures]


def _protect(
    source: Path,
    destination: Path,
    *,
    cloak: Cloak,
    enrolment: Enrolment | None,
    options: dict[str, Any],
    made_by: dict[str, Any],
    originals: set[tuple[int, int]],
    record: _Record,
    memory: _Memory | None,
    overwrite: bool,
    dry_run: bool,
) -> Outcome:
    began = time.perf_counter()
    claimed = False
    try:
        payload = source.read_bytes()
        entry = {**made_by, "source": _sha256(payload)}
        # Before the claim: the words must not depend on which of two photos with one destination comes first.
        if destination.exists() and _file_id(destination) in originals:
            raise FileExistsError(f"{destination} is one of the originals; name another folder")
        record.claim(destination, source)
        claimed = True
        if destination.exists():
            there = record.written(destination, _sha256(destination.read_bytes()))
            if there is not None and there == entry:
                return Outcome(source, destination, DONE_BEFORE, seconds=time.perf_counter() - began)
            if there is None and not overwrite:
                raise FileExistsError(f"{destination} exists; name another folder or pass --overwrite")
        if memory is not None and memory.knows(source, entry):
            raise AlreadyProtectedError(f"{source} {ALREADY_PROTECTED}")
        new, done = protect_payload(
            payload, source, destination, cloak, enrolment=enrolment, again=memory is None, **options
        )
        if done.uncertain:
            entry["uncertain"] = done.uncertain  # not as an entry of the next run, which so says it again
        if not dry_run:
            destination.parent.mkdir(parents=True, exist_ok=True)
            record.add(destination, entry, _sha256(new))
            atomic_write(destination, new)
        status = PLANNED if dry_run else PROTECTED
        seconds = time.perf_counter() - began
        return Outcome(
            source, destination, status, done.faces, done.face_sizes, done.warnings, done.uncertain, seconds=seconds
        )
    except MissingExtraError:
        raise
    except Exception as error:  # one photo's fault, whatever it is, must not stop the others
        if claimed:
            record.release(destination)
        seconds = time.perf_counter() - began
        if isinstance(error, AlreadyProtectedError):
            return Outcome(source, destination, ALREADY, error=str(error), seconds=seconds)
        return Outcome(
            source, destination, FAILED, reason=type(error).__name__, error=str(error) or repr(error), seconds=seconds
        )


class _Record:
    """What was written where, in this run and earlier ones; shared by threads."""

    def __init__(self, manifest: Path | None, dry_run: bool) -> None:
        self._manifest, self._dry_run = manifest, dry_run
        self._lock = threading.Lock()
        self._claimed: dict[str, Path] = {}
        self._entries: dict[tuple[str, str], dict[str, Any]] = {}
        for photo, sha256, entry in _entries(manifest):
            self._entries[photo, sha256] = entry

    def claim(self, destination: Path, source: Path) -> None:
        """Refuse a destination that another photo of this run has."""
        # Whether upper and lower case differ is the file system's affair; two photos must not meet on any.
        key = str(destination).casefold()
        with self._lock:
            if key in self._claimed:
                raise FileExistsError(
                    f"another photo is called {destination.name} too, {self._claimed[key]}; protect them one after the "
                    "other, each with its own -o"
                )
            self._claimed[key] = source

    def release(self, destination: Path) -> None:
        """Leave a destination, to which nothing was written, to another photo."""
        with self._lock:
            del self._claimed[str(destination).casefold()]

    def written(self, destination: Path, sha256: str) -> dict[str, Any] | None:
        """What a run said of these bytes when it wrote them there, or None."""
        return self._entries.get((self._name(destination), sha256))

    def add(self, destination: Path, entry: dict[str, Any], sha256: str) -> None:
        """Remember what is about to be written."""
        if self._manifest is None or self._dry_run:
            return
        # A new line first: the last one may have been cut off by a crash.
        line = "\n" + json.dumps({"photo": self._name(destination), "sha256": sha256, **entry})
        with self._lock, open(self._manifest, "a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def _name(self, destination: Path) -> str:
        return destination.name if self._manifest is None else destination.relative_to(self._manifest.parent).as_posix()


class _Memory:
    """What the manifests of the folders that photos are in say of them; shared by threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._written: dict[Path, dict[str, list[dict[str, Any]]]] = {}

    def knows(self, source: Path, entry: dict[str, Any]) -> bool:
        """Whether this photo, whatever its name is now, was written with the cloak of `entry` for the same faces."""
        with self._lock:
            written = [
                line for folder in source.resolve().parents for line in self._of(folder).get(entry["source"], ())
            ]
        return any(all(line.get(name) == entry[name] for name in ("cloak", "who", "person")) for line in written)

    def _of(self, folder: Path) -> dict[str, list[dict[str, Any]]]:
        if folder not in self._written:
            self._written[folder] = {}
            with suppress(OSError):  # a folder further up may be closed to us
                for _, sha256, entry in _entries(folder / MANIFEST):
                    self._written[folder].setdefault(sha256, []).append(entry)
        return self._written[folder]


def _entries(manifest: Path | None) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, SHA-256 and the rest of each line that can be read."""
    for line in _lines(manifest):
        try:
            entry = json.loads(line)
            photo, sha256 = str(entry.pop("photo")), str(entry.pop("sha256"))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # cut off by a crash, or not ours
            continue
        yield photo, sha256, entry


def _lines(manifest: Path | None) -> list[str]:
    if manifest is None or not manifest.exists():
        return []
    return manifest.read_text(encoding="utf-8", errors="replace").splitlines()


def _person(enrolment: Enrolment | None) -> str | None:
    if enrolment is None:
        return None
    center = enrolment.center.cpu().numpy().tobytes()
    return _sha256(center + repr((enrolment.surrogate.name, enrolment.threshold)).encode())


def _sha256(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()


def _file_id(path: Path) -> tuple[int, int]:
    """What stays the same whatever name a file goes by: links, `..`, upper and lower case."""
    status = path.stat()
    return status.st_dev, status.st_ino
