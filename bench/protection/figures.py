"""Figures of `bench.protection`: each takes what was estimated for the rows of its group, and measures nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.harness.figures import BLUE, GREEN, GREY, ORANGE, figure
from bench.protection.recipes import ACCUMULATED, GROUPS, IMPROVED, INNER_STEPS, UNACCUMULATED
from fastcloak.fitting.options import OBJECTIVES

Estimate = tuple[float, float, float]
# Row -> mean, and the ends of its interval, of rates in [0, 1].
Estimates = dict[str, Estimate]
# What it costs, and both rates of `KEPT`, where they are known.
TradeOff = tuple[float, Estimate | None, Estimate | None]
KEPT = ("Top-1 protection, %", "pairs accepted at FAR 1e-3, %")
COSTS = {"ssim": "SSIM of the face", "seconds": "seconds a photo"}
Draw = Callable[[Estimates, Estimates, Mapping[str, Estimates], int], Any]


def fig2a(top1: Estimates, linkage: Estimates, by_target: Mapping[str, Estimates], photos: int) -> Any:
    """Top-1 against the batch size, with and without gradient accumulation, at equal cost."""
    drawn, panel = _panel(top1)
    names = [b if b != "N" else f"N = {photos}" for b in ACCUMULATED]
    _curve(panel, names, [top1[row] for row in ACCUMULATED.values()], BLUE, "accumulated", -1)
    _curve(panel, names, [top1[row] for row in UNACCUMULATED.values()], ORANGE, "a step per batch", 1)
    panel.set_xlabel("photos in a batch, b", fontsize=9)
    panel.set_title(f"Gradient accumulation at {16 * photos} image-gradients", fontsize=10)
    _legend(drawn)
    return drawn


def fig2b(top1: Estimates, linkage: Estimates, by_target: Mapping[str, Estimates], photos: int) -> Any:
    """Top-1 against the inner iterations; the cost grows with them."""
    drawn, panel = _panel(top1)
    names = [str(M) for M in INNER_STEPS]
    for b, colour, side in ((1, BLUE, -1), (2, ORANGE, 1)):
        _curve(panel, names, [top1[f"ga b={b} M={M}"] for M in INNER_STEPS], colour, f"b = {b}", side)
    panel.set_xlabel("inner iterations, M", fontsize=9)
    panel.set_title("Inner iterations, 16 steps of b M image-gradients", fontsize=10)
    _legend(drawn)
    return drawn


def table1(top1: Estimates, linkage: Estimates, by_target: Mapping[str, Estimates], photos: int) -> Any:
    """Objectives, opom next to ga, a panel per target."""
    drawn, panels = figure(1 + 4.2 * len(by_target), 3.6, 1, len(by_target), sharey=True)
    for panel, (target, estimates) in zip(panels[0], by_target.items(), strict=True):
        _bars(panel, [name.replace("_", "\n", 1) for name in OBJECTIVES], _methods(estimates, OBJECTIVES))
        _controls(panel, estimates)
        panel.set_title(f"target {target}", fontsize=10)
    panels[0, 0].set_ylabel("Top-1 protection, black box, %", fontsize=9)
    _legend(drawn)
    return drawn


def table2(top1: Estimates, linkage: Estimates, by_target: Mapping[str, Estimates], photos: int) -> Any:
    """What transfers better: momentum, DFANet's dropout, both; opom next to ga."""
    drawn, panel = _panel(top1)
    names = ("convex_hull", *IMPROVED)
    _bars(panel, ["plain", *(name.replace(" ", " +\n") for name in IMPROVED)], _methods(top1, names))
    panel.set_title("Means to transfer, convex_hull, equal cost", fontsize=10)
    _legend(drawn)
    return drawn


def presets(top1: Estimates, linkage: Estimates, by_target: Mapping[str, Estimates], photos: int) -> Any:
    """Protection and linkage of the presets next to the published method."""
    drawn, panel = _panel(top1)
    rows = GROUPS["presets"]
    series = {
        "Top-1 protection": (BLUE, [top1[row] for row in rows]),
        "linkage": (ORANGE, [linkage[row] for row in rows]),
    }
    _bars(panel, [row.removeprefix("preset ").replace(" ", "\n") for row in rows], series)
    panel.set_ylabel("black box, %", fontsize=9)
    panel.set_title("Presets", fontsize=10)
    _legend(drawn)
    return drawn


