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
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from fastcloak.cloak import Cloak
from fastcloak.photos.detection import check_who
from fastcloak.photos.files import SUFFIXES
from fastcloak.photos.inputs import photo_files
from fastcloak.protection.enrolment import Enrolment
from fastcloak.protection.photo import ALREADY_PROTECTED, ProtectedPhoto, protect_payload
from fastcloak.system.checks import whole
from fastcloak.system.errors import AlreadyProtectedError, MissingExtraError
from fastcloak.system.files import atomic_write

__all__ = [
    "MANIFEST",
    "AlbumRun",
    "Opened",
    "Outcome",
    "Plan",
    "plan_photos",
    "protect_photos",
    "read_manifest",
    "who_in_lines",
]

MANIFEST = ".fastcloak.jsonl"
FREE = ("photo", "sha256", "faces")
"""What a line says of the written photo alone; all else must be the same for a photo to be done before."""
PROTECTED, DONE_BEFORE, PLANNED, ALREADY, FAILED = "protected", "done before", "planned", "already protected", "failed"
Made = TypeVar("Made")


@dataclass(frozen=True)
class Plan:
    """Which photo goes where.

    Attributes:
        photos: (source, destination), in order, each source once.
        manifest: the file that remembers what was done, or None for a single photo with a name of its own.
    """

    photos: tuple[tuple[Path, Path], ...]
    manifest: Path | None

    def rounds(self) -> Iterator[list[tuple[Path, Path]]]:
        """The photos in order, in rounds with each destination once: a second one must wait for what becomes of it."""
        left = list(self.photos)
        while left:
            first: dict[str, tuple[Path, Path]] = {}
            for photo in left:
                first.setdefault(_place(photo[1]), photo)
            yield list(first.values())
            left = [photo for photo in left if first[_place(photo[1])] != photo]


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
        error: what went wrong.
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
    who: str | Enrolment = "largest",
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
    and options. A destination that an earlier run wrote otherwise, and nobody changed since, is written again.

    A photo is already protected if its faces carry the cloak, or if the `.fastcloak.jsonl` of a folder that it is in
    says that it was written with this cloak, for the same faces.

    Args:
        plan: from `plan_photos`.
        cloak: the person's.
        who, quality, strip_gps, strip_metadata: see `protect_photo`.
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
    if not isinstance(who, Enrolment):
        check_who(who)
    jobs = whole("jobs", jobs, 1)
    saving = {"quality": quality, "strip_gps": strip_gps, "strip_metadata": strip_metadata}
    made_by = {**who_in_lines(who), **saving, "cloak": cloak.id}

    def needs_none(line: Mapping[str, Any]) -> bool:
        return all(line.get(name) == made_by[name] for name in ("cloak", "who", "person"))

    run = AlbumRun(plan, made_by, needs_none, ALREADY_PROTECTED, again=again, overwrite=overwrite, dry_run=dry_run)

    def protected(opened: Opened) -> Outcome:
        options: dict[str, Any] = {"who": who, **saving, "again": again}
        made = protect_payload(opened.payload, opened.source, opened.destination, cloak, **options)
        return run.write(opened, *made)

    def protect(source: Path, destination: Path) -> Outcome:
        return run.attempt(run.open(source, destination), protected)

    outcomes: dict[Future[Outcome], Outcome] = {}
    with ThreadPoolExecutor(jobs, "fastcloak") as executor:
        futures = [executor.submit(protect, source, destination) for source, destination in plan.photos]
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


def who_in_lines(who: str | Enrolment) -> dict[str, str | None]:
    """Whose faces are meant, as a manifest says it: of an enrolment nothing but a hash."""
    if not isinstance(who, Enrolment):
        return {"who": who, "person": None}
    known_by = repr((who.surrogate.name, who.threshold)).encode()
    return {"who": "me", "person": _sha256(who.center.cpu().numpy().tobytes() + known_by)}


@dataclass(frozen=True)
class Opened:
    """A photo on its way: it was read, and its destination is kept for it.

    Attributes:
        source: the photo.
        destination: where the protected photo goes.
        payload: the bytes of `source`.
        began: when it was opened, by `time.perf_counter`.
    """

    source: Path
    destination: Path
    payload: bytes
    began: float


