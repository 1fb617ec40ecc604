"""`fastcloak demo`: masks for a few ORL people, learnt on SFace and judged on dlib, which they were not learnt on.

The cloaks of `fit`, one a person, stand next to what `tailor` does, a mask for each photo.
"""

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
TAILORED = "tailored"
TAILORED_NOTE = f"{TAILORED}: a mask for each photo, not one for all photos of a person; it is no row of the papers."
GA_ONLY = ("preset", "batch_size", "inner_steps", "inner_alpha")
"""Options of `fit_many` that method opom refuses."""


@dataclass(frozen=True)
class Demo:
    """What the demo measured and wrote.

    Attributes:
        evaluation: rows clean, random, opom, ga and tailored on dlib and SFace.
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
    print_result(
        arguments.json, result, "", *table, f"  {TAILORED_NOTE}", "", f"Written: {', '.join(map(str, demo.files))}"
    )
    return OK


def run_demo(
    folder: str | Path = "fastcloak-demo",
    *,
    people: int = PEOPLE,
    strangers: int = STRANGERS,
    progress: Progress = None,
    on_stage: Callable[[str], None] = lambda line: None,
    gradients: int | None = None,
    **fit_options: Any,
) -> Demo:
    """Fits cloaks with OPOM and GA-OPOM on SFace, tailors photos on it, and measures what both do on dlib and SFace.

    The first `people` of the 40 ORL people are learnt from six of their photos and judged on the other four. The
    photos of the next `strangers` people are the distractors.

    Args:
        folder: where pictures and cloak files go; made if it is missing.
        people: how many people, 1 to 39.
        strangers: how many of the others are distractors, 1 to 40 - people.
        progress: as in `fit`.
        on_stage: called with a line at the beginning of each stage.
        gradients: per tailored photo, as in `tailor`.
        fit_options: other options of `fit_many`; those that only ga has are for ga.

    Returns:
        `Demo`.

    Raises:
        ValueError: people or strangers out of range, or what `fit_many` or `tailor` refuses.
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
    from fastcloak.protection.enrolment import enrol
    from fastcloak.tailoring.tailor import tailor

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

    on_stage(f"Tailoring {sum(map(len, probes.values()))} photos on SFace ...")
    tailored = {}
    for name, faces in probes.items():
        me = enrol(cloaked[name][:FITTED_TO], surrogate)
        tailored[name] = (faces + tailor(faces, me, [surrogate], gradients=gradients)).clamp(0, 1)

    on_stage("Judging them on dlib, which no mask was learnt on, and on SFace ...")
    masks = {"random": {name: random_mask(cloak, name) for name, cloak in cloaks["ga"].items()}, **cloaks}
    universal = {
        label: {name: mask.apply(probes[name]) for name, mask in those.items()} for label, those in masks.items()
    }
    evaluation = evaluate_photos(
        probes,
        {**universal, TAILORED: tailored},
        [target, surrogate],
        distractors,
        fitted_on={label: [surrogate.name] for label in (*cloaks, TAILORED)},
    )

    files = []
    for name, cloak in cloaks["ga"].items():
        files.append(folder / f"{name}.cloak.safetensors")
        cloak.save(files[-1])
    shown = list(probes)[:SHOWN]
    files.append(folder / "cloaked.png")
    versions = {"original": probes, "universal": universal["ga"], TAILORED: tailored}
    save_comparison(
        files[-1], {label: torch.cat([faces[name][:2] for name in shown]) for label, faces in versions.items()}
    )
    files.append(folder / "protection.png")
    plot_protection(evaluation, files[-1])
    return Demo(evaluation, cloaks, tuple(files))
