"""The folder in which a long fit keeps what it has done, so that it can go on after any stop.

    checkpoint.json           what is fitted with what: options, network, device, versions
    person-NAME.safetensors   the cloak of a finished person, an ordinary cloak file
    pass-HASH.state           a pass: its people, and the state after its last saved step or the hashes of its cloaks

Every file is written whole or not at all, and carries a hash or is named in one: what is damaged is fitted again. Of
photos only hashes are kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fastcloak.cloak import Cloak, digest, load
from fastcloak.fitting.claim import HINT, as_checkpoint_error, claim, sha256_hex
from fastcloak.fitting.state import Tensors
from fastcloak.system.errors import CloakFileError
from fastcloak.system.files import atomic_write, safe_name

log = logging.getLogger("fastcloak")

SECONDS = 1.0
"""Time between two saved states, at least: what a kill can cost. Steps take from a millisecond to seconds."""
SHARE = 0.05
"""Of the time that may go into writing states, at most."""


class Checkpoint:
    """An open checkpoint folder; `open_checkpoint` makes one.

    Attributes:
        folder: where it is.
        begun: for everyone in a pass that was begun and not finished, the names of all in it, in order.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self._identity = folder, identity
        self.begun: dict[str, tuple[str, ...]] = {}
        self._faces: dict[str, str] = {}  # name -> hash of the aligned faces, as recorded and then as read
        self._cloaks: dict[str, set[str]] = {}  # name -> hashes of the file of a finished cloak, were it fitted twice
        for path in sorted(folder.glob("pass-*.state")):
            read = self._read(path)
            if read is None:
                path.unlink(missing_ok=True)
                continue
            record = read[0]
            self._faces |= record["people"]
            if "cloaks" in record:
                for name, known in record["cloaks"].items():
                    self._cloaks.setdefault(name, set()).add(known)
            else:
                self.begun |= dict.fromkeys(record["people"], tuple(record["people"]))

    def finished(self, name: str, faces: torch.Tensor) -> Cloak | None:
        """The cloak of a finished person, None for others. To be asked of everyone, before `start`.

        Raises:
            ValueError: there is work for a person of this name with other photos.
        """
        was, now = self._faces.get(name), digest(faces, {})
        if was not in (None, now) and (name in self._cloaks or name in self.begun):
            whose = f"the photos of {name!r}" if name else "images"
            raise ValueError(f"{whose} must be those that the checkpoint {self.folder} was begun with; {HINT}")
        self._faces[name] = now
        if name not in self._cloaks:
            return None
        path = self.folder / _cloak_file(name)
        try:
            if hashlib.sha256(path.read_bytes()).hexdigest() not in self._cloaks[name]:
                raise CloakFileError(f"{path} was altered or damaged")
            return load(path)
        except (OSError, CloakFileError) as error:
            log.warning("a finished cloak cannot be used, that person is fitted again: %s", error)
            return None

    def start(self, names: Sequence[str]) -> Pass:
        """A pass of these people, from its saved state where there is one for all of them together."""
        path = self._path(names)
        if any(self.begun.get(name, tuple(names)) != tuple(names) for name in names):
            log.warning("the saved state of %s is of a pass with other people: they begin again", ", ".join(names))
        for others in {self.begun[name] for name in names if name in self.begun} - {tuple(names)}:
            self._path(others).unlink(missing_ok=True)
        read = self._read(path) if self.begun.get(names[0]) == tuple(names) else None
        record, state = read or ({"seconds": 0.0}, {})
        return Pass(self, path, names, state, float(record["seconds"]))

    def _path(self, names: Sequence[str]) -> Path:
        return self.folder / f"pass-{sha256_hex(json.dumps(list(names)))[:32]}.state"

    def record(self, names: Sequence[str], **more: Any) -> dict[str, Any]:
        """What the file of a pass says besides its tensors."""
        return {"identity": self._identity, "people": {name: self._faces[name] for name in names}, **more}

    def _read(self, path: Path) -> tuple[dict[str, Any], Tensors] | None:
        """Record and tensors of a pass; None, with a warning, of a file that is damaged or of another fit."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                # Copies: the file is mapped into memory and may be replaced.
                state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118, it is no mapping
            if metadata.get("sha256") != _seal(state, metadata):
                raise ValueError("its hash does not match its content")
            record: dict[str, Any] = json.loads(metadata["record"])
            if record["identity"] != self._identity:
                raise ValueError("it belongs to another fit")
        except (SafetensorError, ValueError, KeyError, RuntimeError, OSError, OverflowError, MemoryError) as error:
            log.warning("%s cannot be used, its people are fitted again: %s", path, error)
            return None
        return record, state


class Pass:
    """A pass under way.

    Attributes:
        state: what `State.save` gave after the last saved step; empty where there is none.
        seconds: what it took to get there.
    """

    def __init__(
        self, checkpoint: Checkpoint, path: Path, names: Sequence[str], state: Tensors, seconds: float
    ) -> None:
        self.state, self.seconds = state, seconds
        self._checkpoint, self._path, self._names = checkpoint, path, names
        self._began = self._saved = time.monotonic()
        self._took = 0.0

    def save(self, state: Callable[[], Tensors]) -> None:
        """To call after each step: saves the state where the last one is old enough.

        Raises:
            CheckpointError: it cannot be written; the last one is unchanged.
        """
        if time.monotonic() - self._saved < max(SECONDS, self._took / SHARE):
            return
        tensors = state()
        began = time.monotonic()
        self._write(self._names, tensors, seconds=self.seconds + began - self._began)
        self._saved = time.monotonic()
        self._took = self._saved - began

    def finish(self, cloaks: Mapping[str, Cloak]) -> None:
        """Keep the cloaks that it gave, of those in it that gave one, instead of its state.

        Raises:
            CheckpointError: they cannot be written.
        """
        hashes: dict[str, str] = {}
        for name, cloak in cloaks.items():
            path = self._checkpoint.folder / _cloak_file(name)
            with as_checkpoint_error():
                cloak.save(path)
                hashes[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        if hashes:
            self._write(list(hashes), {}, cloaks=hashes)
        else:
            self._path.unlink(missing_ok=True)

    def _write(self, names: Sequence[str], tensors: Tensors, **more: Any) -> None:
        metadata = {"record": json.dumps(self._checkpoint.record(names, **more))}
        metadata["sha256"] = _seal(tensors, metadata)
        with as_checkpoint_error():
            atomic_write(self._path, save(tensors, metadata))


@contextmanager
def open_checkpoint(folder: str | os.PathLike[str], fit: Mapping[str, Any], resume: bool) -> Iterator[Checkpoint]:
    """Open a checkpoint folder, for this fit alone; makes it if it is missing.

    Args:
        folder: an empty or new folder, or that of an earlier fit.
        fit: what `fingerprint` returned.
        resume: go on with what is there; False removes it.

    Raises:
        ValueError: the folder holds something else, or what it holds is of another fit; says what differs.
        CheckpointError: it cannot be made or written, or another process is using it.
    """
    with claim(folder, fit, resume=resume) as identity:
        yield Checkpoint(Path(folder), identity)


def _cloak_file(name: str) -> str:
    return f"person-{safe_name(name, caseless=True)}.safetensors"


def _seal(tensors: Tensors, metadata: Mapping[str, str]) -> str:
    """SHA-256 over the metadata other than the hash itself, and names, dtypes, shapes and values of the tensors."""
    hashed = sorted((name, value) for name, value in metadata.items() if name != "sha256")
    return sha256_hex(json.dumps([hashed, [[name, digest(tensors[name], {})] for name in sorted(tensors)]]))
