"""The demo: cloaks for several ORL people, learnt on SFace and judged on dlib, which they were not learnt on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from fastcloak.assets import ORL_PEOPLE, ORL_PHOTOS, orl_folder
from fastcloak.cloak import Cloak
from fastcloak.evaluation import Evaluation, evaluate_photos, random_mask
from fastcloak.faces import load_faces
from fastcloak.fitting import Progress, fit_many
from fastcloak.models import load_model
from fastcloak.report import plot_protection, save_comparison

__all__ = ["Demo", "run_demo"]

LEARNT_FROM = 6
"""The first photos of a person teach the cloak, the other four judge it."""
SHOWN = 3


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
    progress: Progress = None,
    say: Callable[[str], None] = lambda line: None,
) -> Demo:
    """Learns cloaks with OPOM and GA-OPOM on SFace and measures what they do on dlib and SFace.

    The first `people` of the 40 ORL people get a cloak from six of their photos and are judged on the other four. The
    photos of the others are the distractors.

    Args:
        folder: where pictures and cloak files go; made if it is not there.
        people: how many people, 1 to 39.
        progress: as in `fit`.
        say: is told what comes next, in a line.

    Returns:
        `Demo`.

    Raises:
        ValueError: people out of range.
        MissingExtraError: the `demo` extra is not installed.
        OSError: the folder cannot be written.
    """
    if not 1 <= people < ORL_PEOPLE:
        raise ValueError(f"people must be 1 to {ORL_PEOPLE - 1}, the others are distractors; got {people}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    say(f"Detecting and aligning the {ORL_PEOPLE * ORL_PHOTOS} ORL photos ...")
    photos = {f"s{person}": _orl_person(person) for person in range(1, ORL_PEOPLE + 1)}
    cloaked = dict(list(photos.items())[:people])
    distractors = dict(list(photos.items())[people:])
    learnt_from = {name: faces[:LEARNT_FROM] for name, faces in cloaked.items()}
    probes = {name: faces[LEARNT_FROM:] for name, faces in cloaked.items()}

    surrogate, target = load_model("sface"), load_model("dlib")
    cloaks: dict[str, dict[str, Cloak]] = {}
    for method in ("opom", "ga"):
        say(f"Learning {people} cloaks on SFace with {method} ...")
        cloaks[method] = fit_many(learnt_from, surrogate, method=method, progress=progress)

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
