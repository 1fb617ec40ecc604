"""Protection of many recipes: every recipe x surrogate x target x seed x survival, and what the rows say.

    python -m bench.protection --surrogates sface "sface&dlib" --targets dlib sface --rows @table1 -o rows.csv
    python -m bench.protection PEOPLE_DIR --distractors DIR --learn 10 --surrogates M --targets M --rows NAME -o FILE
    python -m bench.protection -o rows.csv --summary [--markdown] [--against ROW] [--plots DIR]

PEOPLE_DIR holds a folder of photos per person; without it the 40 ORL people of the demo extra are used. "a&b" is an
ensemble. A row is a name of bench/recipes.py, a group of them (@table1), or a recipe given here:
NAME=option:value,option:value. The controls "clean" and "random" (a random sign mask of 8 levels) are always measured.
Lines that are in the file are not measured again, and cloaks that are in the folder of cloaks are not learnt again.

Survival is what happens to a protected 112x112 crop before the network sees it: "saved" (8 bits), "jpeg75" (JPEG of
quality 75), "resize" (half its side and back). The gallery is always the saved clean photo.

In the summary, Top-1 is the share of pairs whose person is not found, in %. Black box means a target that the
surrogate does not hold; intervals are 95 % bootstrap intervals over people, paired for differences.
"""

from __future__ import annotations

import argparse
import ast
import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from bench import protection_plots
from bench.machine import row_context
from bench.recipes import GROUPS, RECIPES, Options, Recipe, options_of
from bench.report import Row, read
from fastcloak import fit_many, load, load_model
from fastcloak.assets import orl_folder
from fastcloak.atomic import atomic_write
from fastcloak.cli import MODEL_HELP, parse_model
from fastcloak.cloak import SHAPE, Cloak
from fastcloak.evaluation import embed, person_rates, random_mask
from fastcloak.faces import load_faces
from fastcloak.models import Surrogate
from fastcloak.photos import photo_files

CONTROLS = ("clean", "random")
NO_SURROGATE = "-"
LEAST_PROBES = 2
DRAWS = 10_000
PEOPLE_COLUMNS = ("data", "learn", "first", "count", "distractors")
RATES = ("top1", "top5", "linkage", "cosine")
KEY = (*PEOPLE_COLUMNS, "row", "surrogate", "target", "seed", "survival")
COLUMNS = (
    *PEOPLE_COLUMNS,
    "row",
    "options",
    "surrogate",
    "target",
    "white_box",
    "seed",
    "survival",
    "image_gradients",
    "seconds",
    *RATES,
    "per_person_top1",
    "per_person_linkage",
    "per_person_cosine",
    "fastcloak",
    "commit",
)

Pair = tuple[str, str]
Array = npt.NDArray[np.float64]
PerPerson = dict[str, dict[Pair, Array]]


@dataclass(frozen=True)
class People:
    """Whose cloaks are learnt and judged.

    Attributes:
        data: name of the collection.
        learn: the first so many photos of a person teach, the others judge.
        first: so many people were skipped.
        learnt_from: person -> [learn, 3, 112, 112] float in [0, 1].
        probes: person -> [N, 3, 112, 112] uint8.
        distractors: [M, 3, 112, 112] uint8.
    """

    data: str
    learn: int
    first: int
    learnt_from: dict[str, Tensor]
    probes: dict[str, Tensor]
    distractors: Tensor

    def columns(self) -> dict[str, str]:
        """What says in a line whom it is about."""
        values = (self.data, self.learn, self.first, len(self.probes), len(self.distractors))
        return dict(zip(PEOPLE_COLUMNS, map(str, values), strict=True))


