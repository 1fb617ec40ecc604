"""The index of a job: a data set with a row per person."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import secrets
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from fastcloak.scale.rows import INDEXED, Row, table
from fastcloak.system import packages
from fastcloak.system.files import atomic_write

__all__ = ["INDEX", "Index"]

log = logging.getLogger("fastcloak")

INDEX = "index"
ROWS_PER_PART = 1000
SECONDS_PER_PART = 30.0
"""At most this many rows, or rows of this time, are in no file yet. The next job rebuilds lost rows from the cloaks."""


class Index:
    """`index/part-*.parquet` in a folder of cloaks, or .jsonl where it was begun without pyarrow. Use it with `with`.

    On entry rows are dropped of people who failed, since they are tried again, and of people whose cloak was removed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._parts = folder, folder / INDEX
        self._suffix = ".jsonl" if find_spec("pyarrow") is None else ".parquet"
        self._rows: list[Row] = []
        self._written = time.monotonic()
        self._known = np.zeros(0, np.uint64)  # sorted keys of people with a row of an earlier job: 8 bytes each

    def __enter__(self) -> Index:
        self._parts.mkdir(exist_ok=True)
        known = [self._known]
        for part in sorted(self._parts.glob("part-*")):
            self._suffix = part.suffix
            try:
                rows = _read(part)
                kept = [row for row in rows if row["error"] is None and (self._folder / row["path"]).exists()]
                known.append(np.array([_key(row["person"]) for row in kept], np.uint64))
            except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
                log.warning("%s cannot be read, its rows are rebuilt from the cloaks: %s", part, error)
                kept = []
            if not kept:
                part.unlink()
            elif len(kept) < len(rows):
                _write(kept, part)  # in one step, so that a crash leaves no row twice
        self._known = np.sort(np.concatenate(known))
        return self

    def __exit__(self, *error: object) -> None:
        self._flush()

    def __contains__(self, person: str) -> bool:
        """Whether the person has a row of an earlier job."""
        key = np.uint64(_key(person))
        found = int(np.searchsorted(self._known, key))
        return found < len(self._known) and bool(self._known[found] == key)

    def add(self, row: Row) -> None:
        """Take in the `INDEXED` columns of a row; a file has them soon, and at the latest on exit."""
        self._rows.append({name: row[name] for name in INDEXED})
        if len(self._rows) >= ROWS_PER_PART or time.monotonic() - self._written > SECONDS_PER_PART:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            _write(self._rows, self._parts / f"part-{secrets.token_hex(8)}{self._suffix}")
        self._rows, self._written = [], time.monotonic()


def _read(part: Path) -> list[Row]:
    if part.suffix == ".jsonl":
        return [json.loads(line) for line in part.read_text(encoding="utf-8").splitlines()]
    rows: list[Row] = packages.require("pyarrow.parquet", extra="ray").read_table(part).to_pylist()
    return rows


def _write(rows: list[Row], part: Path) -> None:
    payload = io.BytesIO()
    if part.suffix == ".jsonl":
        payload.write("".join(json.dumps(row) + "\n" for row in rows).encode())
    else:
        import_module("pyarrow.parquet").write_table(table(rows, INDEXED), payload)
    atomic_write(part, payload.getvalue())


def _key(person: str) -> int:
    return int.from_bytes(hashlib.blake2b(person.encode(), digest_size=8).digest(), "big")
