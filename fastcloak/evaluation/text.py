"""Numbers and names as people read them, and tables of text."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percent(rate: float) -> str:
    """Write a share as a percentage with one decimal."""
    return f"{100 * rate:.1f}"


def aligned(header: tuple[str, ...], lines: Sequence[tuple[str, ...]], left: int) -> list[str]:
    """Lines of a table: the first `left` columns are words and lean left, the others are numbers and lean right."""
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (header, *lines)
    ]


def plain_name(name: str) -> str:
    """A name as people can read it: nothing that a terminal obeys, no bytes that are no text."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in name
    )


def short(values: Sequence[float | None]) -> str:
    """Write the mean of the values that are known with three decimals, or "-" if none is."""
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.3f}" if known else "-"


def counted(number: int, what: str) -> str:
    """Write a number of things: "1 photo", "2 photos"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def decibel(value: float | None) -> str:
    """Write a PSNR; "same" where nothing changed, "-" where it is not known."""
    if value is None:
        return "-"
    return "same" if value == math.inf else f"{value:.1f}"