def read_people(
    folder: Path | None, distractors: Path | None = None, *, learn: int = 6, first: int = 0, count: int = 12
) -> People:
    """Load the people of a folder of folders, or of ORL; without distractors, those who get no cloak are they."""
    if folder is None:
        folders = [orl_folder() / f"s{person}" for person in range(1, 41)]
    else:
        folders = sorted(person for person in folder.iterdir() if person.is_dir())
    chosen = folders[first : first + count]
    photos = {person.name: _faces(person) for person in chosen}
    for name, faces in photos.items():
        if len(faces) < learn + LEAST_PROBES:
            raise ValueError(f"{name} must have {learn + LEAST_PROBES} photos or more, got {len(faces)}; learn fewer")
    others = [person for person in folders if person not in chosen]
    if not chosen or not (distractors or others):
        raise ValueError(f"people must leave some to cloak and some to distract, got {len(chosen)} of {len(folders)}")
    strangers = (
        torch.cat([_faces(other) for other in others]) if distractors is None else load_faces(photo_files(distractors))
    )
    return People(
        data="orl" if folder is None else folder.resolve().name,
        learn=learn,
        first=first,
        learnt_from={name: faces[:learn] for name, faces in photos.items()},
        probes={name: _pixels(faces[learn:]) for name, faces in photos.items()},
        distractors=_pixels(strangers),
    )


def _faces(person: Path) -> Tensor:
    # The package that holds ORL adds a target.jpg to one of its people.
    return load_faces([file for file in photo_files(person) if file.name != "target.jpg"])


def _pixels(faces: Tensor) -> Tensor:
    return faces.mul(255).round().to(torch.uint8)


def saved(faces: Tensor) -> Tensor:
    """8-bit crops as they are."""
    return faces


def jpeg75(faces: Tensor) -> Tensor:
    """Crops saved as JPEG of quality 75, and read again."""
    return _redrawn(faces, _jpeg75)


def resize(faces: Tensor) -> Tensor:
    """Crops brought to half their side and back, in 8 bits each time."""
    return _redrawn(faces, _resize)


SURVIVALS: dict[str, Callable[[Tensor], Tensor]] = {"saved": saved, "jpeg75": jpeg75, "resize": resize}


def _redrawn(faces: Tensor, redraw: Callable[[Image.Image], Image.Image]) -> Tensor:
    pictures = [redraw(Image.fromarray(face.permute(1, 2, 0).contiguous().numpy())) for face in faces]
    return torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures])


def _jpeg75(picture: Image.Image) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=75)
    return Image.open(file)


def _resize(picture: Image.Image) -> Image.Image:
    half = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS)
    return half.resize(picture.size, Image.Resampling.BICUBIC)


def measure(
    people: People,
    rows: Mapping[str, Recipe],
    surrogates: Sequence[Surrogate],
    targets: Sequence[Surrogate],
    output: Path,
    cloaks: Path,
    *,
    seeds: Sequence[int] = (0,),
    survivals: Sequence[str] = tuple(SURVIVALS),
    memory_budget: int | None = None,
) -> None:
    """Append a line per row, surrogate, target, seed and survival to `output`, but for those that it has.

    Args:
        people: whom to cloak.
        rows: name -> recipe; the controls go before them.
        surrogates: networks to learn on, of different names.
        targets: networks that judge, of different names.
        output: the CSV file.
        cloaks: folder for the cloaks.
        seeds: of the cloaks, and of the random masks.
        survivals: names of `SURVIVALS`.
        memory_budget: as for `fit_many`.

    Raises:
        ValueError: the file is another table, or it or the folder holds one of the rows with other options.
    """
    recipes = {**{control: {} for control in CONTROLS}, **{n: options_of(r, people.learn) for n, r in rows.items()}}
    about, machine = people.columns(), row_context()
    versions = {"fastcloak": machine["fastcloak"], "commit": machine["commit"] or "unknown"}
    done = _done(output, about, recipes)
    gallery: dict[str, tuple[dict[str, Tensor], Tensor]] = {}
    for row, options in recipes.items():
        # A control is learnt on nothing, and a clean photo has no seed either.
        for surrogate, seed in product([None] if row in CONTROLS else surrogates, [0] if row == "clean" else seeds):
            line = {**about, "row": row, "options": _json(options), "seed": str(seed)}
            line["surrogate"] = NO_SURROGATE if surrogate is None else surrogate.name
            todo = [(t, s) for t in targets for s in survivals if _key(line, target=t.name, survival=s) not in done]
            if not todo:
                continue
            masks = _masks(people, row, options, surrogate, seed, cloaks, memory_budget)
            posted = {name: masks[name].apply(probes) for name, probes in people.probes.items()}
            infos = [mask.info for mask in masks.values()]
            for target, survival in todo:
                if target.name not in gallery:
                    clean = {name: embed(target, faces) for name, faces in people.probes.items()}
                    gallery[target.name] = clean, embed(target, people.distractors)
                clean, crowd = gallery[target.name]
                rates = [
                    person_rates(embed(target, SURVIVALS[survival](faces)), clean[name], crowd)
                    for name, faces in posted.items()
                ]
                results = {
                    "target": target.name,
                    "white_box": surrogate is not None and not _members(surrogate).isdisjoint(_members(target)),
                    "survival": survival,
                    "image_gradients": infos[0].get("image_gradients", 0),
                    "seconds": f"{median(info.get('seconds', 0.0) for info in infos):.4g}",
                    **dict(zip(RATES, map(_rate, np.mean(rates, 0)), strict=True)),
                    "per_person_top1": " ".join(_rate(rate.protection_top1) for rate in rates),
                    "per_person_linkage": " ".join(_rate(rate.linkage_top1) for rate in rates),
                    "per_person_cosine": " ".join(_rate(rate.mean_similarity) for rate in rates),
                }
                _append(output, {**line, **results, **versions})


