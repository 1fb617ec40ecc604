"""`fastcloak fit-many` and `fastcloak protect-many`."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from fastcloak.cli.options import fit_options, models
from fastcloak.cli.output import TO_TURN, counts, exit_code, print_json, reasons, say, tell
from fastcloak.evaluation.text import plain_name

MOST_ERRORS_SHOWN = 20


def run_fit_many(arguments: argparse.Namespace) -> int:
    from fastcloak.scale.index import INDEX
    from fastcloak.scale.jobs import fit_dataset

    arguments.kept = f"; people who are finished have a cloak in {arguments.output}, and the same command goes on"
    with _people_bar("fitting", arguments) as show:
        summary = fit_dataset(
            arguments.people,
            models(arguments.models),
            arguments.output,
            concurrency=arguments.workers,
            num_gpus=arguments.gpus_per_worker,
            people_per_batch="auto" if arguments.people_per_batch is None else arguments.people_per_batch,
            address=arguments.address,
            progress=show,
            **fit_options(arguments),
        )
    if arguments.json:
        print_json({"cloaks": str(arguments.output), **summary.to_json()}, arguments.json)
    else:
        lines = [(summary.fitted, "people fitted"), (summary.done_before, "done before"), (summary.failed, "failed")]
        say(*counts(arguments.output, [*lines, *reasons(summary.reasons)]))
        say(f"{summary.people_per_hour:.0f} people per hour; a row for each: {arguments.output / INDEX}")
    return exit_code(summary.failed, summary.people)


def run_protect_many(arguments: argparse.Namespace) -> int:
    from fastcloak.protection.album import ALREADY, FAILED
    from fastcloak.scale.jobs import protect_dataset

    arguments.kept = f"; what is finished is in {arguments.output}, and the same command goes on"
    with _people_bar("protecting", arguments) as show:
        summary = protect_dataset(
            arguments.people,
            arguments.cloaks,
            arguments.output,
            concurrency=arguments.workers,
            address=arguments.address,
            progress=show,
            who=arguments.who,
            quality=arguments.quality,
            strip_gps=arguments.strip_gps,
            strip_metadata=arguments.strip_metadata,
            overwrite=arguments.overwrite,
            again=arguments.again,
            dry_run=arguments.dry_run,
        )
    if arguments.json:
        print_json({"protected": str(arguments.output), **summary.to_json()}, arguments.json)
    else:
        lines = [(summary.people, "people"), (summary.failed, "people without a cloak or photos")]
        photos = [(number, f"photos {status}") for status, number in summary.photos.items()]
        photos.append((summary.uncertain, TO_TURN))
        say(*counts(arguments.output, [*lines, *photos, *reasons(summary.reasons)]))
    failed, of = summary.failed + summary.photos[FAILED], summary.people + summary.photos.total()
    return exit_code(failed, of, summary.photos[ALREADY] + summary.uncertain)


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
        tell(f"{errors - MOST_ERRORS_SHOWN} more errors")
