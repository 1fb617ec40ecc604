"""Protection of many recipes: every recipe x surrogate x target x seed x survival, and what the rows say.

    python -m bench.protection --surrogates sface "sface&dlib" --targets dlib sface --rows @table1 -o rows.csv
    python -m bench.protection PEOPLE_DIR --distractors DIR --learn 10 --surrogates M --targets M --rows NAME -o FILE
    python -m bench.protection -o rows.csv --summary [--markdown] [--against ROW] [--plots DIR]

PEOPLE_DIR holds a folder of photos per person; without it the 40 ORL people of the demo extra are used. "a&b" is an
ensemble. A row is a name of bench/protection/recipes.py, a group of them (@table1), or a recipe given here:
NAME=option:value,option:value. The controls "clean" and "random" (a random sign mask of 8 levels) are always measured.
Lines that are in the file are not measured again, and cloaks that are in the folder of cloaks are not fitted again.

Survival is the post-processing of a protected 112x112 crop before the network sees it: "saved" (8 bits), "jpeg75" (JPEG
of quality 75), "resize" (half its side and back). The gallery is always the saved clean photo.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.harness.command import command
from bench.harness.machine import row_context
from bench.harness.rows import Row, Rows, check_lines, read
from bench.protection.people import PEOPLE_COLUMNS, People, load_models, members, read_people
from bench.protection.recipes import Options, Recipe, as_json, check_options, options_of, parse_rows
from bench.protection.summary import CONTROLS, plot, report
from fastcloak import fit_many, load
from fastcloak.cli.output import drop_output
from fastcloak.cloak import SHAPE, Cloak
from fastcloak.evaluation.postprocessing import Pixels, jpeg, scaled
from fastcloak.evaluation.protocol import embed, person_rates, random_mask
from fastcloak.models import Surrogate
from fastcloak.system.files import atomic_write

NO_SURROGATE = "-"
KEY = (*PEOPLE_COLUMNS, "row", "surrogate", "target", "seed", "survival")


def resize(pixels: Pixels) -> Pixels:
    half = Image.fromarray(scaled(pixels, 0.5))
    return np.array(half.resize(pixels.shape[1::-1], Image.Resampling.BICUBIC))


SURVIVALS: dict[str, Callable[[Pixels], Pixels]] = {
    "saved": lambda pixels: pixels,
    "jpeg75": lambda pixels: jpeg(pixels, 75),
    "resize": resize,
}


def changed(faces: Tensor, survival: str) -> Tensor:
    """Crops [N, 3, 112, 112] uint8 after a post-processing of `SURVIVALS`."""
    pixels = [SURVIVALS[survival](face.permute(1, 2, 0).contiguous().numpy()) for face in faces]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


def measure(
    people: People,
    recipes: Mapping[str, Recipe],
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

    The controls go before the recipes; `cloaks` is the folder that keeps the cloaks.

    Raises:
        ValueError: the file is another table, or it or the folder holds one of the rows with other options.
    """
    options = {**{control: {} for control in CONTROLS}, **{n: options_of(r, people.learn) for n, r in recipes.items()}}
    about, machine = people.columns(), row_context()
    versions = {"fastcloak": machine["fastcloak"], "commit": machine["commit"] or "unknown"}
    rows = Rows(output, dict, append=True)
    check_lines(rows.rows, KEY, output)
    check_options(rows.rows, {row: as_json(own) for row, own in options.items()}, about, output)
    done = {tuple(line[column] for column in KEY) for line in rows.rows}
    gallery: dict[str, tuple[dict[str, Tensor], Tensor]] = {}
    for row, own in options.items():
        # A control is fitted on nothing, and a clean photo has no seed either.
        for surrogate, seed in product([None] if row in CONTROLS else surrogates, [0] if row == "clean" else seeds):
            line = {**about, "row": row, "options": as_json(own), "seed": str(seed)}
            line["surrogate"] = NO_SURROGATE if surrogate is None else surrogate.name
            todo = [
                (target, survival)
                for target, survival in product(targets, survivals)
                if tuple({**line, "target": target.name, "survival": survival}[column] for column in KEY) not in done
            ]
            if not todo:
                continue
            masks = masks_of(people, row, own, surrogate, seed, cloaks, memory_budget)
            posted = {name: masks[name].apply(probes) for name, probes in people.probes.items()}
            infos = [mask.info for mask in masks.values()]
            for target, survival in todo:
                if target.name not in gallery:
                    clean = {name: embed(target, faces) for name, faces in people.probes.items()}
                    gallery[target.name] = clean, embed(target, people.distractors)
                clean, crowd = gallery[target.name]
                rates = [
                    person_rates(embed(target, changed(faces, survival)), clean[name], crowd)
                    for name, faces in posted.items()
                ]
                rates_of = {
                    "top1": [rate.protection_top1 for rate in rates],
                    "top5": [rate.protection_top5 for rate in rates],
                    "linkage": [rate.linkage_top1 for rate in rates],
                    "cosine": [rate.mean_similarity for rate in rates],
                }
                white = surrogate is not None and bool(members(surrogate) & members(target))
                result: dict[str, Any] = {key: line[key] for key in (*about, "row", "options", "surrogate")}
                result |= {"target": target.name, "white_box": white, "seed": seed, "survival": survival}
                result["image_gradients"] = infos[0].get("image_gradients", 0)
                result["seconds"] = f"{median(info.get('seconds', 0.0) for info in infos):.4g}"
                result |= {name: f"{np.mean(values):.4f}" for name, values in rates_of.items()}
                for name in ("top1", "linkage", "cosine"):
                    result[f"per_person_{name}"] = " ".join(f"{value:.4f}" for value in rates_of[name])
                rows.add({**result, **versions})


