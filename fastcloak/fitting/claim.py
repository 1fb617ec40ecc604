"""A checkpoint's folder belongs to one fit at a time, and to the same fit as before."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fastcloak.cloak import SHAPE, digest
from fastcloak.fitting.options import FitConfig
from fastcloak.models import Surrogate
from fastcloak.system.errors import CheckpointError
from fastcloak.system.files import atomic_write

if sys.platform != "win32":
    import fcntl

log = logging.getLogger("fastcloak")
MARKER = "checkpoint.json"
FORMAT = "fastcloak.checkpoint"
SCHEMA = 1
CLOSE = 1e-2
"""Distance of two embeddings of one picture, over their length, that counts as rounding; as when a model is loaded."""
HINT = "name another folder, or begin again with resume=False (fastcloak fit: --restart)"


@contextmanager
def claim(
    folder: str | os.PathLike[str], fit: Mapping[str, Any], *, resume: bool = True, hint: str = HINT
) -> Iterator[str]:
    """Keep a folder to oneself, and to fits like this one; `open_checkpoint` has arguments and errors.

    Yields what tells this folder's work from that of any other, 32 hexadecimal digits.
    """
    folder = Path(folder)
    with as_checkpoint_error():
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
            identity = _identity(marker, wanted, hint)
        else:
            identity = secrets.token_hex(16)
            described = {"format": FORMAT, "schema": SCHEMA, "identity": identity, "fit": wanted}
            with as_checkpoint_error():
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
    """What must be the same for a fit to go on, for JSON; `more` is device, backend, versions ...

    A network is known by its names, its weights as they were loaded (preparing may round differently) and its embedding
    of a picture: a function has no weights to compare.
    """
    picture = torch.rand(1, 3, 7, 7, generator=torch.Generator().manual_seed(0)).repeat_interleave(SHAPE[1] // 7, 2)
    picture = picture.repeat_interleave(SHAPE[2] // 7, 3).to(surrogate.device)
    # The caller's network may draw random numbers.
    with torch.no_grad(), torch.random.fork_rng([surrogate.device] if surrogate.device.type == "cuda" else []):
        embedding = surrogate(picture)[0]
    tensors = (*loaded.named_parameters(), *loaded.named_buffers())
    weights = sha256_hex("".join(digest(tensor.detach().cpu(), {"name": name}) for name, tensor in tensors))
    network = {"networks": [one.name for one in surrogate.members], "weights": weights, "embedding": embedding.tolist()}
    return {**asdict(config), **more, **network}


def _identity(marker: Path, fit: Mapping[str, Any], hint: str) -> str:
    """The identity of the fit that a folder is of, if it is this one."""
    try:
        described = json.loads(marker.read_bytes())
        if (described["format"], described["schema"]) != (FORMAT, SCHEMA):
            raise ValueError(f"schema {described['schema']!r}, this version reads {SCHEMA}")
        identity, was = str(described["identity"]), dict(described["fit"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{marker} is damaged or no checkpoint ({error}); {hint}") from error
    differ = []
    for name in sorted({*was, *fit}):
        a, b = was.get(name), fit.get(name)
        if name == "embedding":
            if not _alike(a, b):
                differ.append("the network gave other embeddings")
        elif a != b:
            differ.append("the network had other weights" if name == "weights" else f"{name} was {a!r} and is {b!r}")
    if differ:
        raise ValueError(f"the checkpoint {marker.parent} is of another fit: {'; '.join(differ)}; {hint}")
    return identity


def _alike(a: Any, b: Any) -> bool:
    try:
        one, other = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        return False
    return one.shape == other.shape and bool((one - other).norm() <= CLOSE * torch.maximum(one.norm(), other.norm()))


def _empty(folder: Path) -> None:
    """Remove all files of a checkpoint, in an order that leaves a valid one at every moment."""
    with as_checkpoint_error():
        for pattern in ("pass-*.state", "person-*.safetensors", ".fastcloak-*.tmp", MARKER):
            for path in folder.glob(pattern):
                path.unlink(missing_ok=True)


def sha256_hex(text: str) -> str:
    """SHA-256 of a text, 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def as_checkpoint_error() -> Iterator[None]:
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
            message = "checkpoint: another fit is using this folder; wait for it, or name another"
            raise CheckpointError(errno.EWOULDBLOCK, message, str(folder)) from None
        except OSError as error:  # a file system without locks
            log.debug("%s cannot be locked: %s", folder, error)
        yield
    finally:
        os.close(descriptor)