def trade_off(curves: Mapping[str, Sequence[TradeOff]], column: str) -> Any:
    """What photos of each curve keep, a panel for each rate, against what it costs."""
    drawn, panels = figure(9, 3.8, 1, len(KEPT))
    styles = zip((BLUE, ORANGE, GREY, GREEN), ("o-", "s-", "D", "^"), strict=True)
    for (label, points), (colour, style) in zip(curves.items(), styles, strict=False):
        for panel, rates in zip(panels[0], zip(*(rates for _, *rates in points), strict=True), strict=True):
            known = [(x, rate) for (x, *_), rate in zip(points, rates, strict=True) if rate is not None]
            if known:
                means, ends = _ends([rate for _, rate in known])
                x = [x for x, _ in known]
                panel.errorbar(x, means, ends, fmt=style, color=colour, capsize=3, markersize=4, label=label)
    for panel, title in zip(panels[0], KEPT, strict=True):
        panel.set_ylabel(title, fontsize=9)
        panel.set_xlabel(COSTS[column], fontsize=9)
        panel.set_ylim(0, 108)
    _legend(drawn)
    return drawn


FIGURES: dict[str, Draw] = {"fig2a": fig2a, "fig2b": fig2b, "table1": table1, "table2": table2, "presets": presets}


def _panel(top1: Estimates) -> tuple[Any, Any]:
    drawn, panels = figure(5.6, 3.8)
    panels[0, 0].set_ylabel("Top-1 protection, black box, %", fontsize=9)
    _controls(panels[0, 0], top1)
    return drawn, panels[0, 0]


def _controls(panel: Any, estimates: Estimates) -> None:
    for control, style in (("clean", ":"), ("random", "--")):
        panel.axhline(
            100 * estimates[control][0], color=GREY, linestyle=style, linewidth=1.2, label=f"{control}, Top-1", zorder=0
        )
    panel.set_ylim(0, 108)


def _methods(estimates: Estimates, names: Sequence[str]) -> dict[str, tuple[str, list[tuple[float, float, float]]]]:
    return {
        method: (colour, [estimates[f"{method} {name}"] for name in names])
        for method, colour in (("opom", ORANGE), ("ga", BLUE))
    }


def _ends(points: Sequence[tuple[float, float, float]]) -> tuple[list[float], list[list[float]]]:
    means = [100 * mean for mean, _, _ in points]
    return means, [[100 * (mean - low) for mean, low, _ in points], [100 * (high - mean) for mean, _, high in points]]


def _curve(
    panel: Any, names: list[str], points: list[tuple[float, float, float]], colour: str, label: str, side: int
) -> None:
    means, ends = _ends(points)
    # A little to one side, so that two curves' bars do not hide each other.
    x = [place + 0.03 * side for place in range(len(names))]
    panel.errorbar(x, means, ends, fmt="o-", color=colour, capsize=3, markersize=4, label=label)
    panel.set_xticks(range(len(names)), names)


def _bars(panel: Any, names: list[str], series: Mapping[str, tuple[str, list[tuple[float, float, float]]]]) -> None:
    width = 0.8 / len(series)
    for i, (label, (colour, points)) in enumerate(series.items()):
        means, ends = _ends(points)
        x = [place + width * (i - (len(series) - 1) / 2) for place in range(len(names))]
        error = {"elinewidth": 0.9, "ecolor": "0.3"}
        panel.bar(x, means, 0.92 * width, yerr=ends, capsize=2, color=colour, error_kw=error, label=label)
        for place, mean, above in zip(x, means, ends[1], strict=True):
            panel.annotate(
                f"{mean:.0f}", (place, mean + above), (0, 2), textcoords="offset points", ha="center", fontsize=7
            )
    panel.set_xticks(range(len(names)), names)


def _legend(drawn: Any) -> None:
    # Panels share their entries.
    found = dict(entry[::-1] for panel in drawn.axes for entry in zip(*panel.get_legend_handles_labels(), strict=True))
    drawn.legend(found.values(), found, loc="outside upper center", ncols=len(found), frameon=False, fontsize=8)
