"""Draws the committed rows of speed: the ladder, the curves of scaling, and what Ray costs.

    python -m bench.speed.figures [--results bench/results]

Every ladder_*.csv, scaling_*.csv and scale_*.csv becomes a picture of the same name, .svg and .png, and the ladder a
Markdown table on standard output; scale_memory.csv is the right half of the picture of scale_cpu.csv. Nothing is
measured here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bench.harness.command import command
from bench.harness.figures import BLUE, GREY, figure, save, where
from bench.harness.rows import Row, laid_out, read

RED = "#c8553d"
TITLES = {"people": "people in a pass", "photos": "photos of a person", "batch": "photos in a batch", "steps": "steps"}
SETTLED = 0.2


def ladder_groups(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows that hold numbers by "network, objective, threads", in the order of the file."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if not row.get("note"):
            groups.setdefault(f"{row['net']}, {row['objective']}, {row['threads']}", []).append(row)
    return groups


def milliseconds(row: Row) -> str:
    value = 1e3 * float(row["seconds_per_image_gradient"])
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def ladder_table(rows: list[Row]) -> str:
    """Markdown: milliseconds of an image-gradient, and how many times faster than the published loop."""
    table = [["network, objective, threads", "rung", "ms / image-gradient", "times faster"]]
    for name, group in ladder_groups(rows).items():
        table += [[name, row["rung"], milliseconds(row), row["times_faster_than_published"]] for row in group]
    return laid_out(table, markdown=True)


def draw_ladder(rows: list[Row]) -> Any:
    """One panel per network, objective and number of threads; longer bars are faster."""
    groups = ladder_groups(rows)
    columns = min(2, len(groups))
    lines = -(-len(groups) // columns)
    most = max(len(group) for group in groups.values())
    drawn, panels = figure(5.6 * columns, (0.36 * most + 1.1) * lines + 0.4, lines, columns)
    for panel in panels.flatten()[len(groups) :]:
        panel.set_visible(False)
    for panel, (name, group) in zip(panels.flatten(), groups.items(), strict=False):
        names = [row["rung"] for row in group]
        factors = [float(row["times_faster_than_published"]) for row in group]
        bars = panel.barh(names, factors, color=[GREY if name == "published" else BLUE for name in names])
        labels = [f"{factor:.3g}x  {milliseconds(row)} ms" for factor, row in zip(factors, group, strict=True)]
        panel.bar_label(bars, labels, padding=3, fontsize=8)
        panel.set_xlim(0, max(factors) * 1.4)
        panel.invert_yaxis()
        panel.set_title(f"{name} thread{'s' if group[0]['threads'] != '1' else ''}", fontsize=10)
        panel.set_xlabel("times faster than the published loop, per image-gradient", fontsize=8)
    return drawn


def draw_scaling(rows: list[Row]) -> Any:
    curves = list(dict.fromkeys(row["curve"] for row in rows))
    drawn, panels = figure(3 * len(curves), 5, 2, len(curves))
    for column, curve in enumerate(curves):
        points = [row for row in rows if row["curve"] == curve]
        x = [float(row[curve]) for row in points]
        for line, (key, unit) in enumerate((("seconds_per_image_gradient", 1e3), ("peak_mb", 1))):
            panel = panels[line, column]
            y = [float(row[key]) * unit for row in points]
            panel.plot(x, y, "o-", color=BLUE)
            panel.set_ylim(0, 1.15 * max(y))
            panel.set_xscale("log", base=2)
            panel.set_xticks(x, [f"{value:g}" for value in x])
        panels[1, column].set_xlabel(TITLES[curve], fontsize=9)
    panels[0, 0].set_ylabel("ms / image-gradient", fontsize=9)
    panels[1, 0].set_ylabel("MB", fontsize=9)
    drawn.suptitle(f"{rows[0]['net']}: time and peak memory above the network", fontsize=10)
    return drawn


def slope(rows: list[Row], column: str) -> float:
    """Bytes per person: least squares over the rows after the first fifth of the people."""
    last = float(rows[-1]["people"])
    points = [(float(row["people"]), float(row[column])) for row in rows if float(row["people"]) > SETTLED * last]
    if len(points) < 2:
        return float("nan")
    people, megabytes = np.array(points).T
    return float(np.polyfit(people, megabytes * 2**20, 1)[0])


def draw_scale(rates: list[Row], sizes: list[Row]) -> Any:
    drawn, panels = figure(10, 4.2, 1, 2)
    left, right = panels[0]
    for how, label, colour, style in (
        ("fit_many", "fit_many, a process each", GREY, "s--"),
        ("fit_dataset", "fit_dataset on Ray", BLUE, "o-"),
    ):
        points = [(int(row["workers"]), float(row["steady_people_per_hour"])) for row in rates if row["how"] == how]
        workers = sorted({count for count, _ in points})
        middle = [float(np.median([rate for count, rate in points if count == w])) for w in workers]
        left.plot(workers, middle, style, color=colour, label=label)
        if how == "fit_many":
            cores = int(rates[0]["cores"])
            ideal = [middle[0] / workers[0] * min(count, cores) for count in workers]
            left.plot(workers, ideal, ":", color="black", linewidth=1, label=f"ideal on {cores} cores")
    left.set_ylim(bottom=0)
    left.set_xticks(workers, [str(count) for count in workers])
    left.set_xlabel("workers, one thread each")
    left.set_ylabel("people per hour")
    gradients = int(rates[0]["steps"]) * int(rates[0]["inner_steps"])
    left.set_title(f"SFace, {rates[0]['photos']} photos, {gradients} image-gradients a person", fontsize=10)
    people = [int(row["people"]) for row in sizes]
    for column, label, colour, style in (
        ("driver_mb", "driver", BLUE, "-"),
        ("workers_mb", "Ray's Python processes", RED, "-"),
        ("fitting_mb", "of these: fitting", RED, "--"),
        ("ray_mb", "Ray's others", GREY, "-"),
        ("object_store_mb", "object store", "black", ":"),
    ):
        y = [float(row[column]) for row in sizes]
        grown = f"{slope(sizes, column) / 1024:+.2f} KB a person"
        words = f"{label}: {f'{max(y):.0f} MB at most' if column == 'object_store_mb' else grown}"
        right.plot(people, y, style, color=colour, label=words)
    for row in sizes:
        if row["event"]:
            right.axvline(int(row["people"]), color=GREY, linewidth=0.8)
            right.text(int(row["people"]), 5, f" {row['event']}", fontsize=7, rotation=90, va="bottom", ha="right")
    right.set_ylim(bottom=0, top=1.45 * max(float(row["workers_mb"]) for row in sizes))
    right.set_xlabel("people done")
    right.set_ylabel("MB")
    right.set_title(f"memory, a network that costs nothing, batches of {sizes[0]['batch']}", fontsize=10)
    for panel in (left, right):
        panel.legend(fontsize=8, frameon=False)
    return drawn


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results")
    folder = parser.parse_args().results
    for pattern, draw in (("ladder_*.csv", draw_ladder), ("scaling_*.csv", draw_scaling)):
        for path in sorted(folder.glob(pattern)):
            rows = read(path)
            save(draw(rows), path.with_suffix(""), where(rows[0]))
            if draw is draw_ladder:
                print(f"{path.name}\n{ladder_table(rows)}\n")
    rates, sizes = folder / "scale_cpu.csv", folder / "scale_memory.csv"
    if rates.exists() and sizes.exists():
        rows = read(rates)
        save(draw_scale(rows, read(sizes)), rates.with_suffix(""), where(rows[0]))


if __name__ == "__main__":
    main()