class AlbumRun:
    """A call for an album: what is asked, and what was written in this run and earlier ones; used by threads.

    A photo is opened, something is made of it in one attempt or several, and the last one writes it.
    """

    def __init__(
        self,
        plan: Plan,
        made_by: Mapping[str, Any],
        needs_none: Callable[[Mapping[str, Any]], bool],
        refusal: str,
        *,
        again: bool,
        overwrite: bool,
        dry_run: bool,
    ) -> None:
        """Read what earlier runs wrote.

        Args:
            plan: the photos.
            made_by: what decides the protected photos besides their sources, for JSON; part of every line.
            needs_none: whether a photo that was written with this line needs no protection.
            refusal: what to say of such a photo, behind its name.
            again, overwrite, dry_run: see `protect_photos`.
        """
        self._made_by: dict[str, Any] = json.loads(json.dumps(made_by))
        self._needs_none, self._refusal = needs_none, refusal
        self._again, self._overwrite, self._dry_run = again, overwrite, dry_run
        self._originals = {_file_id(source) for source, _ in plan.photos if source.exists()}
        self._manifest = plan.manifest
        self._written = read_manifest(plan.manifest)
        self._memories: dict[Path, dict[str, list[dict[str, Any]]]] = {}
        self._claimed: dict[str, Path] = {}
        self._lock = threading.Lock()

    def open(self, source: Path, destination: Path) -> Opened | Outcome:
        """Read a photo and keep its destination for it, or say why there is nothing to do."""
        began = time.perf_counter()
        try:
            opened = Opened(source, destination, source.read_bytes(), began)
            # Before the claim: the message must not depend on which of two photos with one destination comes first.
            if destination.exists() and _file_id(destination) in self._originals:
                raise FileExistsError(f"{destination} is one of the originals; name another folder")
            self._claim(opened)
        except Exception as error:  # one photo's fault, whatever it is, must not stop the others
            return _failure(source, destination, error, began)
        return self.attempt(opened, self._looked_up)

    def attempt(self, opened: Opened | Outcome, step: Callable[[Opened], Made]) -> Made | Outcome:
        """What a step of the work gives, or the outcome of its failure; of a photo with an outcome, that."""
        if isinstance(opened, Outcome):
            return opened
        try:
            return step(opened)
        except Exception as error:  # see above
            return self.fail(opened, error)

    def fail(self, opened: Opened, error: Exception) -> Outcome:
        """The outcome of a photo's failure; another photo may have its destination.

        Raises:
            MissingExtraError: the error is one, which every photo would meet.
        """
        with self._lock:
            del self._claimed[_place(opened.destination)]
        if isinstance(error, MissingExtraError):
            raise error
        return _failure(opened.source, opened.destination, error, opened.began)

    def write(self, opened: Opened, payload: bytes, done: ProtectedPhoto, **more: Any) -> Outcome:
        """Write a protected photo, its line first; in a dry run say what would be written.

        Args:
            opened: from `open`.
            payload: the bytes of the protected photo.
            done: what is in it.
            more: what else the line says.

        Raises:
            OSError: a file cannot be written.
        """
        if not self._dry_run:
            line = {"photo": self._name(opened.destination), "sha256": _sha256(payload), **self._entry(opened), **more}
            if done.uncertain:
                line["uncertain"] = done.uncertain  # not as an entry of the next run, which so says it again
            opened.destination.parent.mkdir(parents=True, exist_ok=True)
            self._record(line)
            atomic_write(opened.destination, payload)
        status = PLANNED if self._dry_run else PROTECTED
        found = done.faces, done.face_sizes, done.warnings, done.uncertain
        return Outcome(opened.source, opened.destination, status, *found, seconds=time.perf_counter() - opened.began)

    def earlier(self) -> list[Path]:
        """The photos in the output folder that earlier runs wrote, in their order."""
        names = dict.fromkeys(line["photo"] for lines in self._written.values() for line in lines)
        return [] if self._manifest is None else [self._manifest.parent / name for name in names]

    def line_of(self, destination: Path, payload: bytes) -> dict[str, Any] | None:
        """The line with which a photo with these bytes was written there, if one was."""
        name = self._name(destination)
        lines = [line for line in self._written.get(_sha256(payload), ()) if line["photo"] == name]
        return lines[-1] if lines else None

    @staticmethod
    def is_source(payload: bytes, line: Mapping[str, Any]) -> bool:
        """Whether a line is of a photo that was made of these bytes."""
        return bool(line.get("source") == _sha256(payload))

    def _claim(self, opened: Opened) -> None:
        place = _place(opened.destination)
        with self._lock:
            if place in self._claimed:
                raise FileExistsError(
                    f"another photo is called {opened.destination.name} too, {self._claimed[place]}; protect them one "
                    "after the other, each with its own -o"
                )
            self._claimed[place] = opened.source

    def _looked_up(self, opened: Opened) -> Opened | Outcome:
        source, destination, entry = opened.source, opened.destination, self._entry(opened)
        if destination.exists():
            line = self.line_of(destination, destination.read_bytes())
            if line and {name: value for name, value in line.items() if name not in FREE} == entry:
                return Outcome(source, destination, DONE_BEFORE, seconds=time.perf_counter() - opened.began)
            if line is None and not self._overwrite:
                raise FileExistsError(f"{destination} exists; name another folder or pass --overwrite")
        if not self._again and self._is_remembered(source, entry["source"]):
            raise AlreadyProtectedError(f"{source} {self._refusal}")
        return opened

    def _entry(self, opened: Opened) -> dict[str, Any]:
        return {**self._made_by, "source": _sha256(opened.payload)}

    def _name(self, destination: Path) -> str:
        if self._manifest is None:
            return destination.name
        return destination.relative_to(self._manifest.parent).as_posix()

    def _is_remembered(self, source: Path, sha256: str) -> bool:
        """Whether a manifest says of this photo, whatever its name is now, that it needs no protection."""
        for folder in source.resolve().parents:
            with self._lock:
                if folder not in self._memories:
                    self._memories[folder] = {}
                    with suppress(OSError):  # a folder further up may be closed to us
                        self._memories[folder] = read_manifest(folder / MANIFEST)
            if any(map(self._needs_none, self._memories[folder].get(sha256, ()))):
                return True
        return False

    def _record(self, line: dict[str, Any]) -> None:
        if self._manifest is not None:
            with self._lock, open(self._manifest, "a", encoding="utf-8") as file:
                file.write("\n" + json.dumps(line))  # a new line first: a crash may have cut off the last one
                file.flush()
                os.fsync(file.fileno())


