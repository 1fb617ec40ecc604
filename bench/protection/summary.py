"""What the rows of bench/protection/__main__.py say: tables with intervals over people, and figures.

Top-1 is the share of pairs whose person is not found, in %. Black box means a target that the surrogate does not hold;
intervals are 95 % bootstrap intervals over people, paired for differences.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.harness.figures import save
from bench.harness.rows import Row, laid_out
from bench.protection.figures import FIGURES, Estimates
from bench.protection.people import PEOPLE_COLUMNS
from bench.protection.recipes import GROUPS

CONTROLS = ("clean", "random")
DRAWS = 10_000

Pair = tuple[str, str]
Array = npt.NDArray[np.float64]
PerPerson = dict[str, dict[Pair, Array]]


def per_person(lines: Iterable[Row], column: str, *, white_box: bool = False) -> PerPerson:
    """Row -> (surrogate, target) -> [P], mean over seeds, of the black-box pairs or of the white-box ones.

    A control, which has no surrogate, stands next to every black-box pair with the same target.
    """
    chosen = [line for line in lines if line["white_box"] == str(white_box)]
    pairs = dict.fromkeys(_pair(line) for line in chosen if line["row"] not in CONTROLS)
    seeds: dict[str, dict[Pair, list[Array]]] = {}
    for line in chosen:
        values = np.array(line[f"per_person_{column}"].split(), dtype=np.float64)
        control = line["row"] in CONTROLS and bool(pairs)
        for pair in [one for one in pairs if one[1] == line["target"]] if control else [_pair(line)]:
            seeds.setdefault(line["row"], {}).setdefault(pair, []).append(values)
    return {row: {pair: np.mean(found, 0) for pair, found in of.items()} for row, of in seeds.items()}


def _pair(line: Row) -> Pair:
    return line["surrogate"], line["target"]


def interval(values: Array) -> tuple[float, float, float]:
    """Mean over people [P], and its 95 % bootstrap interval. The same people are drawn for every row."""
    draws = np.random.default_rng(0).integers(0, len(values), (DRAWS, len(values)))
    low, high = np.percentile(values[draws].mean(1), (2.5, 97.5))
    return float(values.mean()), float(low), float(high)


def summary(lines: Sequence[Row], against: str | None = None) -> list[list[str]]:
    """Cells of a table, its header first: a line per row, for lines of the same people and one survival.

    A row that lacks pairs others have is marked with *: its means are over its own pairs, and differences and factors
    over the pairs that both rows have. An ensemble is compared with the mean of its members, where they have rows.
    """
    top1, linkage = per_person(lines, "top1"), per_person(lines, "linkage")
    white = per_person(lines, "top1", white_box=True)
    # In the order of the file, which the controls, next to every pair, do not have.
    pairs = list(dict.fromkeys(pair for row in sorted(top1, key=CONTROLS.__contains__) for pair in top1[row]))
    header = ["row", "image-gradients", "s/person", *map(" -> ".join, pairs), "mean", "95 %"]
    header += [f"vs {against}", "95 %", "times"] if against else []
    table = [[*header, "linkage", "white box"]]
    for row in dict.fromkeys(line["row"] for line in lines):
        own, of = [line for line in lines if line["row"] == row], top1.get(row, {})
        cells = [row + "*" * (len(of) < len(pairs)), f"{median(float(line['image_gradients']) for line in own):.0f}"]
        cells.append(f"{median(float(line['seconds']) for line in own):.3g}")
        cells += [_percent(of[pair].mean()) if pair in of else "" for pair in pairs]
        cells += _with_interval(list(of.values()))
        if against:
            both = [(own, reference) for pair, own in of.items() for reference in _matched(pair, top1.get(against, {}))]
            compared = [own - reference for own, reference in both] if row != against else []
            cells += _with_interval(compared, sign="+")
            cells.append(f"{np.mean([b[0] for b in both]) / np.mean([b[1] for b in both]):.2f}" if compared else "")
        cells.append(_percent(np.mean(list(linkage[row].values()))) if of else "")
        cells.append(_percent(np.mean(list(white[row].values()))) if row in white else "")
        table.append(cells)
    return table


def _matched(pair: Pair, others: dict[Pair, Array]) -> list[Array]:
    """Of another row the same pair, or for an ensemble the mean of its members on the same target; one or none."""
    surrogate, target = pair
    members = [others[name, target] for name in surrogate.split("+") if (name, target) in others]
    if pair in others:
        return [others[pair]]
    return [np.mean(members, 0)] if len(members) == len(surrogate.split("+")) else []


def _percent(rate: Any, sign: str = "") -> str:
    # Adding 0 turns -0.0 into 0.0.
    return f"{round(100 * float(rate), 1) + 0:{sign}.1f}"


def _with_interval(pairs: list[Array], sign: str = "") -> list[str]:
    if not pairs:
        return ["", ""]
    mean, low, high = (_percent(value, sign) for value in interval(np.mean(pairs, 0)))
    return [mean, f"[{low}, {high}]"]


def groups(lines: Iterable[Row]) -> dict[tuple[str, ...], dict[str, list[Row]]]:
    found: dict[tuple[str, ...], dict[str, list[Row]]] = {}
    for line in lines:
        people = tuple(line[column] for column in PEOPLE_COLUMNS)
        found.setdefault(people, {}).setdefault(line["survival"], []).append(line)
    return found


def report(lines: Sequence[Row], against: str | None = None, *, markdown: bool = False) -> None:
    for people, survivals in groups(lines).items():
        about = dict(zip(PEOPLE_COLUMNS, people, strict=True))
        for survival, own in survivals.items():
            rows = {line["row"] for line in own}
            reference = "opom convex_hull" if against is None else against
            table = summary(own, reference if reference in rows else None)
            seeds = " ".join(sorted({line["seed"] for line in own if line["row"] != "clean"}, key=int))
            title = (
                f"{about['data']}, {survival}: {about['count']} people from {about['first']}, {about['learn']} photos "
            )
            title += f"learnt from, {about['distractors']} distractors, seeds {seeds}"
            print(f"{'**' * markdown}{title}{'**' * markdown}\n\n{laid_out(table, markdown=markdown)}\n")
            if any(cells[0].endswith("*") for cells in table):
                print("* lacks pairs: means over the pairs it has, differences over the pairs that both rows have.\n")


def estimates(values: PerPerson, rows: Sequence[str], target: str | None = None) -> Estimates:
    """Row -> mean and interval over the black-box pairs that all of these rows have, or those with one target."""
    kept = [pair for pair in _shared(values, rows) if target in (None, pair[1])]
    return {row: interval(np.mean([values[row][pair] for pair in kept], 0)) for row in rows}


def _shared(values: PerPerson, rows: Sequence[str]) -> list[Pair]:
    return [pair for pair in values[rows[-1]] if all(pair in values[row] for row in rows)]


def plot(lines: Sequence[Row], folder: Path) -> None:
    """Draw every figure whose rows are all there, saved photos only."""
    found = groups(lines)
    for people, survivals in found.items():
        about = dict(zip(PEOPLE_COLUMNS, people, strict=True))
        own = survivals.get("saved", [])
        top1, linkage = per_person(own, "top1"), per_person(own, "linkage")
        # One file may hold several choices of the same people's photos.
        alone = sum(other[0] == people[0] for other in found) == 1
        more = "" if alone else "".join(f"_{column}{about[column]}" for column in PEOPLE_COLUMNS[1:])
        name = about["data"] + more
        for figure, draw in FIGURES.items():
            rows = (*CONTROLS, *GROUPS[figure])
            missing = [row for row in rows if row not in top1]
            if missing or not _shared(top1, rows):
                why = f"no saved rows {', '.join(missing)}" if missing else "no black-box pair that all rows have"
                print(f"skipped {figure} of {name}: {why}", file=sys.stderr)
                continue
            targets = dict.fromkeys(target for _, target in _shared(top1, rows))
            drawn = draw(
                estimates(top1, rows),
                estimates(linkage, rows),
                {target: estimates(top1, rows, target) for target in targets},
                int(about["learn"]),
            )
            versions = " ".join(dict.fromkeys(f"{line['fastcloak']} ({line['commit']})" for line in own))
            pairs = ", ".join(" -> ".join(pair) for pair in _shared(top1, rows))
            caption = f"{about['data']}: {about['count']} people, {about['learn']} photos learnt from; {pairs}; "
            caption += f"bars: 95 % over people; fastcloak {versions}"
            save(drawn, folder / f"protection_{name}_{figure}", caption)
