"""The index of a job: a Parquet data set with a row for everyone who was looked at."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import secrets
import time
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from fastcloak.scale.cluster import Row, table
from fastcloak.system import packages
from fastcloak.system.files import atomic_write

__all__ = ["COLUMNS", "INDEX", "Index"]

log = logging.getLogger("fastcloak")

INDEX = "index"
ROWS_PER_PART = 1000
SECONDS_PER_PART = 30.0
"""Rows that are in no file yet: at most so many, and of so long. The next job makes lost ones anew of the cloaks."""
COLUMNS = {
    "person": "string",
    "path": "string",
    "sha256": "string",
    "eps": "double",
    "photos": "int64",
    "loss": "double",
    "image_gradients": "int64",
    "seconds": "double",
    "reason": "string",
    "error": "string",
}
"""The cloak's path in the folder and the SHA-256 of that file, eps on the [0, 1] scale, photos learnt from, mean
loss of the last step, image-gradients and seconds of the person's steps; or the kind and words of the error."""


class Index:
    """`index/part-*.parquet` in a folder of cloaks, .jsonl where pyarrow is not installed; to be used with `with`.

    At the beginning rows of failures are dropped, since they are tried again, and rows whose cloak was removed. What
    was written as .jsonl becomes Parquet once pyarrow is installed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._parts = folder, folder / INDEX
        self._rows: list[Row] = []
        self._written = time.monotonic()
        self._known = np.zeros(0, np.uint64)  # sorted keys of those who have a row of an earlier job: 8 bytes a person

    def __enter__(self) -> Index:
        self._parts.mkdir(exist_ok=True)
        known = [self._known]
        for part in sorted(self._parts.glob("part-*")):
            try:
                rows = _read(part)
                kept = [row for row in rows if row["error"] is None and (self._folder / row["path"]).exists()]
            except (ValueError, KeyError, TypeError, OSError) as error:
                log.warning("%s cannot be read, its rows are made anew of the cloaks: %s", part, error)
                part.unlink()
                continue
            new = part.with_suffix(_suffix())
            if len(kept) < len(rows) or new != part:
                self._write(kept, new)  # in the place of the old one, so that a crash leaves no row twice
                if not kept or new != part:
                    part.unlink()
            known.append(np.array([_key(row["person"]) for row in kept], np.uint64))
        self._known = np.sort(np.concatenate(known))
        return self

    def __exit__(self, *error: object) -> None:
        self._flush()

    def __contains__(self, person: str) -> bool:
        """Whether the person has a row of an earlier job."""
        key = np.uint64(_key(person))
        place = int(np.searchsorted(self._known, key))
        return place < len(self._known) and bool(self._known[place] == key)

    def add(self, row: Row) -> None:
        """Take in a row with all `COLUMNS`, others are left out; it is in a file soon, and at the end."""
        self._rows.append(row)
        if len(self._rows) >= ROWS_PER_PART or time.monotonic() - self._written > SECONDS_PER_PART:
            self._flush()

    def _flush(self) -> None:
        self._write(self._rows, self._parts / f"part-{secrets.token_hex(8)}{_suffix()}")
        self._rows, self._written = [], time.monotonic()

    def _write(self, rows: Iterable[Row], path: Path) -> None:
        rows = [{name: row[name] for name in COLUMNS} for row in rows]
        if not rows:
            return
        if path.suffix == ".jsonl":
            atomic_write(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
        else:
            payload = io.BytesIO()
            import_module("pyarrow.parquet").write_table(table(rows, COLUMNS), payload)
            atomic_write(path, payload.getvalue())


def _suffix() -> str:
    return ".jsonl" if find_spec("pyarrow") is None else ".parquet"


def _read(part: Path) -> list[Row]:
    if part.suffix == ".jsonl":
        return [json.loads(line) for line in part.read_text(encoding="utf-8").splitlines()]
    rows: list[Row] = packages.require("pyarrow.parquet", extra="ray").read_table(part).to_pylist()
    return rows


def _key(person: str) -> int:
    return int.from_bytes(hashlib.blake2b(person.encode(), digest_size=8).digest(), "big")