def _failure(source: Path, destination: Path, error: Exception, began: float) -> Outcome:
    seconds = time.perf_counter() - began
    if isinstance(error, AlreadyProtectedError):
        return Outcome(source, destination, ALREADY, error=str(error), seconds=seconds)
    reason, message = type(error).__name__, str(error) or repr(error)
    return Outcome(source, destination, FAILED, reason=reason, error=message, seconds=seconds)


def _place(destination: Path) -> str:
    """What no two photos may share: whether upper and lower case differ is the file system's affair."""
    return str(destination).casefold()


def read_manifest(manifest: Path | None) -> dict[str, list[dict[str, Any]]]:
    """The lines of a manifest that can be read, by the SHA-256 of the photo that was written."""
    lines: dict[str, list[dict[str, Any]]] = {}
    if manifest is None or not manifest.exists():
        return lines
    for text in manifest.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
            line |= {"photo": str(line["photo"]), "sha256": str(line["sha256"])}
            lines.setdefault(line["sha256"], []).append(line)
        except (ValueError, KeyError, TypeError, RecursionError):  # cut off by a crash, or not ours
            continue
    return lines


def _sha256(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()


def _file_id(path: Path) -> tuple[int, int]:
    """What stays the same whatever name a file goes by: links, `..`, upper and lower case."""
    status = path.stat()
    return status.st_dev, status.st_ino
