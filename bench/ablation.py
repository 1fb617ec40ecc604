"""Small ablation behind the defaults of method "ga": batch size, inner steps and inner step size.

    python -m bench.ablation -o bench/results/ablation_orl.csv
    python -m bench.ablation PEOPLE_DIR --distractors DIR --learn 10 -o rows.csv

PEOPLE_DIR holds a folder of photos per person; without it the 40 ORL people of the demo extra are used. A row is one
recipe on one target; rows that are in the file already are not run again.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import torch

from fastcloak import fit_many
from fastcloak.assets import orl_folder
from fastcloak.cli import MODEL_HELP, parse_model
from fastcloak.cloak import SHAPE, Cloak
from fastcloak.evaluation import embed, person_rates, random_mask
from fastcloak.faces import load_faces
from fastcloak.photos import photo_files

Recipe = dict[str, Any]


def ga(batch_size: int, inner_steps: int, inner: float = 1, **options: Any) -> Recipe:
    """GA with a look-ahead step of `inner` grey levels."""
    return {"batch_size": batch_size, "inner_steps": inner_steps, "inner_alpha": inner / 255, **options}


# 16 steps with b M = 10 cost 160 image-gradients, what OPOM costs with 10 photos; opom costs 16 N with N photos.
RECIPES: dict[str, Recipe] = {
    "opom": {"method": "opom"},
    "ga": {},
    "opom class_center": {"method": "opom", "objective": "class_center"},
    "opom fi_uap": {"method": "opom", "objective": "fi_uap"},
    "ga b=1 M=10": ga(1, 10),
    "ga b=2 M=5": ga(2, 5),
    "ga b=5 M=2": ga(5, 2),
    "ga b=10 M=1": ga(10, 1),
    "ga b=1 M=10 inner 0.5": ga(1, 10, 0.5),
    "ga b=1 M=10 inner 2": ga(1, 10, 2),
    "ga b=1 M=10 inner 4": ga(1, 10, 4),
    "ga b=1 M=10 inner 8": ga(1, 10, 8),
    "ga b=2 M=5 inner 2": ga(2, 5, 2),
    "ga b=2 M=5 inner 4": ga(2, 5, 4),
    "ga b=1 M=10 inner 4 normalise": ga(1, 10, 4, normalise=True),
    "ga b=1 M=10 inner 4 momentum": ga(1, 10, 4, decay=1.0),
    "ga b=2 M=5 normalise": ga(2, 5, normalise=True),
    "ga b=2 M=5 momentum": ga(2, 5, decay=1.0),
    "ga b=1 M=20 inner 2": ga(1, 20, 2),
    "ga b=1 M=20 inner 4": ga(1, 20, 4),
    "ga b=2 M=20": ga(2, 20),
    "opom 64 steps": {"method": "opom", "steps": 64},
    "ga b=1 M=40 inner 2": ga(1, 40, 2),
}

COLUMNS = (
    "recipe",
    "surrogate",
    "target",
    "white_box",
    "people",
    "image_gradients",
    "top1",
    "top5",
    "linkage",
    "cosine",
    "per_person_top1",
    "per_person_cosine",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("people", type=Path, nargs="?", help="folder of folders; ORL if left out")
    parser.add_argument("--distractors", type=Path, help="folder of photos; the other people if left out")
    parser.add_argument("--surrogate", default="sface", help=MODEL_HELP)
    parser.add_argument("--target", action="append", help=f"{MODEL_HELP} (dlib)")
    parser.add_argument("--learn", type=int, default=6, help="the first photos teach, the others judge (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="skip so many people (%(default)s)")
    parser.add_argument("--count", type=int, default=12, help="people that get a cloak (%(default)s)")
    parser.add_argument("--recipe", action="append", choices=RECIPES, help="(all)")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()

    if arguments.people is None:
        folders = [orl_folder() / f"s{person}" for person in range(1, 41)]
    else:
        folders = sorted(folder for folder in arguments.people.iterdir() if folder.is_dir())
    chosen = folders[arguments.first : arguments.first + arguments.count]
    photos = {folder.name: load_faces(folder) for folder in chosen}
    learnt_from = {person: faces[: arguments.learn] for person, faces in photos.items()}
    probes = {person: faces[arguments.learn :] for person, faces in photos.items()}
    if arguments.distractors is None:
        strangers: torch.Tensor = torch.cat([load_faces(folder) for folder in folders if folder not in chosen])
    else:
        strangers = load_faces(photo_files(arguments.distractors))
    surrogate = parse_model(arguments.surrogate)
    networks = [*(parse_model(target) for target in arguments.target or ["dlib"]), surrogate]
    crowd = [embed(network, strangers) for network in networks]
    clean = [{person: embed(network, faces) for person, faces in probes.items()} for network in networks]

    if not arguments.output.exists():
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(",".join(COLUMNS) + "\n")
    with open(arguments.output, newline="") as file:
        done = {(row["recipe"], row["surrogate"]) for row in csv.DictReader(file)}

    for recipe in ("clean", "random", *(arguments.recipe or RECIPES)):
        if (recipe, surrogate.name) in done:
            continue
        blank = Cloak(torch.zeros(SHAPE), 8 / 255, {"image_gradients": 0})
        if recipe == "clean":
            cloaks = dict.fromkeys(photos, blank)
        elif recipe == "random":
            cloaks = {person: random_mask(blank, person) for person in photos}
        else:
            cloaks = fit_many(learnt_from, surrogate, **RECIPES[recipe])
        with open(arguments.output, "a", newline="") as file:
            for network, others, originals in zip(networks, crowd, clean, strict=True):
                rates = []
                for person, faces in probes.items():
                    posted = (cloaks[person].apply(faces) * 255).round() / 255
                    rates.append(person_rates(embed(network, posted), originals[person], others))
                mean = torch.tensor(rates, dtype=torch.float64).mean(0).tolist()
                csv.writer(file).writerow(
                    [
                        recipe,
                        surrogate.name,
                        network.name,
                        network is surrogate and recipe not in ("clean", "random"),
                        len(photos),
                        next(iter(cloaks.values())).info.get("image_gradients", 0),
                        *(f"{rate:.4f}" for rate in mean),
                        " ".join(f"{rate.protection_top1:.4f}" for rate in rates),
                        " ".join(f"{rate.mean_similarity:.4f}" for rate in rates),
                    ]
                )


if __name__ == "__main__":
    main()
