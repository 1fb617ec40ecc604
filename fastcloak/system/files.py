"""Write a file so that it is found whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from pathlib import Path

__all__ = ["atomic_write"]


def atomic_write(path: Path, payload: bytes) -> None:
    """Write a file: after a crash, a kill or a full disk, `path` holds the old bytes or the new ones, never a mixture.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and take the name of `path` in one
    step. A link is followed; a file that is replaced keeps its permissions.

    Raises:
        OSError: the folder is missing or read-only, the disk is full, ... The old file is as it was and no temporary
            file is left.
    """
    path = Path(os.path.realpath(path))
    temporary = path.parent / f".fastcloak-{secrets.token_hex(8)}.tmp"
    try:
        _write_and_sync(temporary, payload)
        if path.exists():
            os.chmod(temporary, path.stat().st_mode & 0o7777)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        _remove(temporary)
        raise OSError(error.errno, f"cannot write the file: {error.strerror or error}", str(path)) from error
    except BaseException:
        _remove(temporary)
        raise


def _write_and_sync(path: Path, payload: bytes) -> None:
    # Not tempfile: its files are readable by their owner only, and so would the photo be.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    with open(descriptor, "wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    # The new name is on the disk only once the folder is; Windows cannot open a folder and needs no such step.
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


_LONGEST = 200
_ALLOWED = frozenset(" -_.,+@")


def cloak_file(name: str) -> str:
    """The name of a person's cloak file: never outside its folder, never hidden, and another one for each name.

    Letters, digits and `-_.,+@` and blanks are kept, other characters become %xx.
    """
    quoted = "".join(c if c.isalnum() or c in _ALLOWED else _percent(c) for c in name)
    if quoted.startswith((".", " ")):
        quoted = _percent(quoted[0]) + quoted[1:]
    if len(quoted.encode()) > _LONGEST:  # "=" is in no quoted name
        head = quoted.encode()[: _LONGEST - 40].decode(errors="ignore")
        quoted = f"{head}={hashlib.sha256(name.encode()).hexdigest()[:32]}"
    return f"{quoted}.safetensors"


def _percent(character: str) -> str:
    return "".join(f"%{byte:02x}" for byte in character.encode())
