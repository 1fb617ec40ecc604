"""People and where their photos are: a folder with a folder for each person, or a manifest."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastcloak.system import packages
from fastcloak.system.files import cloak_file

__all__ = ["read_people"]

EXAMPLE = '{"person": "anna", "photos": ["anna/1.jpg", "anna/2.jpg"]}'


def read_people(people: str | os.PathLike[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each person's name and absolute paths of photos, in the order of names or of the manifest.

    Args:
        people: a folder whose subfolders, except hidden ones, are people. Or a manifest: a .jsonl file with lines such
            as `{"person": "anna", "photos": ["anna/1.jpg"]}`, or a .parquet file with these two columns. Relative
            paths count from the manifest's folder; a path may be a folder of photos. No photo is opened.

    Raises:
        FileNotFoundError: the folder or manifest is not there.
        ValueError: it holds no person, a line is no person, a name is not UTF-8 text, or two cloaks would take one
            file where upper and lower case are the same. The message says where.
        MissingExtraError: a Parquet manifest without the extra `ray`.
    """
    source = Path(people).absolute()  # other machines have other current folders
    if not source.exists():
        raise FileNotFoundError(f"people must be a folder or a manifest, got no such path: {source}; check its name")
    readers = {".jsonl": _lines, ".parquet": _table}
    read = _folders if source.is_dir() else readers.get(source.suffix.lower())
    if read is None:
        raise ValueError(f"people must be a folder of people or a manifest ({', '.join(readers)}), got {source}")
    seen: dict[bytes, str] = {}
    for where, entry in read(source):
        name, photos = _checked(entry, where)
        key = hashlib.blake2b(cloak_file(name).casefold().encode(), digest_size=16).digest()
        if key in seen:
            raise ValueError(
                f"{where}: people must have names of their own, got {name!r} after {seen[key]}, whose cloak would take "
                "the same file; join their photos or rename one"
            )
        seen[key] = where
        yield name, [str(source.parent / photo) for photo in photos]
    if not seen:
        raise ValueError(f"people must hold at least one person, got none in {source}; each is a folder of photos")


def _folders(source: Path) -> Iterator[tuple[str, Any]]:
    with os.scandir(source) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    for name in names:
        path = str(source / name)
        yield path, {"person": name, "photos": [path]}


def _lines(manifest: Path) -> Iterator[tuple[str, Any]]:
    with open(manifest, "rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{manifest}, line {number}"
            try:
                if line.strip():
                    yield where, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where} must be a line such as {EXAMPLE}, got no JSON: {error}") from None


def _table(manifest: Path) -> Iterator[tuple[str, Any]]:
    parquet = packages.require("pyarrow.parquet", extra="ray")
    try:
        with parquet.ParquetFile(manifest) as file:
            missing = {"person", "photos"} - set(file.schema_arrow.names)
            if missing:
                raise ValueError(f"{manifest} must have the columns person and photos, got {file.schema_arrow.names}")
            batches = file.iter_batches(columns=["person", "photos"], batch_size=1024)
            for number, entry in enumerate((entry for batch in batches for entry in batch.to_pylist()), 1):
                yield f"{manifest}, row {number}", entry
    except (OSError, packages.require("pyarrow", extra="ray").ArrowException) as error:
        raise ValueError(f"{manifest} must be a Parquet file, got {error}; write it again") from error


def _checked(entry: Any, where: str) -> tuple[str, list[str]]:
    if not isinstance(entry, dict) or not {"person", "photos"} <= set(entry):
        raise ValueError(f"{where} must be a line such as {EXAMPLE}, got {str(entry)[:80]}")
    name, photos = entry["person"], entry["photos"]
    if not isinstance(photos, list) or not photos or not all(isinstance(photo, str) and photo for photo in photos):
        raise ValueError(f"{where}: photos must be a list of one or more paths, got {str(photos)[:80]}")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}: the person's name must be text, got {name!r}")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where!r}: the person's name must be UTF-8 text, got {name!r}; rename it") from None
    return name, photos
