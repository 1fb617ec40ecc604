"""A row per person: what stages hand on, what crosses machines, and what the index keeps."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["FACES", "INDEXED", "PEOPLE", "PHOTOS", "RESULTS", "Columns", "Row", "make_row", "table"]

Row = dict[str, Any]
Columns = dict[str, str]
"""Name -> "string", "int64", "double", "binary" or "list<string>"."""

TO_FIT, FITTED, DONE_BEFORE, FAILED, STOP = "to fit", "fitted", "done before", "failed", "stop"
"""The status of a person. STOP ends the job: no photo is to blame but the machine, the network or the disk."""

_STATUS = {"person": "string", "status": "string", "reason": "string", "error": "string"}
PEOPLE = {"person": "string", "photos": "list<string>"}
FACES = {**_STATUS, "faces": "binary", "names": "list<string>"}
INDEXED = {
    "person": "string",
    "path": "string",  # of the cloak in the output folder, like sha256
    "sha256": "string",
    "eps": "double",  # on the [0, 1] scale
    "photos": "int64",  # that were learnt from
    "loss": "double",  # mean of the last step
    "image_gradients": "int64",
    "seconds": "double",  # of the person's steps
    "reason": "string",  # the name of the exception
    "error": "string",  # its message
}
RESULTS = {**_STATUS, **INDEXED}
PHOTOS = {**_STATUS, "photos": "list<string>"}


def make_row(person: Row, status: str, error: Exception | None = None) -> Row:
    """A row of a person after a stage. Runners set the columns that it lacks to None."""
    reason, message = (None, None) if error is None else (type(error).__name__, str(error) or repr(error))
    return {"person": person["person"], "status": status, "reason": reason, "error": message}


def table(rows: list[Row], columns: Columns) -> Any:
    """A pyarrow Table of rows."""
    pyarrow = import_module("pyarrow")
    types = {"list<string>": pyarrow.list_(pyarrow.string()), "binary": pyarrow.large_binary()}
    schema = [(name, types.get(kind) or pyarrow.type_for_alias(kind)) for name, kind in columns.items()]
    return pyarrow.Table.from_pylist(rows, schema=pyarrow.schema(schema))
