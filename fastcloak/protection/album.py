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
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from fastcloak.cloak import Cloak
from fastcloak.photos.detection import check_who
from fastcloak.photos.files import SUFFIXES
from fastcloak.photos.inputs import photo_files
from fastcloak.protection.enrolment import Enrolment
from fastcloak.protection.photo import ALREADY_PROTECTED, protect_payload
from fastcloak.system.checks import whole
from fastcloak.system.errors import AlreadyProtectedError, MissingExtraError
from fastcloak.system.files import atomic_write

__all__ = ["MANIFEST", "Outcome", "Plan", "plan_photos", "protect_photos", "read_manifest"]

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
    options = {"who": who, "quality": quality, "strip_gps": strip_gps, "strip_metadata": strip_metadata}
    run = _Run(plan, cloak, options, again=again, overwrite=overwrite, dry_run=dry_run)
    outcomes: dict[Future[Outcome], Outcome] = {}
    with ThreadPoolExecutor(jobs, "fastcloak") as executor:
        futures = [executor.submit(run.protect, source, destination) for source, destination in plan.photos]
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


class _Run:
    """A call of `protect_photos`: what is asked, and what was written in this run and earlier ones; used by threads."""

    def __init__(
        self, plan: Plan, cloak: Cloak, options: dict[str, Any], *, again: bool, overwrite: bool, dry_run: bool
    ) -> None:
        self._cloak, self._options = cloak, options
        self._again, self._overwrite, self._dry_run = again, overwrite, dry_run
        self._made_by = {**options, "cloak": cloak.id, "person": None}
        person = options["who"]
        if isinstance(person, Enrolment):
            known_by = repr((person.surrogate.name, person.threshold)).encode()
            self._made_by |= {"who": "me", "person": _sha256(person.center.cpu().numpy().tobytes() + known_by)}
        self._originals = {_file_id(source) for source, _ in plan.photos if source.exists()}
        self._manifest = plan.manifest
        self._written = read_manifest(plan.manifest)
        self._memories: dict[Path, dict[str, list[dict[str, Any]]]] = {}
        self._claimed: dict[str, Path] = {}
        self._lock = threading.Lock()

    def protect(self, source: Path, destination: Path) -> Outcome:
        began = time.perf_counter()
        try:
            outcome = self._claim_and_protect(source, destination)
        except MissingExtraError:
            raise
        except AlreadyProtectedError as error:
            outcome = Outcome(source, destination, ALREADY, error=str(error))
        except Exception as error:  # one photo's fault, whatever it is, must not stop the others
            message = str(error) or repr(error)
            outcome = Outcome(source, destination, FAILED, reason=type(error).__name__, error=message)
        return replace(outcome, seconds=time.perf_counter() - began)

    def _claim_and_protect(self, source: Path, destination: Path) -> Outcome:
        payload = source.read_bytes()
        # Before the claim: the message must not depend on which of two photos with one destination comes first.
        if destination.exists() and _file_id(destination) in self._originals:
            raise FileExistsError(f"{destination} is one of the originals; name another folder")
        # Whether upper and lower case differ is the file system's affair; two photos must not meet on any.
        key = str(destination).casefold()
        with self._lock:
            if key in self._claimed:
                raise FileExistsError(
                    f"another photo is called {destination.name} too, {self._claimed[key]}; protect them one after the "
                    "other, each with its own -o"
                )
            self._claimed[key] = source
        try:
            return self._protect_claimed(payload, source, destination)
        except Exception:
            with self._lock:  # nothing was written: another photo may have the destination
                del self._claimed[key]
            raise

    def _protect_claimed(self, payload: bytes, source: Path, destination: Path) -> Outcome:
        entry = {**self._made_by, "source": _sha256(payload)}
        name = destination.name
        if self._manifest is not None:
            name = destination.relative_to(self._manifest.parent).as_posix()
        if destination.exists():
            lines = self._written.get(_sha256(destination.read_bytes()), ())
            written = [line for line in lines if line["photo"] == name]
            if written and written[-1] == {"photo": name, "sha256": written[-1]["sha256"], **entry}:
                return Outcome(source, destination, DONE_BEFORE)
            if not written and not self._overwrite:
                raise FileExistsError(f"{destination} exists; name another folder or pass --overwrite")
        if not self._again and self._is_remembered(source, entry):
            raise AlreadyProtectedError(f"{source} {ALREADY_PROTECTED}")
        new, done = protect_payload(payload, source, destination, self._cloak, again=self._again, **self._options)
        if done.uncertain:
            entry["uncertain"] = done.uncertain  # not as an entry of the next run, which so says it again
        if not self._dry_run:
            destination.parent.mkdir(parents=True, exist_ok=True)
            self._record({"photo": name, "sha256": _sha256(new), **entry})
            atomic_write(destination, new)
        status = PLANNED if self._dry_run else PROTECTED
        return Outcome(source, destination, status, done.faces, done.face_sizes, done.warnings, done.uncertain)

    def _is_remembered(self, source: Path, entry: dict[str, Any]) -> bool:
        """Whether a manifest says that this photo, whatever its name is now, was written with this cloak and `who`."""
        for folder in source.resolve().parents:
            with self._lock:
                if folder not in self._memories:
                    self._memories[folder] = {}
                    with suppress(OSError):  # a folder further up may be closed to us
                        self._memories[folder] = read_manifest(folder / MANIFEST)
            for line in self._memories[folder].get(entry["source"], ()):
                if all(line.get(name) == entry[name] for name in ("cloak", "who", "person")):
                    return True
        return False

    def _record(self, line: dict[str, Any]) -> None:
        if self._manifest is not None:
            with self._lock, open(self._manifest, "a", encoding="utf-8") as file:
                file.write("\n" + json.dumps(line))  # a new line first: a crash may have cut off the last one
                file.flush()
                os.fsync(file.fileno())


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
