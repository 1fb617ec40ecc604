"""Tailored albums as whole photos: are they recognised, linked, seen, and what does a photo cost.

    python -m bench.protection.tailored PEOPLE_DIR --distractors DIR --learn 10 --targets M --rows NAME -o rows.csv
    python -m bench.protection.tailored -o rows.csv --summary [--markdown] [--plots DIR]

All photos of a person are the album; the first `learn` of them also teach (`me`). Each is protected in its own pixels,
changed as `file` says, its face found and aligned again, and compared with the clean aligned photos. A row is a name or
a group (@bounds) of bench/protection/albums.py, or NAME=option:value,...; --third NETWORK adds the row "on three".
Without PEOPLE_DIR the people are those of ORL. Lines that are in the file are not measured again.

The median, Gaussian and non-local means are tried on the photo as saved with JPEG 95. Rates are shares of ordered pairs
i != j of the photos in which a face is found again (`found`); rates at the threshold are those of
`fastcloak.evaluation.adversary`. `linkage` is a share of pairs at rank 1, `linked` one at the threshold; `new_linkage`
and `new_linked` are those of the photos of a second run with those of the first. SSIM and CIEDE2000 are of the box of
the face in the protected photo before it is saved. Photos in which no face is found at first are left out (`refused`).
Like the other benches it takes the largest face of a photo for the person's, which it is not in every photo of LFW.
Intervals are 95 % bootstrap intervals over people; * marks networks that the masks were learnt on.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from bench.harness.command import command
from bench.harness.figures import save, where
from bench.harness.rows import Row, Rows, check_lines, laid_out, read
from bench.protection.albums import (
    CLEAN,
    GROUPS,
    RECIPES,
    AlbumRecipe,
    Picture,
    album_recipe,
    protect_album,
)
from bench.protection.figures import TradeOff, trade_off
from bench.protection.people import PEOPLE_COLUMNS, People, load_models, members, read_people
from bench.protection.photos import crop_again, pair_ranks
from bench.protection.recipes import Options, as_json, check_options, parse_rows
from bench.protection.summary import interval
from fastcloak.evaluation.adversary import find_threshold, threshold_rates
from fastcloak.evaluation.postprocessing import AS_SAVED, FILTERS, POST_PROCESSING, Pixels, jpeg, scaled
from fastcloak.evaluation.protocol import embed, protection_ranks
from fastcloak.evaluation.quality import ciede2000, ssim
from fastcloak.models import Surrogate
from fastcloak.photos.alignment import ALIGNED_FACE, SIZE, TEMPLATE_112, Face, similarity_transform
from fastcloak.photos.detection import detect
from fastcloak.photos.files import read_photo

JPEG_95 = "JPEG 95"
KEY = (*PEOPLE_COLUMNS, "row", "target", "file")
RATES = ("top1", "top5", "accepted", "linkage", "linked", "tracked", "template", "impersonation")
NEW_RATES = ("new_linkage", "new_linked")
LOOKS = ("ssim", "ciede2000")
SHOWN = {
    "top1": "Top-1",
    "top5": "Top-5",
    "accepted": "accepted",
    "linkage": "linkage",
    "linked": "linked",
    "impersonation": "somebody else",
    "new_linkage": "new linkage",
    "new_linked": "new linked",
}


def _filtered(change: Callable[[Pixels], Pixels]) -> Callable[[Pixels], Pixels]:
    return lambda pixels: change(jpeg(pixels, 95))


FILES: dict[str, Callable[[Pixels], Pixels]] = {
    **{name: POST_PROCESSING[name] for name in (AS_SAVED, JPEG_95, "JPEG 75", "JPEG 50", "half size")},
    **{name: _filtered(change) for name, change in FILTERS.items()},
}


@dataclass
class Judged:
    """The photos of one person as others see them.

    Attributes:
        owners: the place in the album of each photo that was protected.
        found: file -> place in the album -> face found again, [3, 112, 112] uint8.
        looks: mean over photos of each of `LOOKS`, None without scikit-image.
        sides: of the aligned squares in pixels.
        seconds, image_gradients: of a photo.
    """

    owners: list[int]
    found: dict[str, dict[int, Tensor]]
    looks: dict[str, float | None]
    sides: list[float]
    seconds: float
    image_gradients: float


def picture_at(path: Path, zoom: float) -> Picture | None:
    """A photo with its sides multiplied, and its largest face; None where none is found."""
    pixels = read_photo(path).pixels
    if zoom != 1:
        pixels = scaled(pixels, zoom)
    if pixels.shape[:2] == (SIZE, SIZE):
        return pixels, ALIGNED_FACE
    faces = detect(pixels)
    return (pixels, faces[0]) if faces else None


def judged(
    recipe: AlbumRecipe, paths: Sequence[Path], learn: Tensor, surrogate: Surrogate, files: Sequence[str]
) -> Judged:
    """Protect the album of a person, save it, and find the faces again."""
    pictures = {i: picture for i, path in enumerate(paths) if (picture := picture_at(path, recipe.zoom)) is not None}
    album = protect_album(recipe, list(pictures.values()), learn, surrogate)
    seen = {file: [crop_again(FILES[file](photo)) for photo in album.photos] for file in files}
    regions = [_box(face, pixels) for pixels, face in pictures.values()]
    pairs = [
        (pixels[region], photo[region])
        for (pixels, _), photo, region in zip(pictures.values(), album.photos, regions, strict=True)
    ]
    own = [np.linalg.det(similarity_transform(face.landmarks, TEMPLATE_112)[:, :2]) for _, face in pictures.values()]
    return Judged(
        list(pictures),
        {
            file: {i: crop for i, crop in zip(pictures, crops, strict=True) if crop is not None}
            for file, crops in seen.items()
        },
        {
            name: _mean([measure(*pair) for pair in pairs])
            for name, measure in zip(LOOKS, (ssim, ciede2000), strict=True)
        },
        [SIZE / float(np.sqrt(one)) for one in own],
        album.seconds,
        album.image_gradients,
    )


def _box(face: Face, pixels: Pixels) -> tuple[slice, slice]:
    left, top, width, height = face.box
    rows = slice(max(round(top), 0), min(round(top + height), pixels.shape[0]))
    return rows, slice(max(round(left), 0), min(round(left + width), pixels.shape[1]))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


@dataclass(frozen=True)
class Gallery:
    """What a target knows: person -> features of their clean photos, those of the distractors, and its threshold."""

    clean: dict[str, Tensor]
    crowd: Tensor
    threshold: float | None


def gallery_of(target: Surrogate, people: People) -> Gallery:
    clean = {name: embed(target, faces) for name, faces in people.albums.items()}
    crowd = embed(target, people.distractors)
    threshold = find_threshold(target.name, torch.cat(list(clean.values())) @ crowd.T)
    return Gallery(clean, crowd, None if threshold is None else threshold.value)


def rates(target: Surrogate, gallery: Gallery, name: str, found: Mapping[int, Tensor], new: int) -> dict[str, Any]:
    """What a target makes of the photos of a person; None where there are no pairs.

    Args:
        target: the network.
        gallery: what it knows.
        name: of the person.
        found: place in the album -> face.
        new: place of the first photo of a second run.
    """
    if len(found) < 2:
        return {}
    clean, crowd, threshold = gallery.clean[name], gallery.crowd, gallery.threshold
    features, owners = embed(target, torch.stack(list(found.values()))), list(found)
    ranks = pair_ranks(features, clean, owners, crowd)
    links = pair_ranks(features, features, range(len(owners)), crowd)
    measured = {"top1": ranks > 1, "top5": ranks > 5, "linkage": links == 1}
    late = torch.tensor(owners) >= new
    if late.any() and not late.all():
        measured["new_linkage"] = protection_ranks(features[late], features[~late], crowd) == 1
        if threshold is not None:
            measured["new_linked"] = features[late] @ features[~late].T >= threshold
    at_threshold = threshold_rates(features, clean, crowd, threshold, own=torch.tensor(owners))
    return {**asdict(at_threshold), **{rate: hits.double().mean().item() for rate, hits in measured.items()}}


def measure(
    people: People,
    recipes: Mapping[str, AlbumRecipe],
    targets: Sequence[Surrogate],
    output: Path,
    *,
    files: Sequence[str] = tuple(FILES),
    loaded: dict[str, Surrogate] | None = None,
) -> None:
    """Append a line per row, target and file to `output`, but for those that it has.

    Args:
        people: of whom `photos` holds the albums.
        recipes: by row.
        targets: the networks that judge.
        output: the file.
        files: of `FILES`.
        loaded: networks by name, as in `load_models`.

    Raises:
        ValueError: the file is another table, or holds one of the rows with other options.
    """
    loaded = {} if loaded is None else loaded
    about, rows = people.columns(), Rows(output, append=True)
    check_lines(rows.rows, KEY, output)
    check_options(rows.rows, {row: as_json(asdict(recipe)) for row, recipe in recipes.items()}, about, output)
    done = {tuple(line[column] for column in KEY) for line in rows.rows}
    galleries: dict[str, Gallery] = {}
    for row, recipe in recipes.items():
        todo = [
            (target, file)
            for target, file in product(targets, files)
            if (*about.values(), row, target.name, file) not in done
        ]
        if not todo:
            continue
        (surrogate,) = load_models([recipe.surrogates], loaded)
        needed = list(dict.fromkeys(file for _, file in todo))
        albums = {
            name: judged(recipe, paths, people.learnt_from[name], surrogate, needed)
            for name, paths in tqdm(people.photos.items(), desc=row, unit="person")
        }
        for target, file in todo:
            if target.name not in galleries:
                galleries[target.name] = gallery_of(target, people)
            gallery = galleries[target.name]
            line: dict[str, Any] = {**about, "row": row, "options": as_json(asdict(recipe)), "target": target.name}
            line |= {"white_box": recipe.how != CLEAN and bool(members(surrogate) & members(target)), "file": file}
            rows.add({**line, **_measured(target, gallery, recipe, people, albums, file)})


def _measured(
    target: Surrogate,
    gallery: Gallery,
    recipe: AlbumRecipe,
    people: People,
    albums: Mapping[str, Judged],
    file: str,
) -> dict[str, Any]:
    """The columns of a line that are measured."""
    measured = []
    for name, one in albums.items():
        new = len(people.photos[name]) - recipe.later
        measured.append({**one.looks, **rates(target, gallery, name, one.found[file], new)})
    columns = {column: [person.get(column) for person in measured] for column in (*RATES, *NEW_RATES, *LOOKS)}
    photos, kept = sum(map(len, people.photos.values())), sum(len(one.owners) for one in albums.values())
    return {
        "photos": photos,
        "refused": photos - kept,
        "found": sum(len(one.found[file]) for one in albums.values()) / max(kept, 1),
        "face": median([side for one in albums.values() for side in one.sides]),
        "image_gradients": float(np.mean([one.image_gradients for one in albums.values()])),
        "seconds": float(np.mean([one.seconds for one in albums.values()])),
        "threshold": "" if gallery.threshold is None else gallery.threshold,
        **{column: "" if (mean := _mean(values)) is None else mean for column, values in columns.items()},
        "per_person": json.dumps(
            {
                column: [None if value is None else round(value, 4) for value in values]
                for column, values in columns.items()
            }
        ),
    }


def by_person(line: Row, column: str) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """[P] values of the people of whom they are known; None if there are none."""
    values = [value for value in json.loads(line["per_person"])[column] if value is not None]
    return np.array(values) if values else None


def summary(lines: Sequence[Row]) -> list[list[str]]:
    """A line per row, target and file: means in %, with intervals over people."""
    columns = [column for column in SHOWN if any(line[column] for line in lines)]
    header = ["row", "target", "file", "face", "found", *(SHOWN[column] for column in columns)]
    table = [[*header, "SSIM", "CIEDE2000", "gradients", "s/photo"]]
    for line in lines:
        cells = [line["row"], line["target"] + "*" * (line["white_box"] == "True"), line["file"]]
        cells += [f"{float(line['face']):.0f}", f"{100 * float(line['found']):.1f}"]
        digits = {"impersonation": 2}
        cells += [_cell(line, column, 100, digits.get(column, 1)) for column in columns]
        cells += [_cell(line, "ssim", 1, 3), f"{float(line['ciede2000']):.2f}" if line["ciede2000"] else ""]
        table.append([*cells, f"{float(line['image_gradients']):.0f}", f"{float(line['seconds']):.3g}"])
    return table


def _cell(line: Row, column: str, unit: float, digits: int) -> str:
    values = by_person(line, column)
    if values is None:
        return ""
    mean, low, high = interval(unit * values)
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def groups(lines: Sequence[Row]) -> Iterator[tuple[dict[str, str], list[Row]]]:
    """The lines of the same people, and who they are."""
    for people in dict.fromkeys(tuple(line[column] for column in PEOPLE_COLUMNS) for line in lines):
        own = [line for line in lines if tuple(line[column] for column in PEOPLE_COLUMNS) == people]
        yield dict(zip(PEOPLE_COLUMNS, people, strict=True)), own


def report(lines: Sequence[Row], *, markdown: bool = False) -> None:
    for about, own in groups(lines):
        title = f"{about['data']}: albums of {about['count']} people from {about['first']}, {about['learn']} photos "
        print(f"{title}learnt from, {about['distractors']} distractors\n")
        print(laid_out(summary(own), markdown=markdown) + "\n")


def plot(lines: Sequence[Row], folder: Path) -> None:
    """Protection against how much is seen and what it costs: photos saved as JPEG 95, the mean of unseen networks."""
    for about, own in groups(lines):
        rows: dict[str, list[Row]] = {}
        for line in own:
            if line["file"] == JPEG_95 and line["white_box"] == "False" and line["row"] != CLEAN:
                rows.setdefault(line["row"], []).append(line)
        looks: dict[str, list[str]] = {}
        for row in filter(rows.__contains__, dict.fromkeys((*GROUPS["bounds"], *GROUPS["looks"]))):
            looks.setdefault(json.loads(rows[row][0]["options"])["options"]["look"], []).append(row)
        alone = {row: [row] for row in GROUPS["universal"] if row in rows}
        gradients = [row for row in GROUPS["gradients"] if row in rows]
        for name, column, curves in (
            ("ssim", "ssim", looks),
            ("seconds", "seconds", {"tailored": gradients} if gradients else {}),
        ):
            if max(map(len, curves.values()), default=0) < 2:
                print(f"skipped {name} of {about['data']}: fewer than two of its rows are there", file=sys.stderr)
                continue
            points = {label: [_point(rows[row], column) for row in of] for label, of in {**curves, **alone}.items()}
            drawn = trade_off({label: sorted(of, key=itemgetter(0)) for label, of in points.items()}, column)
            first = next(iter(rows.values()))[0]
            targets = ", ".join(dict.fromkeys(line["target"] for of in rows.values() for line in of))
            caption = f"{about['data']}: albums of {about['count']} people from {about['first']}, saved as {JPEG_95}; "
            caption += f"judged by {targets}, unseen; bars: 95 % over people; {where(first)}"
            save(drawn, folder / f"tailored_{about['data']}_{about['first']}_{about['count']}_{name}", caption)


def _point(lines: Sequence[Row], column: str) -> TradeOff:
    def estimate(rate: str) -> tuple[float, float, float] | None:
        known = [values for line in lines if (values := by_person(line, rate)) is not None]
        return interval(np.mean(known, 0)) if known else None

    return float(lines[0][column]), estimate("top1"), estimate("accepted")


def main(arguments: Sequence[str] | None = None) -> None:
    shared = ("people", "distractors", "output", "first", "targets", "summary")
    parser = command(__doc__, *shared, learn=6, count=12)
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="of albums.py, @groups, or NAME=option:value,...")
    parser.add_argument("--third", metavar="M", help="adds the row `on three`: learnt on sface, dlib and this network")
    parser.add_argument("--files", nargs="+", choices=FILES, default=list(FILES), help="(all)")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="folder for figures")
    given = parser.parse_args(arguments)
    logging.disable(logging.WARNING)  # of small faces
    if not given.summary:
        if not (given.targets and given.rows):
            parser.error("--targets and --rows are needed, but for --summary")
        three = {"on three": {"surrogates": f"sface&dlib&{given.third}"}} if given.third else {}
        try:
            rows = parse_rows([*given.rows, *three], recipes={**RECIPES, **three}, groups=GROUPS)
            recipes = {row: album_recipe(cast("Options", options)) for row, options in rows.items()}
        except (TypeError, ValueError) as error:
            parser.error(str(error))
        people = read_people(given.people, given.distractors, learn=given.learn, first=given.first, count=given.count)
        loaded: dict[str, Surrogate] = {}
        targets = load_models(given.targets, loaded)
        measure(people, recipes, targets, given.output, files=list(dict.fromkeys(given.files)), loaded=loaded)
    lines = read(given.output)
    check_lines(lines, KEY, given.output)
    report(lines, markdown=given.markdown)
    if given.plots is not None:
        given.plots.mkdir(parents=True, exist_ok=True)
        plot(lines, given.plots)


if __name__ == "__main__":
    main()
