"""The one style of all figures, and how they are written."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BLUE, GREY, ORANGE, GREEN = "#1f6fb4", "#9a9a9a", "#d9822b", "#3a8f5c"


def figure(width: float, height: float, lines: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """A figure in inches and its panels [lines, columns], with small ticks and no frame."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    panels = made.subplots(lines, columns, squeeze=False, **options)
    for panel in panels.flatten():
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    return made, panels


def save(drawn: Any, path: Path, caption: str) -> None:
    """Write `path`.svg and .png, with a caption below; the same rows give the same files."""
    import matplotlib

    # About 18 letters of this size are an inch.
    drawn.supxlabel(textwrap.fill(caption, int(18 * drawn.get_figwidth())), fontsize=7, color=GREY)
    with matplotlib.rc_context({"svg.hashsalt": "fastcloak"}):
        drawn.savefig(path.with_name(path.name + ".svg"), metadata={"Date": None})
        drawn.savefig(path.with_name(path.name + ".png"), dpi=110)


def where(row: Mapping[str, str]) -> str:
    """What rows were measured on, for a caption."""
    machine = row["gpu"] or f"{row['cpu']}, {row['cores']} cores"
    return f"{machine}; torch {row['torch']}; commit {row['commit']}; {row['date'][:10]}"
