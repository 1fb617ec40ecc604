"""`fastcloak fit`."""

from __future__ import annotations

import argparse
import os
from itertools import count
from pathlib import Path

import fastcloak
from fastcloak.cli.options import add_fit_options, fit_options, models, path_argument
from fastcloak.cli.output import OK, print_result

MODELS, PRESET = ("sface", "dlib"), "strong"
"""The strongest recipe: a person has a minute. Python's defaults and those of fit-many are the fast ones."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("photos", nargs="+", metavar="PHOTO", type=path_argument, help="photos of the person, or a folder of them")
    output = "the cloak file, such as me.safetensors; replaces an older cloak, and no other file"
    add("-o", "--output", type=path_argument, required=True, help=output)
    add_fit_options(parser, MODELS, PRESET)
    state = "folder for the state of the fit, saved about once a second: the same command goes on from there after any "
    add("--checkpoint", metavar="DIR", type=path_argument, help=f"{state}stop; it is removed at the end")
    add("--restart", action="store_true", help="begin again, whatever is in the folder of --checkpoint")


def run(arguments: argparse.Namespace) -> int:
    from fastcloak.fitting.claim import clear
    from fastcloak.photos.inputs import photo_files

    output, checkpoint = arguments.output, arguments.checkpoint
    _check_cloak_may_go_to(output)
    if arguments.restart and checkpoint is None:
        raise ValueError("--restart needs --checkpoint DIR: without one there is nothing to go on from")
    arguments.kept = "; no cloak was written"
    try:
        cloak = fastcloak.fit(
            photo_files(arguments.photos),
            models(arguments.models),
            **fit_options(arguments, PRESET),
            progress=False if arguments.json else None,
            checkpoint=checkpoint,
            resume=not arguments.restart,
        )
    except (fastcloak.FitInterrupted, fastcloak.CheckpointError) as stop:
        arguments.kept = _keep_unfinished(stop, output, checkpoint)
        if isinstance(stop, fastcloak.CheckpointError):
            raise OSError(f"{stop}{arguments.kept}") from stop
        raise
    cloak.save(output)
    arguments.kept = f"; the cloak is in {output}"
    if checkpoint is not None:
        clear(checkpoint)
    info = cloak.info
    line = f"{output}: a cloak from {info['photos']} photos, fitted on {' + '.join(info['models'])} with "
    line += f"{info['image_gradients']} image-gradients in {info['seconds']:.1f} s"
    print_result(arguments.json, {"cloak": str(output), "eps": cloak.eps, **info}, line)
    return OK


def _keep_unfinished(
    stop: fastcloak.FitInterrupted | fastcloak.CheckpointError, output: Path, folder: Path | None
) -> str:
    """Writes the best cloak of a stopped fit, never over an older one; returns where it is, for the message."""
    goes_on = f"; the same command goes on from what is saved in {folder}" if folder is not None else ""
    if "" in stop.cloaks:
        stop.cloaks[""].save(output)
        return f"; the cloak is in {output}"
    if "" not in stop.partial:
        return f" before the first step was done; no cloak was written{goes_on}"
    cloak, file = stop.partial[""], output
    for n in count(1):
        if not os.path.lexists(file):
            break
        file = output.with_name(f"{output.stem}.partial{n if n > 1 else ''}{output.suffix}")
    cloak.save(file)
    return f"; the cloak of {cloak.info['steps_done']} of {cloak.info['steps']} steps is in {file}{goes_on}"


def _check_cloak_may_go_to(output: Path) -> None:
    if output.is_dir():
        raise IsADirectoryError(f"-o must be a file such as me.safetensors, got the folder {output}; add a name")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"-o must be in a folder that exists, got {output}; make {output.parent} first")
    if output.exists():
        try:
            fastcloak.load(output)
        except fastcloak.CloakFileError as error:
            raise FileExistsError(f"-o may replace a cloak only: {error}; name another file") from None
