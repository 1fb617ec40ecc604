"""Rows of measurements: written with what they were measured on, read again, and laid out as tables."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.harness.machine import row_context

__all__ = ["Row", "Rows", "laid_out", "read"]

Row = dict[str, str]


class Rows:
    """A CSV file to which each row is added as soon as it is measured, so that an interruption loses none.

    Floats are written with six digits. The columns of `row_context` follow those given.
    """

    def __init__(
        self,
        path: Path,
        columns: Iterable[str],
        *,
        context: Callable[[], Mapping[str, Any]] = row_context,
        append: bool = False,
    ) -> None:
        """Begin the file.

        Args:
            path: its folder is made.
            columns: of each row; what a row lacks stays empty.
            context: columns and values that every row gets, asked for with each row.
            append: go on with the file if it is there.

        Raises:
            ValueError: the file to go on with has other columns.
        """
        self.path, self.context = path, context
        self.columns = tuple(dict.fromkeys((*columns, *context())))
        if append and path.exists():
            with open(path, newline="") as file:
                if tuple(next(csv.reader(file), ())) != self.columns:
                    raise ValueError(
                        f"{path} must have the columns {', '.join(self.columns)}; take another output file"
                    )
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(self.columns)

    def add(self, row: Mapping[str, Any]) -> None:
        """Write one row; its own values take precedence over the context's."""
        values = {**self.context(), **row}
        written = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in values.items()}
        with open(self.path, "a", newline="") as file:
            csv.DictWriter(file, self.columns, restval="", lineterminator="\n").writerow(written)


def read(path: Path) -> list[Row]:
    """The rows of a CSV file."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def laid_out(table: Sequence[Sequence[str]], *, markdown: bool = False) -> str:
    """The table, whose first line is its header, as text: names lean left, numbers right."""
    if markdown:
        rule = ["---", *["---:"] * (len(table[0]) - 1)]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (table[0], rule, *table[1:]))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]).rstrip() for cells in table
    )
