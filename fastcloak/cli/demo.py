"""`fastcloak demo`: cloaks for a few ORL people, fitted on SFace and judged on dlib, which they were not fitted on."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcloak.cli.options import path_argument, people_argument
from fastcloak.cli.output import OK, print_lines, print_result
from fastcloak.system.packages import ORL_PEOPLE, ORL_PHOTOS, orl_folder

if TYPE_CHECKING:
    from fastcloak.cloak import Cloak
    from fastcloak.evaluation.results import Evaluation
    from fastcloak.fitting.run import Progress

PEOPLE, STRANGERS = 4, 20
FULL_PEOPLE = 6
FITTED_TO = 6
"""The cloak is fitted to the first photos of a person, the other four judge it."""
SHOWN = 3
GA_ONLY = ("preset", "batch_size", "inner_steps", "inner_alpha")
"""Options of `fit_many` that method opom refuses."""


@dataclass(frozen=True)
class Demo:
    """What the demo measured and wrote.

    Attributes:
        evaluation: rows clean, random, opom and ga on dlib and SFace.
        cloaks: method -> person -> cloak.
        files: what was written, in order.
    """

    evaluation: Evaluation
    cloaks: dict[str, dict[str, Cloak]]
    files: tuple[Path, ...]


def add_arguments(demo: argparse.ArgumentParser) -> None:
    demo.add_argument(
        "-o",
        "--output",
        type=path_argument,
        default=Path("fastcloak-demo"),
        help="folder for cloaks and pictures, which replace those of an earlier demo (default: %(default)s)",
    )
    demo.add_argument(
        "--people",
        type=people_argument,
        help=f"how many people get a cloak, 1 to {ORL_PEOPLE - 1} (default: {PEOPLE}, with --full {FULL_PEOPLE})",
    )
    demo.add_argument(
        "--full",
        action="store_true",
        help=f"compare with the photos of all other people, not of {STRANGERS}; takes about twice as long",
    )


def run(arguments: argparse.Namespace) -> int:
    arguments.kept = f"; any finished files are in {arguments.output}"
    people = arguments.people or (FULL_PEOPLE if arguments.full else PEOPLE)
    demo = run_demo(
        arguments.output,
        people=people,
        strangers=ORL_PEOPLE - people if arguments.full else min(STRANGERS, ORL_PEOPLE - people),
        progress=False if arguments.json else None,
        on_stage=(lambda line: None) if arguments.json else print_lines,
    )
    result = {**demo.evaluation.to_json(), "files": [str(file) for file in demo.files]}
    table = demo.evaluation.table().split("\n")
    print_result(arguments.json, result, "", *table, "", f"Written: {', '.join(map(str, demo.files))}")
    return OK


def run_demo(
    folder: str | Path = "fastcloak-demo",
    *,
    people: int = PEOPLE,
    strangers: int = STRANGERS,
    progress: Progress = None,
    on_stage: Callable[[str], None] = lambda line: None,
    **fit_options: Any,
) -> Demo:
    """Fits cloaks with OPOM and GA-OPOM on SFace and measures what they do on dlib and SFace.

    The first `people` of the 40 ORL people get a cloak from six of their photos and are judged on the other four. The
    photos of the next `strangers` people are the distractors.

    Args:
        folder: where pictures and cloak files go; made if it is missing.
        people: how many people, 1 to 39.
        strangers: how many of the others are distractors, 1 to 40 - people.
        progress: as in `fit`.
        on_stage: called with a line at the beginning of each stage.
        fit_options: other options of `fit_many`; those that only ga has are for ga.

    Returns:
        `Demo`.

    Raises:
        ValueError: people or strangers out of range, or what `fit_many` refuses.
        MissingExtraError: the `demo` extra is not installed.
        OSError: the folder cannot be written.
    """
    # Late, so that the command line answers at once.
    import torch

    from fastcloak.evaluation.figures import plot_protection, save_comparison
    from fastcloak.evaluation.protocol import evaluate_photos, random_mask
    from fastcloak.fitting.fitter import fit_many
    from fastcloak.models import load_model
    from fastcloak.photos.inputs import load_faces

    if not 1 <= people < ORL_PEOPLE:
        raise ValueError(f"people must be 1 to {ORL_PEOPLE - 1}, the others are distractors; got {people}")
    if not 1 <= strangers <= ORL_PEOPLE - people:
        raise ValueError(f"strangers must be 1 to {ORL_PEOPLE - people} with {people} people, got {strangers}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    on_stage(f"Detecting and aligning {(people + strangers) * ORL_PHOTOS} ORL photos ...")
    photos = {
        f"s{person}": load_faces([orl_folder() / f"s{person}" / f"{photo}.pgm" for photo in range(1, ORL_PHOTOS + 1)])
        for person in range(1, people + strangers + 1)
    }
    cloaked = dict(list(photos.items())[:people])
    distractors = dict(list(photos.items())[people:])
    probes = {name: faces[FITTED_TO:] for name, faces in cloaked.items()}

    surrogate, target = load_model("sface"), load_model("dlib")
    cloaks: dict[str, dict[str, Cloak]] = {}
    for method in ("opom", "ga"):
        on_stage(f"Fitting {people} cloaks on SFace with {method} ...")
        cloaks[method] = fit_many(
            {name: faces[:FITTED_TO] for name, faces in cloaked.items()},
            surrogate,
            method=method,
            progress=progress,
            **{name: value for name, value in fit_options.items() if method == "ga" or name not in GA_ONLY},
        )

    on_stage("Judging them on dlib, which no cloak was fitted on, and on SFace ...")
    masks = {"random": {name: random_mask(cloak, name) for name, cloak in cloaks["ga"].items()}, **cloaks}
    evaluation = evaluate_photos(
        probes,
        {label: {name: mask.apply(probes[name]) for name, mask in those.items()} for label, those in masks.items()},
        [target, surrogate],
        distractors,
        fitted_on={method: [surrogate.name] for method in cloaks},
    )

    files = []
    for name, cloak in cloaks["ga"].items():
        files.append(folder / f"{name}.cloak.safetensors")
        cloak.save(files[-1])
    shown = list(probes)[:SHOWN]
    files.append(folder / "cloaked.png")
    before = torch.cat([probes[name][:2] for name in shown])
    after = torch.cat([cloaks["ga"][name].apply(probes[name][:2]) for name in shown])
    save_comparison(files[-1], before, after)
    files.append(folder / "protection.png")
    plot_protection(evaluation, files[-1])
    return Demo(evaluation, cloaks, tuple(files))
