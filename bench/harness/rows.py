"""Rows of measurements: written with what they were measured on, read again, and laid out as tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.harness.machine import row_context
from fastcloak.system.files import atomic_write

Row = dict[str, str]


class Rows:
    """A CSV file that is whole after every row, so that an interruption loses none.

    Its columns are those of all rows, then those of the context. Floats have six digits.
    """

    def __init__(
        self, path: Path, context: Callable[[], Mapping[str, Any]] = row_context, *, append: bool = False
    ) -> None:
        """Begin the file; with `append`, go on with it if it is there.

        `context` gives columns that every row gets, asked for with each row; the row's own values take precedence.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.context = path, context
        self.rows: list[Mapping[str, Any]] = list(read(path)) if append and path.exists() else []

    def add(self, row: Mapping[str, Any]) -> None:
        context = self.context()
        whole = {**context, **row}
        self.rows.append({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in whole.items()})
        columns = dict.fromkeys([key for one in self.rows for key in one if key not in context])
        file = io.StringIO(newline="")
        table = csv.DictWriter(file, [*columns, *context], restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(self.rows)
        atomic_write(self.path, file.getvalue().encode())


def read(path: Path) -> list[Row]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def check_lines(lines: Sequence[Mapping[str, Any]], columns: Collection[str], path: Path) -> None:
    """Raises ValueError if the lines of a file are another table's."""
    if lines and not set(columns) <= set(lines[0]):
        raise ValueError(f"{path} must have the columns {', '.join(columns)}; take another output file")


def laid_out(table: Sequence[Sequence[str]], *, markdown: bool = False) -> str:
    """The table, whose first line is its header, as text: names lean left, numbers right."""
    if markdown:
        rule = ["---", *["---:"] * (len(table[0]) - 1)]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (table[0], rule, *table[1:]))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]).rstrip() for cells in table
    )
