"""Protection of many recipes: every recipe x surrogate x target x seed x survival, and what the rows say.

    python -m bench.protection --surrogates sface "sface&dlib" --targets dlib sface --rows @table1 -o rows.csv
    python -m bench.protection PEOPLE_DIR --distractors DIR --learn 10 --surrogates M --targets M --rows NAME -o FILE
    python -m bench.protection -o rows.csv --summary [--markdown] [--against ROW] [--plots DIR]

PEOPLE_DIR holds a folder of photos per person; without it the 40 ORL people of the demo extra are used. "a&b" is an
ensemble. A row is a name of bench/protection/recipes.py, a group of them (@table1), or a recipe given here:
NAME=option:value,option:value. The controls "clean" and "random" (a random sign mask of 8 levels) are always measured.
Lines that are in the file are not measured again, and cloaks that are in the folder of cloaks are not learnt again.

Survival is what happens to a protected 112x112 crop before the network sees it: "saved" (8 bits), "jpeg75" (JPEG of
quality 75), "resize" (half its side and back). The gallery is always the saved clean photo.
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

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.harness.machine import row_context
from bench.harness.rows import Row, read
from bench.protection.recipes import GROUPS, RECIPES, Options, Recipe, options_of
from bench.protection.summary import CONTROLS, PEOPLE_COLUMNS, plot, report
from fastcloak import fit_many, load, load_model
from fastcloak.cli.options import MODEL_HELP, parse_model
from fastcloak.cli.output import drop_output
from fastcloak.cloak import SHAPE, Cloak
from fastcloak.evaluation.protocol import embed, person_rates, random_mask
from fastcloak.models import Surrogate
from fastcloak.photos.inputs import load_faces, photo_files
from fastcloak.system.files import atomic_write
from fastcloak.system.packages import orl_folder

NO_SURROGATE = "-"
LEAST_PROBES = 2
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
    try:
        report(lines, given.against, markdown=given.markdown)
        sys.stdout.flush()
    except BrokenPipeError:
        drop_output(sys.stdout)
    if given.plots is not None:
        given.plots.mkdir(parents=True, exist_ok=True)
        plot(lines, given.plots)


if __name__ == "__main__":
    main()
