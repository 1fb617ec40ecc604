"""What an evaluation found: its rows, tables and JSON.

A rate is a share of a person's ordered pairs of photos; `fastcloak.evaluation` says how it is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

__all__ = ["CLEAN", "RANDOM", "Evaluation", "PersonRates", "Row", "aligned", "percent"]

# The names of the two control rows: no mask, and a random sign mask.
CLEAN = "clean"
RANDOM = "random"


class PersonRates(NamedTuple):
    """What one network makes of one person's pictures: means over the ordered pairs i != j of that person.

    The three rates are in [0, 1], `mean_similarity` (cosine of probe i and clean j) in [-1, 1].
    """

    protection_top1: float
    protection_top5: float
    linkage_top1: float
    mean_similarity: float


@dataclass(frozen=True)
class Row:
    """One network (`model`) judging one kind of picture (`mask`); the four rates are the mean over people.

    `mask` is "clean" (no mask), "random" (a random sign mask) or the label given to the evaluation. `white_box` says
    that a cloak in this row was learnt on a network of this name, alone or among others: such rows show how well the
    learning went, not protection from strangers. It goes by name: the same network under another name is not marked.
    `largest_change` is measured on the rounded pictures, in grey levels. In a clean row, linkage is simply the rate at
    which the network recognises the person.
    """

    model: str
    mask: str
    white_box: bool
    largest_change: int
    protection_top1: float
    protection_top5: float
    linkage_top1: float
    mean_similarity: float
    per_person: Mapping[str, PersonRates]


@dataclass(frozen=True)
class Evaluation:
    """Rows of one or several masks on the same people: `pairs` in all, each against at least `distractors` photos.

    Evaluations of different labels or models add up: `evaluate(opom, ...) + evaluate(ga, ...)`.
    """

    people: tuple[str, ...]
    pairs: int
    distractors: int
    rows: tuple[Row, ...]

    def __add__(self, other: Evaluation) -> Evaluation:
        """Join the rows of both; a control row that both hold appears once.

        Raises:
            ValueError: they are not about the same people, pairs and distractors, or both hold a label on a model.
        """
        for field in ("people", "pairs", "distractors"):
            mine, theirs = getattr(self, field), getattr(other, field)
            if mine != theirs:
                raise ValueError(f"evaluations to add must agree on {field}, got {mine} and {theirs}")
        # A random mask of another strength is another control.
        controls = {(row.model, row.mask, row.largest_change) for row in self.rows if row.mask in (CLEAN, RANDOM)}
        added = [row for row in other.rows if (row.model, row.mask, row.largest_change) not in controls]
        labels = {(row.model, row.mask) for row in self.rows if row.mask not in (CLEAN, RANDOM)}
        for row in added:
            if (row.model, row.mask) in labels:
                raise ValueError(
                    f"both evaluations hold mask {row.mask!r} on {row.model!r}; give them different labels"
                )
        return Evaluation(self.people, self.pairs, self.distractors, (*self.rows, *added))

    def table(self) -> str:
        """Lay the rows out in aligned columns, rates in percent, the rows of a model together."""
        header = ("model", "mask", "change", "Top-1", "Top-5", "linkage", "cosine")
        lines = [
            (
                row.model + ("*" if row.white_box else ""),
                row.mask,
                str(row.largest_change),
                percent(row.protection_top1),
                percent(row.protection_top5),
                percent(row.linkage_top1),
                f"{row.mean_similarity:.3f}",
            )
            for model in dict.fromkeys(row.model for row in self.rows)
            for row in self.rows
            if row.model == model
        ]
        return "\n".join(
            [
                *aligned(header, lines, left=2),
                "",
                f"{len(self.people)} people, {self.pairs} pairs, each against {self.distractors} or more distractors; "
                "every person weighs the same.",
                "change: largest change of a pixel, grey levels.  * white box: learnt on this model.",
                "Top-1, Top-5: % of pairs whose clean photo is not among the 1 or 5 best matches; higher is better.",
                "linkage: % of pairs where the posted pictures of a person match each other first; lower is better.",
                "cosine: mean similarity of a posted picture to another, clean picture of the person.",
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """Turn into plain dicts, lists, strings and numbers, ready for `json.dumps`."""
        return {
            "people": list(map(str, self.people)),
            "pairs": self.pairs,
            "distractors": self.distractors,
            "rows": [
                {**asdict(row), "per_person": {str(name): rates._asdict() for name, rates in row.per_person.items()}}
                for row in self.rows
            ],
        }


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
