"""`fastcloak fit-many` and `fastcloak protect-many`."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from fastcloak.cli.options import (
    MODEL_HELP,
    MODELS,
    PROTECT_OPTIONS,
    RUN_OPTIONS,
    add_declared,
    add_fit_options,
    declared_options,
    fit_options,
    models,
    path_argument,
)
from fastcloak.cli.output import TO_TURN, counts, exit_code, print_error, print_result, reasons
from fastcloak.evaluation.text import plain_name
from fastcloak.fitting.options import declared
from fastcloak.tailoring.options import TailorConfig

MOST_ERRORS_SHOWN = 20
GPUS_HELP = "GPUs of a worker, also a part of one (default: 1 if there are any, else 0)"


def add_fit_arguments(parser: argparse.ArgumentParser) -> None:
    _add_people(parser, "folder for the cloaks and index/, new or of an earlier run")
    parser.add_argument("--gpus-per-worker", type=float, help=GPUS_HELP)
    batch = "people that a worker gets at once, and fits again if it is lost (default: 16, with a GPU 64)"
    parser.add_argument("--people-per-batch", type=int, help=batch)
    add_fit_options(parser)


def add_protect_arguments(parser: argparse.ArgumentParser) -> None:
    cloaks = "the folder that fit-many wrote; with --tailor a folder with a folder of about ten photos of each person"
    parser.add_argument("cloaks", type=path_argument, help=cloaks)
    _add_people(parser, "folder for the protected photos, in a folder per person")
    who = "which faces of a photo get a mask: largest; all, not with --tailor; me, the person's, with --tailor "
    parser.add_argument("--who", choices=("largest", "all", "me"), help=f"{who}(default: largest; with --tailor me)")
    for name, option in PROTECT_OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **option)
    parser.add_argument("--tailor", action="store_true", help="give each photo a mask of its own instead of a cloak")
    tailored = parser.add_argument_group("with --tailor")
    rest = parser.add_argument_group("with --tailor, the rest", "docs/use.md has what each gives and costs")
    learn = f"networks to learn on: {MODEL_HELP} (default: sface dlib)"
    tailored.add_argument("--models", help=learn, **MODELS)
    rest.add_argument("--gpus-per-worker", type=float, help=GPUS_HELP)
    add_declared(tailored, rest, TailorConfig)


def _add_people(parser: argparse.ArgumentParser, output: str) -> None:
    add = parser.add_argument
    people = "folder with a folder of photos for each person; or a manifest, .jsonl with lines such as "
    people += '{"person": "anna", "photos": ["anna/1.jpg"]}, or .parquet with these columns'
    add("people", type=path_argument, help=people)
    add("-o", "--output", type=path_argument, required=True, help=output)
    cluster = "of a Ray cluster that this machine is in: auto or HOST:6379 (default: RAY_ADDRESS, else this machine)"
    add("--address", help=cluster)
    workers = "people at a time; 0: in this process, without Ray (default: one per GPU or CPU)"
    add("--workers", type=int, help=workers)


def run_fit_many(arguments: argparse.Namespace) -> int:
    from fastcloak.scale.index import INDEX
    from fastcloak.scale.jobs import fit_dataset

    output = arguments.output
    arguments.kept = f"; people who are finished have a cloak in {output}, and the same command goes on"
    with _people_bar("fitting", arguments) as show:
        summary = fit_dataset(
            arguments.people,
            models(arguments.models),
            output,
            address=arguments.address,
            concurrency=arguments.workers,
            num_gpus=arguments.gpus_per_worker,
            people_per_batch="auto" if arguments.people_per_batch is None else arguments.people_per_batch,
            progress=show,
            **fit_options(arguments),
        )
    lines = [(summary.fitted, "people fitted"), (summary.done_before, "done before"), (summary.failed, "failed")]
    rate = f"{summary.people_per_hour:.0f} people per hour; a row for each: {output / INDEX}"
    result = {"cloaks": str(output), **summary.to_json()}
    print_result(arguments.json, result, *counts(output, [*lines, *reasons(summary.reasons)]), rate)
    return exit_code(summary.failed, summary.people)


def run_protect_many(arguments: argparse.Namespace) -> int:
    from fastcloak.protection.album import ALREADY, FAILED
    from fastcloak.scale.jobs import protect_dataset, tailor_dataset

    output = arguments.output
    options = {name: getattr(arguments, name) for name in PROTECT_OPTIONS}
    write: Callable[..., Any] = protect_dataset
    if arguments.tailor:
        more = {"num_gpus": arguments.gpus_per_worker, **declared_options(arguments, TailorConfig)}
        write = partial(tailor_dataset, models=models(arguments.models or ["sface", "dlib"]), **more)
    else:
        _refuse_tailoring(arguments)
    arguments.kept = f"; what is finished is in {output}, and the same command goes on"
    with _people_bar("tailoring" if arguments.tailor else "protecting", arguments) as show:
        summary = write(
            arguments.people,
            arguments.cloaks,
            output=output,
            who=arguments.who or ("me" if arguments.tailor else "largest"),
            address=arguments.address,
            concurrency=arguments.workers,
            progress=show,
            **options,
        )
    without = f"people without {'an enrolment' if arguments.tailor else 'a cloak'} or photos"
    lines = [(summary.people, "people"), (summary.failed, without)]
    lines += [(number, f"photos {status}") for status, number in summary.photos.items()]
    lines.append((summary.uncertain, TO_TURN))
    result = {"protected": str(output), **summary.to_json()}
    print_result(arguments.json, result, *counts(output, [*lines, *reasons(summary.reasons)]))
    failed, of = summary.failed + summary.photos[FAILED], summary.people + summary.photos.total()
    return exit_code(failed, of, summary.photos[ALREADY] + summary.uncertain)


def _refuse_tailoring(arguments: argparse.Namespace) -> None:
    """Raise ValueError for options that nothing would come of."""
    names = ("models", "gpus_per_worker", *declared(TailorConfig), *RUN_OPTIONS)
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(arguments, name) not in (None, "auto")]
    if given or arguments.who == "me":
        raise ValueError(f"{' '.join(given) or '--who me'} must come with --tailor, got none; add it or leave that out")


@contextlib.contextmanager
def _people_bar(doing: str, arguments: argparse.Namespace) -> Iterator[Callable[[dict[str, Any], int | None], None]]:
    """A bar of people, with the first errors above it; yields the callback for their rows."""
    from tqdm import tqdm

    errors = 0
    with tqdm(desc=doing, unit="person", disable=True if arguments.json else None) as bar:

        def show(row: dict[str, Any], total: int | None) -> None:
            nonlocal errors
            bar.total = total
            bar.update()
            failures = [(row["person"], row["error"])]
            if isinstance(row["photos"], list):  # of protect_dataset; fit_dataset counts them
                failures += [(photo["source"], photo["error"]) for photo in map(json.loads, row["photos"])]
            for what, error in failures:
                if error and not arguments.json:
                    errors += 1
                    if errors <= MOST_ERRORS_SHOWN:
                        bar.write(plain_name(f"{what}: {error}"), file=sys.stderr)

        yield show
    if errors > MOST_ERRORS_SHOWN:
        print_error(f"{errors - MOST_ERRORS_SHOWN} more errors")
