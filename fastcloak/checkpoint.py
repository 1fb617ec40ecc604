"""The folder in which a long fit keeps what it has done, so that it can go on after any stop.

    checkpoint.json           what is fitted with what: options, network, device, versions
    person-NAME.safetensors   the cloak of a person who is finished, an ordinary cloak file
    pass-HASH.state           a pass: who is in it, and the state after its last saved step or the hashes of its cloaks

Every file is written whole or not at all, and carries a hash or is named in one: what is damaged is fitted anew. Of
photos only hashes are kept (with `spread`, also features).
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fastcloak.atomic import atomic_write
from fastcloak.cloak import SHAPE, Cloak, CloakFileError, digest, load
from fastcloak.config import FitConfig
from fastcloak.models import Surrogate

if sys.platform != "win32":
    import fcntl

log = logging.getLogger("fastcloak")

SECONDS = 1.0
"""Time between two saved states, at least: what a kill can cost. Steps take from a millisecond to seconds."""
SHARE = 0.05
"""Of the time that may go into writing states, at most."""
MARKER = "checkpoint.json"
FORMAT = "fastcloak.checkpoint"
SCHEMA = 1
CLOSE = 1e-2
"""Distance of two embeddings of one picture, over their length, that counts as rounding; as when a model is loaded."""
CURE = "name another folder, or begin anew with resume=False (fastcloak fit: --restart)"
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_")
_LONGEST = 64

State = dict[str, torch.Tensor]


class CheckpointError(OSError):
    """A checkpoint cannot be written, or is in use.

    Attributes:
        cloaks: the cloaks of everyone who was finished, by name.
        partial: what had been learnt for those under way, by name: see `fastcloak.FitInterrupted`.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.cloaks: dict[str, Cloak] = {}
        self.partial: dict[str, Cloak] = {}


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
        """The cloak of a person who is finished, None for others. To be asked of everyone, before `start`.

        Raises:
            ValueError: there is work for a person of this name with other photos.
        """
        was, now = self._faces.get(name), digest(faces, {})
        if was not in (None, now) and (name in self._cloaks or name in self.begun):
            whose = f"the photos of {name!r}" if name else "images"
            raise ValueError(f"{whose} must be those that the checkpoint {self.folder} was begun with; {CURE}")
        self._faces[name] = now
        if name not in self._cloaks:
            return None
        path = self.folder / _file_name(name)
        try:
            if hashlib.sha256(path.read_bytes()).hexdigest() not in self._cloaks[name]:
                raise CloakFileError(f"{path} was altered or damaged")
            return load(path)
        except (OSError, CloakFileError) as error:
            log.warning("a finished cloak cannot be used, that person is fitted anew: %s", error)
            return None

    def start(self, names: Sequence[str]) -> Pass:
        """A pass of these people: from its saved state where there is one for all of them together, else anew."""
        path = self._path(names)
        if any(self.begun.get(name, tuple(names)) != tuple(names) for name in names):
            log.warning("the saved state of %s is of a pass with other people: they begin anew", ", ".join(names))
        for others in {self.begun[name] for name in names if name in self.begun} - {tuple(names)}:
            self._path(others).unlink(missing_ok=True)
        read = self._read(path) if self.begun.get(names[0]) == tuple(names) else None
        record, state = read or ({"seconds": 0.0}, {})
        return Pass(self, path, names, state, float(record["seconds"]))

    def _path(self, names: Sequence[str]) -> Path:
        return self.folder / f"pass-{_hash(json.dumps(list(names)))[:32]}.state"

    def record(self, names: Sequence[str], **more: Any) -> dict[str, Any]:
        """What the file of a pass says besides its tensors."""
        return {"identity": self._identity, "people": {name: self._faces[name] for name in names}, **more}

    def _read(self, path: Path) -> tuple[dict[str, Any], State] | None:
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
            log.warning("%s cannot be used, its people are fitted anew: %s", path, error)
            return None
        return record, state


