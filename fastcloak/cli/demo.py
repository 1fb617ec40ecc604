"""The demo: cloaks for several ORL people, learnt on SFace and judged on dlib, which they were not learnt on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastcloak.cloak import Cloak
from fastcloak.evaluation.figures import plot_protection, save_comparison
from fastcloak.evaluation.protocol import evaluate_photos, random_mask
from fastcloak.evaluation.results import Evaluation
from fastcloak.fitting.fitter import fit_many
from fastcloak.fitting.run import Progress
from fastcloak.models import load_model
from fastcloak.photos.inputs import load_faces
from fastcloak.system.packages import ORL_PEOPLE, ORL_PHOTOS, orl_folder

__all__ = ["Demo", "run_demo"]

LEARNT_FROM = 6
"""The first photos of a person teach the cloak, the other four judge it."""
SHOWN = 3
GA_ONLY = ("preset", "batch_size", "inner_steps", "inner_alpha")
"""Options of `fit_many` that method opom refuses."""


@dataclass(frozen=True)
class Demo:
    """What the demo found and wrote.

    Attributes:
        evaluation: rows clean, random, opom and ga on dlib and SFace.
        cloaks: method -> person -> cloak.
        files: what was written, in order.
    """

    evaluation: Evaluation
    cloaks: dict[str, dict[str, Cloak]]
    files: tuple[Path, ...]


def run_demo(
    folder: str | Path = "fastcloak-demo",
    *,
    people: int = 6,
    strangers: int | None = None,
    progress: Progress = None,
    say: Callable[[str], None] = lambda line: None,
    **fit_options: Any,
) -> Demo:
    """Learns cloaks with OPOM and GA-OPOM on SFace and measures what they do on dlib and SFace.

    The first `people` of the 40 ORL people get a cloak from six of their photos and are judged on the other four. The
    photos of the next `strangers` people are the distractors.

    Args:
        folder: where pictures and cloak files go; made if it is not there.
        people: how many people, 1 to 39.
        strangers: how many of the others are distractors, 1 to 40 - people; None: all of them.
        progress: as in `fit`.
        say: is told what comes next, in a line.
        fit_options: other options of `fit_many`; those that only ga has are for ga.

    Returns:
        `Demo`.

    Raises:
        ValueError: people or strangers out of range, or what `fit_many` refuses.
        MissingExtraError: the `demo` extra is not installed.
        OSError: the folder cannot be written.
    """
    if not 1 <= people < ORL_PEOPLE:
        raise ValueError(f"people must be 1 to {ORL_PEOPLE - 1}, the others are distractors; got {people}")
    strangers = ORL_PEOPLE - people if strangers is None else strangers
    if not 1 <= strangers <= ORL_PEOPLE - people:
        raise ValueError(f"strangers must be 1 to {ORL_PEOPLE - people} beside {people} people, got {strangers}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    say(f"Detecting and aligning {(people + strangers) * ORL_PHOTOS} ORL photos ...")
    photos = {f"s{person}": _orl_person(person) for person in range(1, people + strangers + 1)}
    cloaked = dict(list(photos.items())[:people])
    distractors = dict(list(photos.items())[people:])
    learnt_from = {name: faces[:LEARNT_FROM] for name, faces in cloaked.items()}
    probes = {name: faces[LEARNT_FROM:] for name, faces in cloaked.items()}

    surrogate, target = load_model("sface"), load_model("dlib")
    cloaks: dict[str, dict[str, Cloak]] = {}
    for method in ("opom", "ga"):
        say(f"Learning {people} cloaks on SFace with {method} ...")
        options = {name: value for name, value in fit_options.items() if method == "ga" or name not in GA_ONLY}
        cloaks[method] = fit_many(learnt_from, surrogate, method=method, progress=progress, **options)

    say("Judging them on dlib, which no cloak was learnt on, and on SFace ...")
    masks = {"random": {name: random_mask(cloak, name) for name, cloak in cloaks["ga"].items()}, **cloaks}
    evaluation = evaluate_photos(
        probes,
        {label: {name: mask.apply(probes[name]) for name, mask in those.items()} for label, those in masks.items()},
        [target, surrogate],
        distractors,
        learnt_on={method: [surrogate.name] for method in cloaks},
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


def _orl_person(person: int) -> torch.Tensor:
    """[10, 3, 112, 112]: all photos of one ORL person."""
    return load_faces([orl_folder() / f"s{person}" / f"{photo}.pgm" for photo in range(1, ORL_PHOTOS + 1)])