def _masks(
    people: People,
    row: str,
    options: Options,
    surrogate: Surrogate | None,
    seed: int,
    cloaks: Path,
    memory_budget: int | None,
) -> dict[str, Cloak]:
    """The masks of one row, in the order of people: cloaks from the folder, and those not there learnt and kept."""
    if surrogate is None:
        blank = Cloak(torch.zeros(SHAPE), 8 / 255)
        return {name: blank if row == "clean" else random_mask(blank, name, seed) for name in people.probes}
    folder = cloaks / people.data / _file_name(row) / _file_name(surrogate.name) / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    recipe, note = _json({"row": row, "learn": people.learn, "options": options}), folder / "recipe.json"
    if any(folder.glob("*.safetensors")) and note.read_text() != recipe:
        raise ValueError(f"row {row!r} is now {recipe}, but {note} says {note.read_text()}; take another --cloaks")
    atomic_write(note, recipe.encode())
    files = {name: folder / f"{name}.safetensors" for name in people.probes}
    learnt_from = {name: people.learnt_from[name] for name, file in files.items() if not file.exists()}
    if learnt_from:
        print(f"{row}: learning {len(learnt_from)} cloaks on {surrogate.name}, seed {seed}", file=sys.stderr)
        for name, cloak in fit_many(learnt_from, surrogate, seed=seed, memory_budget=memory_budget, **options).items():
            cloak.save(files[name])
    return {name: load(file) for name, file in files.items()}


def _done(output: Path, about: Row, recipes: Mapping[str, Options]) -> set[tuple[str, ...]]:
    """Keys of the lines in the file; a file that is not there is begun."""
    if not output.exists():
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(",".join(COLUMNS) + "\n")
    lines = _read(output)
    for line in lines:
        now = recipes.get(line["row"])
        if now is not None and about.items() <= line.items() and line["options"] != _json(now):
            raise ValueError(
                f"row {line['row']!r} is now {_json(now)}, but {output} has it with {line['options']}; take another "
                "output file"
            )
    return {_key(line) for line in lines}


def _read(path: Path) -> list[Row]:
    lines = read(path)
    if lines and tuple(lines[0]) != COLUMNS:
        raise ValueError(f"{path} must have the columns {', '.join(COLUMNS)}; take another output file")
    return lines


def _append(output: Path, line: Mapping[str, object]) -> None:
    # Opened for every line, so that whoever interrupts finds whole lines.
    with open(output, "a", newline="") as file:
        csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(line)


def _key(line: Row, **more: str) -> tuple[str, ...]:
    return tuple({**line, **more}[column] for column in KEY)


def _members(model: Surrogate) -> set[str]:
    return {member.name for member in model.members}


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _rate(value: float) -> str:
    return f"{value:.4f}"


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.+=-]+", "_", name)


