"""Files: written whole or not at all, and safe names for them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from pathlib import Path

__all__ = ["atomic_write", "cloak_file", "safe_name"]

_LONGEST = 200
_LONGEST_CASELESS = 100  # with a prefix and a suffix below 143 bytes, which encrypted file systems leave
_KEPT = frozenset(" -_.,+@")
_CASELESS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")


def atomic_write(path: Path, payload: bytes) -> None:
    """Write a file: after a crash, a kill or a full disk, `path` holds the old bytes or the new ones, never a mixture.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and take the name of `path` in one
    step. A link is followed; a file that is replaced keeps its permissions.

    Raises:
        OSError: the folder is missing or read-only, the disk is full, ... The old file is unchanged and no temporary
            file is left.
    """
    path = Path(os.path.realpath(path))
    temporary = path.parent / f".fastcloak-{secrets.token_hex(8)}.tmp"
    try:
        # Not tempfile: its files are readable by their owner only, and so would the photo be.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        with open(descriptor, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.chmod(temporary, path.stat().st_mode & 0o7777)
        os.replace(temporary, path)
        # The new name is on the disk only once the folder is; Windows cannot open a folder and needs no such step.
        if hasattr(os, "O_DIRECTORY"):
            descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, f"cannot write the file: {error.strerror or error}", str(path)) from error
        raise


def safe_name(name: str, *, caseless: bool = False) -> str:
    """A file name for any text: another one for each, never outside its folder, never hidden.

    Letters, digits and `-_.,+@` and blanks are kept, other characters become %xx.

    Args:
        caseless: another one for each even where upper and lower case, or letters with accents, are one: only a-z,
            digits and `-_` are kept.
    """

    def quoted(character: str) -> str:
        return "".join(f"%{byte:02x}" for byte in character.encode("utf-8", "surrogatepass"))

    def is_kept(character: str) -> bool:
        return character in _CASELESS if caseless else character.isalnum() or character in _KEPT

    safe = "".join(character if is_kept(character) else quoted(character) for character in name)
    if safe.startswith((".", " ")):
        safe = quoted(safe[0]) + safe[1:]
    longest = _LONGEST_CASELESS if caseless else _LONGEST
    if len(safe.encode()) > longest:  # "=" is in no shorter name
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        safe = f"{safe.encode()[: longest - 40].decode(errors='ignore')}={digest}"
    return safe


def cloak_file(name: str) -> str:
    """The name of a person's cloak file."""
    return f"{safe_name(name)}.safetensors"
