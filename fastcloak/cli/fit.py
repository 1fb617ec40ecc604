"""`fastcloak fit`."""

from __future__ import annotations

import argparse
import os
from itertools import count
from pathlib import Path

import fastcloak
from fastcloak.cli.options import fit_options, models
from fastcloak.cli.output import OK, print_json, say


def run_fit(arguments: argparse.Namespace) -> int:
    from fastcloak.fitting.claim import clear

    _check_cloak_may_go_to(arguments.output)
    if arguments.restart and arguments.checkpoint is None:
        raise ValueError("--restart needs --checkpoint DIR: without one there is nothing to go on from")
    arguments.kept = "; no cloak was written"
    try:
        cloak = _fitted(arguments)
    except (fastcloak.FitInterrupted, fastcloak.CheckpointError) as stop:
        arguments.kept = _keep_unfinished(stop, arguments.output, arguments.checkpoint)
        if isinstance(stop, fastcloak.CheckpointError):
            raise OSError(f"{stop}{arguments.kept}") from stop
        raise
    cloak.save(arguments.output)
    arguments.kept = f"; the cloak is in {arguments.output}"
    if arguments.checkpoint is not None:
        clear(arguments.checkpoint)
    if arguments.json:
        print_json({"cloak": str(arguments.output), "eps": cloak.eps, **cloak.info}, arguments.json)
    else:
        info = cloak.info
        say(
            f"{arguments.output}: a cloak from {info['photos']} photos, learnt on {' + '.join(info['models'])} with "
            f"{info['image_gradients']} image-gradients in {info['seconds']:.1f} s"
        )
    return OK


def _fitted(arguments: argparse.Namespace) -> fastcloak.Cloak:
    from fastcloak.photos.inputs import photo_files

    return fastcloak.fit(
        photo_files(arguments.photos),
        models(arguments.model or ["sface"]),
        **fit_options(arguments),
        progress=False if arguments.json else None,
        checkpoint=arguments.checkpoint,
        resume=not arguments.restart,
    )


def _keep_unfinished(
    stop: fastcloak.FitInterrupted | fastcloak.CheckpointError, output: Path, folder: Path | None
) -> str:
    """Writes the best cloak of a fit that was stopped, never over an older one; says where it is."""
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
