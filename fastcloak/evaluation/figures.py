"""Pictures of what a cloak does to faces, and plots of what it does to face networks."""

from __future__ import annotations

import io
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastcloak.evaluation.results import CLEAN, RANDOM, Evaluation, Row
from fastcloak.evaluation.versions import GAIN, difference
from fastcloak.photos.inputs import saved_faces
from fastcloak.system.files import atomic_write
from fastcloak.system.packages import require

# The comparison's layout, in pixels of the finished picture: one pixel of a face is ZOOM x ZOOM.
ZOOM, GAP, CAPTION = 2, 8, 20
SIDE = ZOOM * 112


def save_comparison(path: Path, versions: Mapping[str, Any]) -> None:
    """Draw captioned rows of faces: the originals, then each other version and its difference, ten times as large.

    A face has a column. A pixel of a difference is 128 + 10 (version - original), in grey levels, cut to 0..255: grey
    means unchanged. Everything is enlarged twice, without smoothing. The path's ending says the format; PNG is exact.

    Args:
        path: where to write.
        versions: caption -> the same faces, the originals first; whatever `saved_faces` takes.

    Raises:
        ValueError: no faces, different numbers of them, or an ending that names no picture format.
    """
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"path must end in a picture format such as .png, got {str(path)!r}")
    shown = {caption: saved_faces(faces).permute(0, 2, 3, 1).numpy() for caption, faces in versions.items()}
    counts = [len(faces) for faces in shown.values()]
    if 0 in counts or len(set(counts)) != 1:
        raise ValueError(f"versions must show the same faces, one or more, got {counts} faces")
    originals = next(iter(shown.values()))
    rows: list[tuple[str, Any]] = []
    for caption, faces in shown.items():
        rows.append((caption, faces))
        if faces is not originals:
            rows.append((f"difference x{GAIN}", difference(originals, faces)))
    size = (GAP + counts[0] * (SIDE + GAP), GAP + len(rows) * (CAPTION + SIDE + GAP))
    sheet = Image.new("RGB", size, color="white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    top = GAP
    for caption, faces in rows:
        draw.text((GAP, top), caption, fill="black", font=font)
        for column, face in enumerate(faces):
            tile = Image.fromarray(np.ascontiguousarray(face)).resize((SIDE, SIDE), Image.Resampling.NEAREST)
            sheet.paste(tile, (GAP + column * (SIDE + GAP), top + CAPTION))
        top += CAPTION + SIDE + GAP
    picture = io.BytesIO()
    sheet.save(picture, format=kind)
    atomic_write(path, picture.getvalue())


def plot_protection(evaluation: Evaluation, path: Path) -> None:
    """Write a bar chart of Top-1 and Top-5 protection: a group of bars per model, a colour per mask.

    Hatched bars are white box: the mask was fitted on that model. The path's ending says the format (png, svg, pdf).

    Raises:
        ValueError: no rows, or an ending that names no picture format.
        MissingExtraError: matplotlib is not installed.
    """
    if not evaluation.rows:
        raise ValueError("evaluation must hold at least one row, got none; evaluate on one model or more")
    require("matplotlib", extra="demo")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    kind = path.suffix.lower().lstrip(".")
    if kind not in FigureCanvasAgg.get_supported_filetypes():
        raise ValueError(f"path must end in a picture format such as .png or .svg, got {str(path)!r}")

    models = list(dict.fromkeys(row.model for row in evaluation.rows))
    # Controls in greys, cloaks in colours.
    greys, cloaks = {CLEAN: "0.8", RANDOM: "0.6"}, count()
    colours: dict[str, str] = {}
    for row in evaluation.rows:
        if _bar_name(row) not in colours:
            colours[_bar_name(row)] = greys.get(row.mask) or f"C{next(cloaks) % 10}"
    masks = list(colours)
    width = 0.8 / len(masks)

    figure = Figure(figsize=(2 + 0.9 * len(masks) * len(models), 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    for panel, k in zip(panels, (1, 5), strict=True):
        for row in evaluation.rows:
            mask = _bar_name(row)
            bar = panel.bar(
                models.index(row.model) + width * (masks.index(mask) - (len(masks) - 1) / 2),
                100 * (row.protection_top1 if k == 1 else row.protection_top5),
                0.92 * width,
                color=colours[mask],
                edgecolor="white",
                hatch="///" if row.white_box else None,
            )
            panel.bar_label(bar, fmt="%.0f", fontsize=8, padding=1)
        panel.set_title(f"Top-{k}", fontsize=10)
        panel.set_xticks(range(len(models)), models)
        panel.set_xlim(-0.5, len(models) - 0.5)
        # Room for the number above a full bar.
        panel.set_ylim(0, 108)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("protection, % of pairs")
    keys = [Patch(facecolor=colours[mask], label=mask) for mask in masks]
    if any(row.white_box for row in evaluation.rows):
        keys.append(Patch(facecolor="0.9", edgecolor="0.3", hatch="///", label="white box"))
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False, fontsize=9)
    picture = io.BytesIO()
    figure.savefig(picture, format=kind)
    atomic_write(path, picture.getvalue())


def _bar_name(row: Row) -> str:
    # Merged evaluations may hold random masks of several strengths.
    return f"random \N{PLUS-MINUS SIGN}{row.largest_change}" if row.mask == RANDOM else row.mask
