"""Draws the committed rows: the ladder and the scaling curves.

    python -m bench.harness.rows [--results bench/results]

Every ladder_*.csv and scaling_*.csv becomes a picture of the same name, .svg and .png, and the ladder a Markdown table
on standard output. Nothing is measured here.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

Row = dict[str, str]
BLUE, GREY = "#1f6fb4", "#9a9a9a"


def read(path: Path) -> list[Row]:
    """The rows of a CSV file."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def where(row: Row) -> str:
    """What rows were measured on, for a caption."""
    machine = row["gpu"] or f"{row['cpu']}, {row['cores']} cores"
    return f"{machine}; torch {row['torch']}; commit {row['commit']}; {row['date'][:10]}"


def _short(milliseconds: float) -> str:
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"


def ladder_groups(rows: list[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """Rows by network, objective and threads, in the order of the file."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["net"], row["objective"], row["threads"]), []).append(row)
    return groups


def ladder_table(rows: list[Row]) -> str:
    """Markdown: milliseconds of an image-gradient, and how many times faster than the published loop."""
    lines = ["| network, objective, threads | rung | ms / image-gradient | times faster |", "|---|---|---|---|"]
    for (net, objective, threads), group in ladder_groups(rows).items():
        for row in group:
            milliseconds, factor = 1e3 * float(row["seconds_per_image_gradient"]), row["times_faster_than_published"]
            lines.append(f"| {net}, {objective}, {threads} | {row['rung']} | {_short(milliseconds)} | {factor} |")
    return "\n".join(lines)


def draw_ladder(rows: list[Row]) -> Any:
    """One panel per network, objective and number of threads; longer bars are faster."""
    from matplotlib.figure import Figure

    groups = ladder_groups(rows)
    columns = min(2, len(groups))
    lines = -(-len(groups) // columns)
    most = max(len(group) for group in groups.values())
    figure = Figure(figsize=(5.6 * columns, (0.36 * most + 1.1) * lines + 0.4), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for panel in panels[len(groups) :]:
        panel.set_visible(False)
    for panel, ((net, objective, threads), group) in zip(panels, groups.items(), strict=False):
        names = [row["rung"] for row in group]
        factors = [float(row["times_faster_than_published"]) for row in group]
        bars = panel.barh(names, factors, color=[GREY if name == "published" else BLUE for name in names])
        milliseconds = [1e3 * float(row["seconds_per_image_gradient"]) for row in group]
        labels = [f"{f:.3g}x  {_short(ms)} ms" for f, ms in zip(factors, milliseconds, strict=True)]
        panel.bar_label(bars, labels, padding=3, fontsize=8)
        panel.set_xlim(0, max(factors) * 1.4)
        panel.invert_yaxis()
        panel.set_title(f"{net}, {objective}, {threads} thread{'s' if threads != '1' else ''}", fontsize=10)
        panel.set_xlabel("times faster than the published loop, per image-gradient", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(where(rows[0]), fontsize=7, color=GREY)
    return figure


def draw_scaling(rows: list[Row]) -> Any:
    """Time of a step and peak memory, one column per curve."""
    from matplotlib.figure import Figure

    curves = list(dict.fromkeys(row["curve"] for row in rows))
    figure = Figure(figsize=(3 * len(curves), 5), layout="constrained")
    panels = figure.subplots(2, len(curves), squeeze=False)
    titles = {
        "people": "people in a pass",
        "photos": "photos of a person",
        "batch": "photos in a batch",
        "steps": "steps",
    }
    for column, curve in enumerate(curves):
        points = [row for row in rows if row["curve"] == curve]
        x = [float(row[curve]) for row in points]
        for line, (key, label) in enumerate((("seconds_per_image_gradient", "ms / image-gradient"), ("peak_mb", "MB"))):
            panel = panels[line, column]
            y = [float(row[key]) * (1e3 if line == 0 else 1) for row in points]
            panel.plot(x, y, "o-", color=BLUE)
            panel.set_ylim(0, 1.15 * max(y))
            panel.set_xscale("log", base=2)
            panel.set_xticks(x, [f"{value:g}" for value in x])
            panel.tick_params(labelsize=8)
            panel.spines[["top", "right"]].set_visible(False)
            if column == 0:
                panel.set_ylabel(label, fontsize=9)
            if line == 1:
                panel.set_xlabel(titles[curve], fontsize=9)
    figure.suptitle(f"{rows[0]['net']}: time and peak memory above the network", fontsize=10)
    figure.supxlabel(where(rows[0]), fontsize=7, color=GREY)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = "fastcloak"  # the same rows give the same file
    for pattern, draw in (("ladder_*.csv", draw_ladder), ("scaling_*.csv", draw_scaling)):
        for path in sorted(arguments.results.glob(pattern)):
            rows = read(path)
            figure = draw(rows)
            figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
            figure.savefig(path.with_suffix(".png"), dpi=110)
            if draw is draw_ladder:
                print(f"{path.name}\n{ladder_table(rows)}\n")


if __name__ == "__main__":
    main()
