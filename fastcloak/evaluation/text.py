"""Numbers and names as people read them; and tables, which are built once and printed as text or as HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


class Good(str):
    """A cell of a table with good news, seen where there are colours."""


class Bad(str):
    """A cell of a table with bad news."""


@dataclass(frozen=True)
class Table:
    """Rows of words and numbers; `fastcloak.evaluation.page` prints it as HTML.

    Attributes:
        title: what the table shows.
        header: names of the columns.
        rows: a cell per column each; a row of one cell heads a group.
        notes: sentences that say what the columns mean.
        left: the first columns, which are words and lean left. The others are numbers and lean right.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    left: int = 1


def as_text(table: Table) -> list[str]:
    """The lines of a table: its title, columns one below another, and its notes."""
    lines = [table.header, *table.rows]
    whole = [line for line in lines if len(line) > 1]
    widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
    columns = [
        "  ".join(
            cell.ljust(width) if i < table.left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=False))
        ).rstrip()
        for line in lines
    ]
    return [*([f"{table.title}:"] if table.title else []), *columns, *(["", *table.notes] if table.notes else [])]


def plain_name(name: str) -> str:
    """A name as people can read it: nothing that a terminal obeys, no bytes that are no text."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in name
    )


def counted(number: int, what: str) -> str:
    """Write a number of things: "1 photo", "2 photos"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def percent(share: float | None) -> str:
    """Write a share as a percentage with one decimal, or "-" if it is not known."""
    return "-" if share is None else f"{100 * share:.1f}"


def mean(values: Sequence[float | None]) -> str:
    """Write the mean of the values that are known with three decimals, or "-" if none is."""
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.3f}" if known else "-"


def rounded(value: float | None, decimals: int) -> str:
    """Write a number with `decimals` decimals, or "-" if it is not known."""
    return "-" if value is None else f"{value:.{decimals}f}"


def decibel(value: float | None) -> str:
    """Write a PSNR; "same" where nothing changed, "-" where it is not known."""
    if value is None:
        return "-"
    return "same" if value == math.inf else f"{value:.1f}"