def per_person(lines: Iterable[Row], column: str, *, white_box: bool = False) -> PerPerson:
    """Row -> (surrogate, target) -> [P], mean over seeds, of the black-box pairs or of the white-box ones.

    A control, which has no surrogate, stands beside every black-box pair with the same target.
    """
    chosen = [line for line in lines if line["white_box"] == str(white_box)]
    pairs = dict.fromkeys(_pair(line) for line in chosen if line["row"] not in CONTROLS)
    seeds: dict[str, dict[Pair, list[Array]]] = {}
    for line in chosen:
        values = np.array(line[f"per_person_{column}"].split(), dtype=np.float64)
        beside = [pair for pair in pairs if pair[1] == line["target"]] if line["row"] in CONTROLS and pairs else None
        for pair in [_pair(line)] if beside is None else beside:
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

    A row that lacks pairs others have is marked with *: its means are over its own pairs, and differences over the
    pairs that both rows have.
    """
    top1, linkage = per_person(lines, "top1"), per_person(lines, "linkage")
    white = per_person(lines, "top1", white_box=True)
    # In the order of the file, which the controls, beside every pair, do not have.
    pairs = list(dict.fromkeys(pair for row in sorted(top1, key=CONTROLS.__contains__) for pair in top1[row]))
    header = ["row", "image-gradients", "s/person", *map(" -> ".join, pairs), "mean", "95 %"]
    header += [f"vs {against}", "95 %"] if against else []
    table = [[*header, "linkage", "white box"]]
    for row in dict.fromkeys(line["row"] for line in lines):
        own, of = [line for line in lines if line["row"] == row], top1.get(row, {})
        cells = [row + "*" * (len(of) < len(pairs)), f"{median(float(line['image_gradients']) for line in own):.0f}"]
        cells.append(f"{median(float(line['seconds']) for line in own):.3g}")
        cells += [_percent(of[pair].mean()) if pair in of else "" for pair in pairs]
        cells += _with_interval(list(of.values()))
        if against:
            both = [of[pair] - top1[against][pair] for pair in of if pair in top1.get(against, {})]
            cells += _with_interval(both, sign="+") if row != against else ["", ""]
        cells.append(_percent(np.mean(list(linkage[row].values()))) if of else "")
        cells.append(_percent(np.mean(list(white[row].values()))) if row in white else "")
        table.append(cells)
    return table


def _percent(rate: Any, sign: str = "") -> str:
    # Adding 0 turns -0.0 into 0.0.
    return f"{round(100 * float(rate), 1) + 0:{sign}.1f}"


def _with_interval(pairs: list[Array], sign: str = "") -> list[str]:
    if not pairs:
        return ["", ""]
    mean, low, high = (_percent(value, sign) for value in interval(np.mean(pairs, 0)))
    return [mean, f"[{low}, {high}]"]


def laid_out(table: Sequence[Sequence[str]], *, markdown: bool = False) -> str:
    """The table as text; names lean left, numbers right."""
    if markdown:
        rule = ["---", *["---:"] * (len(table[0]) - 1)]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (table[0], rule, *table[1:]))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]).rstrip() for cells in table
    )


def groups(lines: Iterable[Row]) -> dict[tuple[str, ...], dict[str, list[Row]]]:
    """Lines by people, then by survival, in the order of the file."""
    found: dict[tuple[str, ...], dict[str, list[Row]]] = {}
    for line in lines:
        people = tuple(line[column] for column in PEOPLE_COLUMNS)
        found.setdefault(people, {}).setdefault(line["survival"], []).append(line)
    return found


def report(lines: Sequence[Row], against: str | None = None, *, markdown: bool = False) -> None:
    """Print a table per group of people and survival."""
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


def estimates(values: PerPerson, rows: Sequence[str], target: str | None = None) -> protection_plots.Estimates:
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
        for figure, draw in protection_plots.FIGURES.items():
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
            protection_plots.save(drawn, folder / f"protection_{name}_{figure}", caption)


def parse_rows(texts: Iterable[str]) -> dict[str, Recipe]:
    """Names, @groups and NAME=option:value,option:value -> recipes.

    Raises:
        ValueError: an unknown name or group, or a name for two things.
    """
    rows: dict[str, Recipe] = {}
    for text in texts:
        given = re.fullmatch(r"(.+?)=(\w+:.*)", text)
        if text in RECIPES:
            rows[text] = RECIPES[text]
        elif text.startswith("@") and text[1:] in GROUPS:
            rows |= {name: RECIPES[name] for name in GROUPS[text[1:]]}
        elif given is None or given[1] in rows or given[1] in RECIPES or given[1] in CONTROLS:
            listed = ", ".join([*(f"@{group}" for group in GROUPS), *RECIPES])
            raise ValueError(f"--rows must be one of {listed}; or a new NAME=option:value,option:value; got {text!r}")
        else:
            # A tuple has commas of its own; only one before another option's name divides.
            parts = [part.partition(":") for part in re.split(r",(?=\w+:)", given[2])]
            rows[given[1]] = {option: _literal(value) for option, _, value in parts}
    return rows


def _literal(text: str) -> object:
    try:
        value: object = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value


def load_models(specifications: Iterable[str], loaded: dict[str, Surrogate]) -> list[Surrogate]:
    """Networks, and ensembles of them written a&b; each is loaded once and kept in `loaded`.

    Raises:
        ValueError: two of one name.
    """
    models = []
    for specification in specifications:
        parts = specification.split("&")
        for part in parts:
            if part not in loaded:
                loaded[part] = load_model(parse_model(part), "auto")
        models.append(loaded[parts[0]] if len(parts) == 1 else load_model([loaded[part] for part in parts]))
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise ValueError(f"models must have names of their own, got {names}; rename a file")
    return models


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("people", type=Path, nargs="?", metavar="PEOPLE_DIR", help="folder of folders; ORL if left out")
    parser.add_argument("--surrogates", nargs="+", metavar="M", help=f"{MODEL_HELP}; a&b is an ensemble")
    parser.add_argument("--targets", nargs="+", metavar="M", help="as surrogates")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="recipes, @groups, or NAME=option:value,option:value")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--distractors", type=Path, help="folder of photos; the people without a cloak if left out")
    parser.add_argument("--learn", type=int, default=6, help="the first photos teach, the others judge (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="skip so many people (%(default)s)")
    parser.add_argument("--count", type=int, default=12, help="people that get a cloak (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--survival", choices=SURVIVALS, nargs="+", default=list(SURVIVALS), help="(all)")
    parser.add_argument("--memory-budget", type=float, default=2, help="GiB a pass; 0: fit_many decides (%(default)s)")
    parser.add_argument("--cloaks", type=Path, help="folder for the cloaks (the output's name with .cloaks)")
    parser.add_argument("--summary", action="store_true", help="measure nothing")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument("--against", metavar="ROW", help="row that differences are to (opom convex_hull)")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="folder for figures")
    given = parser.parse_args(arguments)

    if not given.summary:
        if not (given.surrogates and given.targets and given.rows):
            parser.error("--surrogates, --targets and --rows are needed, but for --summary")
        try:
            rows = parse_rows(given.rows)
        except ValueError as error:
            parser.error(str(error))
        loaded: dict[str, Surrogate] = {}
        measure(
            read_people(given.people, given.distractors, learn=given.learn, first=given.first, count=given.count),
            rows,
            load_models(given.surrogates, loaded),
            load_models(given.targets, loaded),
            given.output,
            given.cloaks or given.output.with_suffix(".cloaks"),
            seeds=list(dict.fromkeys(given.seeds)),
            survivals=list(dict.fromkeys(given.survival)),
            memory_budget=int(given.memory_budget * 2**30) or None,
        )
    lines = _read(given.output)
    if given.against is not None and given.against not in {line["row"] for line in lines}:
        parser.error(f"--against must be a row of {given.output}, got {given.against!r}")
    report(lines, given.against, markdown=given.markdown)
    if given.plots is not None:
        given.plots.mkdir(parents=True, exist_ok=True)
        plot(lines, given.plots)


if __name__ == "__main__":
    main()