class Pass:
    """A pass under way.

    Attributes:
        state: what `Loop.state` gave after the last saved step; empty where there is none.
        seconds: what it took to get there.
    """

    def __init__(self, checkpoint: Checkpoint, path: Path, names: Sequence[str], state: State, seconds: float) -> None:
        self.state, self.seconds = state, seconds
        self._checkpoint, self._path, self._names = checkpoint, path, names
        self._began = self._saved = time.monotonic()
        self._took = 0.0

    def save(self, state: Callable[[], State]) -> None:
        """To call after each step: saves the state where the last one is old enough.

        Raises:
            CheckpointError: it cannot be written; the last one is as it was.
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
            path = self._checkpoint.folder / _file_name(name)
            with _words():
                cloak.save(path)
                hashes[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        if hashes:
            self._write(list(hashes), {}, cloaks=hashes)
        else:
            self._path.unlink(missing_ok=True)

    def _write(self, names: Sequence[str], tensors: State, **more: Any) -> None:
        metadata = {"record": json.dumps(self._checkpoint.record(names, **more))}
        metadata["sha256"] = _seal(tensors, metadata)
        with _words():
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


@contextmanager
def claim(
    folder: str | os.PathLike[str], fit: Mapping[str, Any], *, resume: bool = True, cure: str = CURE
) -> Iterator[str]:
    """Keep a folder to oneself, and to fits like this one; `open_checkpoint` has arguments and errors.

    Args:
        folder, fit, resume: as there.
        cure: what to do about a folder of another fit, in words.

    Returns:
        What tells this folder's work from that of any other, 32 hexadecimal digits.
    """
    folder = Path(folder)
    with _words():
        try:
            folder.mkdir(exist_ok=True)
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, f"make {folder.parent} first, it is not there", str(folder)) from None
        except FileExistsError:
            raise NotADirectoryError(errno.ENOTDIR, "it must be a folder, and is a file", str(folder)) from None
    with _locked(folder):
        marker = folder / MARKER
        if not marker.exists() and any(not file.name.startswith(".") for file in folder.iterdir()):
            raise ValueError(f"checkpoint must be a new or empty folder, or one of an earlier fit, got {folder}")
        for left in folder.glob(".fastcloak-*.tmp"):  # by a kill
            left.unlink(missing_ok=True)
        if not resume:
            _empty(folder)
        wanted = json.loads(json.dumps(dict(fit)))
        if marker.exists():
            identity = _identity(marker, wanted, cure)
        else:
            identity = secrets.token_hex(16)
            described = {"format": FORMAT, "schema": SCHEMA, "identity": identity, "fit": wanted}
            with _words():
                atomic_write(marker, json.dumps(described, indent=1).encode())
        yield identity


def clear(folder: str | os.PathLike[str]) -> None:
    """Remove a checkpoint: its files and, if nothing else is in it, the folder. None there is no error."""
    folder = Path(folder)
    if (folder / MARKER).exists():
        _empty(folder)
        if not any(folder.iterdir()):
            folder.rmdir()


def fingerprint(surrogate: Surrogate, loaded: Surrogate, config: FitConfig, **more: Any) -> dict[str, Any]:
    """What must be the same for a fit to go on, for JSON.

    A network is known by its names, its weights and its embedding of a picture: a function has no weights to compare.

    Args:
        surrogate: the prepared one.
        loaded: as it was loaded; preparing it may round differently.
        config: the options.
        more: device, backend, versions ...
    """
    picture = torch.rand(1, 3, 7, 7, generator=torch.Generator().manual_seed(0)).repeat_interleave(SHAPE[1] // 7, 2)
    picture = picture.repeat_interleave(SHAPE[2] // 7, 3).to(surrogate.device)
    # The caller's network may draw random numbers.
    with torch.no_grad(), torch.random.fork_rng([surrogate.device] if surrogate.device.type == "cuda" else []):
        embedding = surrogate(picture)[0]
    tensors = (*loaded.named_parameters(), *loaded.named_buffers())
    weights = _hash("".join(digest(tensor.detach().cpu(), {"name": name}) for name, tensor in tensors))
    network = {"networks": [one.name for one in surrogate.members], "weights": weights, "embedding": embedding.tolist()}
    return {**asdict(config), **more, **network}


def _identity(marker: Path, fit: Mapping[str, Any], cure: str) -> str:
    """The identity of the fit that a folder is of, if it is this one."""
    try:
        described = json.loads(marker.read_bytes())
        if (described["format"], described["schema"]) != (FORMAT, SCHEMA):
            raise ValueError(f"schema {described['schema']!r}, this version reads {SCHEMA}")
        identity, was = str(described["identity"]), dict(described["fit"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{marker} is damaged or no checkpoint ({error}); {cure}") from error
    differ = []
    for name in sorted({*was, *fit}):
        a, b = was.get(name), fit.get(name)
        if name == "embedding":
            if not _alike(a, b):
                differ.append("the network gave other embeddings")
        elif a != b:
            differ.append("the network had other weights" if name == "weights" else f"{name} was {a!r} and is {b!r}")
    if differ:
        raise ValueError(f"the checkpoint {marker.parent} is of another fit: {'; '.join(differ)}; {cure}")
    return identity


def _alike(a: Any, b: Any) -> bool:
    try:
        one, other = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        return False
    return one.shape == other.shape and bool((one - other).norm() <= CLOSE * torch.maximum(one.norm(), other.norm()))


def _empty(folder: Path) -> None:
    """Remove all files of a checkpoint, in an order that leaves a valid one at every moment."""
    with _words():
        for pattern in ("pass-*.state", "person-*.safetensors", ".fastcloak-*.tmp", MARKER):
            for path in folder.glob(pattern):
                path.unlink(missing_ok=True)


def _file_name(name: str) -> str:
    """A file for each name: none outside the folder, none for two names, whatever the file system folds together."""
    raw = name.encode("utf-8", "surrogatepass")
    quoted = "".join(chr(byte) if byte in _PLAIN else f"%{byte:02x}" for byte in raw)
    if len(quoted) > _LONGEST:  # "=" is in no quoted name
        quoted = f"{quoted[:_LONGEST]}={hashlib.sha256(raw).hexdigest()[:32]}"
    return f"person-{quoted}.safetensors"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _seal(tensors: State, metadata: Mapping[str, str]) -> str:
    """SHA-256 over the metadata other than the hash itself, and names, dtypes, shapes and values of the tensors."""
    hashed = sorted((name, value) for name, value in metadata.items() if name != "sha256")
    return _hash(json.dumps([hashed, [[name, digest(tensors[name], {})] for name in sorted(tensors)]]))


@contextmanager
def _words() -> Iterator[None]:
    """Turns what writing raises into a CheckpointError that names the file."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(error.errno, f"checkpoint: {error.strerror or error}", error.filename) from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out of the folder; the system lets go when this one ends, however it does."""
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            words = "checkpoint: another fit is using this folder; wait for it, or name another"
            raise CheckpointError(errno.EWOULDBLOCK, words, str(folder)) from None
        except OSError as error:  # a file system without locks
            log.debug("%s cannot be locked: %s", folder, error)
        yield
    finally:
        os.close(descriptor)
