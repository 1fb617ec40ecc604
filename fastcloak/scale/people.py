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

__all__ = ["cloak_file", "read_people"]

MANIFESTS = (".jsonl", ".parquet")
CURE = 'a line such as {"person": "anna", "photos": ["anna/1.jpg", "anna/2.jpg"]}'

Person = tuple[str, list[str]]


def read_people(source: str | os.PathLike[str]) -> Iterator[Person]:
    """Names and photos of people one after the other; those of a folder are not looked into.

    Args:
        source: a folder whose subfolders, but for hidden ones, are people; or a manifest: a .jsonl file with a line
            `{"person": "anna", "photos": ["anna/1.jpg", ...]}` each, or a .parquet file with these two columns.
            Paths that are not absolute count from the manifest's folder; a path may be a folder of photos.

    Returns:
        For each person the name and absolute paths of photos or folders: in order of names, or that of the manifest.

    Raises:
        FileNotFoundError: the source is not there.
        ValueError: no person in it, a person twice (or two whose cloaks would take files that differ only in upper and
            lower case), a name that is not UTF-8 text, or a line that is no person; it says where.
        MissingExtraError: a Parquet manifest without the extra `ray`.
    """
    source = Path(source).absolute()  # other machines' current folders are others
    if not source.exists():
        raise FileNotFoundError(f"source must be a folder or a manifest, got no such path: {source}; check its name")
    if source.is_dir():
        found = _folders(source)
    elif source.suffix.lower() == ".jsonl":
        found = _lines(source)
    elif source.suffix.lower() == ".parquet":
        found = _table(source)
    else:
        raise ValueError(f"source must be a folder of people or a manifest ({', '.join(MANIFESTS)}), got {source}")
    seen: dict[bytes, str] = {}
    for where, name, photos in found:
        key = hashlib.blake2b(cloak_file(name).casefold().encode(), digest_size=16).digest()
        if key in seen:
            raise ValueError(
                f"{where}: people must have names of their own, got {name!r} after {seen[key]}, whose cloak would take "
                "the same file; join their photos or rename one"
            )
        seen[key] = where
        yield name, photos
    if not seen:
        raise ValueError(f"source must hold at least one person, got none in {source}; each is a folder of photos")


def _folders(source: Path) -> Iterator[tuple[str, str, list[str]]]:
    with os.scandir(source) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    for name in names:
        path = str(source / name)
        yield path, _checked_name(name, path), [path]


def _lines(manifest: Path) -> Iterator[tuple[str, str, list[str]]]:
    with open(manifest, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{manifest}, line {number}"
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where} must be {CURE}, got no JSON: {error}") from None
            yield where, *_checked(entry, where, manifest.parent)


def _table(manifest: Path) -> Iterator[tuple[str, str, list[str]]]:
    parquet = packages.require("pyarrow.parquet", extra="ray")
    try:
        with parquet.ParquetFile(manifest) as file:
            missing = {"person", "photos"} - set(file.schema_arrow.names)
            if missing:
                raise ValueError(f"{manifest} must have the columns person and photos, got {file.schema_arrow.names}")
            number = 0
            for batch in file.iter_batches(columns=["person", "photos"], batch_size=1024):
                for entry in batch.to_pylist():
                    number += 1
                    where = f"{manifest}, row {number}"
                    yield where, *_checked(entry, where, manifest.parent)
    except (OSError, packages.require("pyarrow", extra="ray").ArrowException) as error:
        raise ValueError(f"{manifest} must be a Parquet file, got {error}; write it anew") from error


def _checked(entry: Any, where: str, folder: Path) -> Person:
    if not isinstance(entry, dict) or not {"person", "photos"} <= set(entry):
        raise ValueError(f"{where} must be {CURE}, got {str(entry)[:80]}")
    photos = entry["photos"]
    if not isinstance(photos, list) or not photos or not all(isinstance(photo, str) and photo for photo in photos):
        raise ValueError(f"{where}: photos must be a list of one or more paths, got {str(photos)[:80]}")
    return _checked_name(entry["person"], where), [str(folder / photo) for photo in photos]


def _checked_name(name: Any, where: str) -> str:
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}: the person's name must be text, got {name!r}")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where!r}: the person's name must be UTF-8 text, got {name!r}; rename it") from None
    return name
