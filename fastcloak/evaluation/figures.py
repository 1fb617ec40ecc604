"""Pictures of what a cloak does to photos, and plots of what it does to face networks."""

from __future__ import annotations

import io
import os
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastcloak.evaluation.results import Evaluation, Row
from fastcloak.system.files import atomic_write
from fastcloak.system.packages import require

__all__ = ["comparison", "plot_protection", "save_comparison"]

# The comparison's layout, in pixels of the finished picture: one photo pixel is ZOOM x ZOOM.
ZOOM = 2
GAP = 8
CAPTION = 20
BACKGROUND = "white"
INK = "black"
# No change is drawn as this grey level.
MID_GREY = 128


def comparison(originals: Tensor, cloaked: Tensor, *, gain: int = 10) -> Image.Image:
    """Three captioned rows of photos: original, cloaked, and their difference, magnified.

    A pixel of the last row is 128 + gain * (cloaked - original), in grey levels, cut to 0..255: grey means unchanged.
    Everything is enlarged twice, without smoothing.

    Args:
        originals: [N, 3, H, W], uint8, or float in [0, 1]; a column each.
        cloaked: the same shape, uint8, or float in [0, 1].
        gain: by how much differences are magnified.

    Returns:
        An RGB picture, 8 + N (2 W + 8) wide and 8 + 3 (20 + 2 H + 8) high.

    Raises:
        ValueError: a wrong shape, dtype or range, no photos, or two different shapes.
    """
    before, after = _pixels("originals", originals), _pixels("cloaked", cloaked)
    if before.shape != after.shape:
        raise ValueError(
            f"cloaked must have the shape of originals, {list(before.shape)}, got {list(after.shape)}; pass the same "
            "photos in the same order"
        )
    difference = (MID_GREY + gain * (after.int() - before.int())).clamp(0, 255).to(torch.uint8)

    n, _, height, width = before.shape
    sheet = Image.new(
        "RGB", (GAP + n * (ZOOM * width + GAP), GAP + 3 * (CAPTION + ZOOM * height + GAP)), color=BACKGROUND
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    for row, (caption, photos) in enumerate(
        (("original", before), ("cloaked", after), (f"difference x{gain}", difference))
    ):
        top = GAP + row * (CAPTION + ZOOM * height + GAP)
        draw.text((GAP, top), caption, fill=INK, font=font)
        for column, photo in enumerate(photos):
            tile = Image.fromarray(photo.permute(1, 2, 0).contiguous().numpy())
            tile = tile.resize((ZOOM * width, ZOOM * height), Image.Resampling.NEAREST)
            sheet.paste(tile, (GAP + column * (ZOOM * width + GAP), top + CAPTION))
    return sheet


def save_comparison(path: str | os.PathLike[str], originals: Tensor, cloaked: Tensor, *, gain: int = 10) -> None:
    """Write `comparison` to a file, whose ending says the format; PNG keeps the grey levels exact.

    Args:
        path: the picture to write; an existing one is replaced.
        originals: [N, 3, H, W], uint8, or float in [0, 1].
        cloaked: the same shape, uint8, or float in [0, 1].
        gain: by how much differences are magnified.

    Raises:
        ValueError: as in `comparison`, or an ending that names no picture format.
        OSError: the file cannot be written.
    """
    path = Path(path)
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"path must end in a picture format such as .png, got {str(path)!r}")
    picture = io.BytesIO()
    comparison(originals, cloaked, gain=gain).save(picture, format=kind)
    atomic_write(path, picture.getvalue())


def plot_protection(evaluation: Evaluation, path: str | os.PathLike[str]) -> None:
    """Write a bar chart of Top-1 and Top-5 protection: a group of bars per model, a colour per mask.

    Hatched bars are white box: the mask was learnt on that model.

    Args:
        evaluation: rows to draw, at least one.
        path: the picture to write; its ending says the format (png, svg, pdf).

    Raises:
        ValueError: no rows, or an ending that names no picture format.
        MissingExtraError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    if not evaluation.rows:
        raise ValueError("evaluation must hold at least one row, got none; evaluate on one model or more")
    require("matplotlib", extra="demo")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    path = Path(path)
    kind = path.suffix.lower().lstrip(".")
    if kind not in FigureCanvasAgg.get_supported_filetypes():
        raise ValueError(f"path must end in a picture format such as .png or .svg, got {str(path)!r}")

    models = list(dict.fromkeys(row.model for row in evaluation.rows))
    masks = list(dict.fromkeys(map(_bar_name, evaluation.rows)))
    # Controls in greys, whatever was learnt in colours.
    controls = {_bar_name(row): {"clean": "0.8", "random": "0.6"}.get(row.mask) for row in evaluation.rows}
    learnt = [mask for mask in masks if controls[mask] is None]
    colours = {mask: controls[mask] or f"C{learnt.index(mask) % 10}" for mask in masks}
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
    return f"random \N{PLUS-MINUS SIGN}{row.largest_change}" if row.mask == "random" else row.mask


def _pixels(name: str, photos: Tensor) -> Tensor:
    # uint8 [N, 3, H, W], on the CPU
    if photos.ndim != 4 or photos.shape[1] != 3 or photos.numel() == 0:
        raise ValueError(f"{name} must be [N, 3, H, W] with at least one photo, got {list(photos.shape)}")
    if photos.dtype == torch.uint8:
        return photos.detach().cpu()
    if not photos.is_floating_point():
        raise ValueError(f"{name} must be uint8 or float in [0, 1], got {photos.dtype}; convert it to uint8")
    low, high = photos.min().item(), photos.max().item()
    # Written so that NaN is refused too.
    if not (low >= 0 and high <= 1):
        raise ValueError(f"{name} must be float in [0, 1], got {low:g} to {high:g}; divide by 255 or convert to uint8")
    return (photos.detach().cpu() * 255).round().to(torch.uint8)