def masks_of(
    people: People,
    row: str,
    options: Options,
    surrogate: Surrogate | None,
    seed: int,
    cloaks: Path,
    memory_budget: int | None,
) -> dict[str, Cloak]:
    """The masks of one row, in the order of people: cloaks from the folder, and those not there fitted and kept."""
    if surrogate is None:
        blank = Cloak(torch.zeros(SHAPE), 8 / 255)
        return {name: blank if row == "clean" else random_mask(blank, name, seed) for name in people.probes}
    part, whose = (re.sub(r"[^\w.+=-]+", "_", name) for name in (row, surrogate.name))
    folder = cloaks / people.data / part / whose / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    recipe, note = as_json({"row": row, "learn": people.learn, "options": options}), folder / "recipe.json"
    if any(folder.glob("*.safetensors")) and note.read_text() != recipe:
        raise ValueError(f"row {row!r} is now {recipe}, but {note} says {note.read_text()}; take another --cloaks")
    atomic_write(note, recipe.encode())
    files = {name: folder / f"{name}.safetensors" for name in people.probes}
    learnt_from = {name: people.learnt_from[name] for name, file in files.items() if not file.exists()}
    if learnt_from:
        print(f"{row}: fitting {len(learnt_from)} cloaks on {surrogate.name}, seed {seed}", file=sys.stderr)
        for name, cloak in fit_many(learnt_from, surrogate, seed=seed, memory_budget=memory_budget, **options).items():
            cloak.save(files[name])
    return {name: load(file) for name, file in files.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command(
        __doc__, "people", "distractors", "output", "first", "cloaks", "targets", "summary", learn=6, count=12
    )
    parser.add_argument("--surrogates", nargs="+", metavar="M", help="networks to fit on; a&b is an ensemble")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="recipes, @groups, or NAME=option:value,option:value")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--survival", choices=SURVIVALS, nargs="+", default=list(SURVIVALS), help="(all)")
    parser.add_argument("--memory-budget", type=float, default=2, help="GiB a pass; 0: fit_many decides (%(default)s)")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument("--against", metavar="ROW", help="row that differences are to (opom convex_hull)")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="folder for figures")
    given = parser.parse_args(arguments)

    if not given.summary:
        if not (given.surrogates and given.targets and given.rows):
            parser.error("--surrogates, --targets and --rows are needed, but for --summary")
        try:
            recipes = parse_rows(given.rows, reserved=CONTROLS)
        except ValueError as error:
            parser.error(str(error))
        loaded: dict[str, Surrogate] = {}
        measure(
            read_people(given.people, given.distractors, learn=given.learn, first=given.first, count=given.count),
            recipes,
            load_models(given.surrogates, loaded),
            load_models(given.targets, loaded),
            given.output,
            given.cloaks or given.output.with_suffix(".cloaks"),
            seeds=list(dict.fromkeys(given.seeds)),
            survivals=list(dict.fromkeys(given.survival)),
            memory_budget=int(given.memory_budget * 2**30) or None,
        )
    lines: list[Row] = read(given.output)
    check_lines(lines, KEY, given.output)
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
