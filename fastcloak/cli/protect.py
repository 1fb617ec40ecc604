"""`fastcloak protect`."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from dataclasses import asdict

import fastcloak
from fastcloak.cli.options import MODEL_HELP, MODELS, add_protect_options, models, path_argument, protect_options
from fastcloak.cli.output import TO_TURN, counts, exit_code, print_result, reasons
from fastcloak.evaluation.text import plain_name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("cloak", type=path_argument, help="a file that fit wrote")
    add("photos", nargs="+", metavar="PHOTO", type=path_argument, help="photos, or folders, taken with subfolders")
    output = "folder for the protected photos, made if it is missing; or for a single photo a file name"
    add("-o", "--output", type=path_argument, required=True, help=output)
    add_protect_options(parser, ("largest", "all", "me"))
    add("--enrolment", type=path_argument, metavar="FOLDER", help="with --who me: photos of the person alone")
    network = f"with --who me: the network that recognises the person: {MODEL_HELP} (default: sface)"
    add("--models", help=network, **MODELS)
    add("--jobs", type=int, default=min(8, os.cpu_count() or 1), help="photos at a time (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from fastcloak.photos.inputs import photo_files
    from fastcloak.protection.album import ALREADY, DONE_BEFORE, FAILED, PROTECTED, Outcome

    if (arguments.who == "me") != (arguments.enrolment is not None) or (arguments.models and arguments.who != "me"):
        raise ValueError(
            "--who me needs --enrolment FOLDER with photos of the person; --enrolment and --models need --who me"
        )
    if arguments.models and len(arguments.models) > 1:
        raise ValueError(f"--models must be one network with --who me, got {' '.join(arguments.models)}; leave one")
    cloak = fastcloak.load(arguments.cloak)
    if cloak.idle is not None:
        raise ValueError(f"{arguments.cloak} protects nothing: {cloak.idle}; fit another")
    plan = fastcloak.plan_photos(arguments.photos, arguments.output)
    options = protect_options(arguments)
    if arguments.who == "me":
        options["who"] = fastcloak.enrol(photo_files(arguments.enrolment), models(arguments.models or ["sface"]))
    outcomes: list[Outcome] = []
    with tqdm(total=len(plan.photos), desc="protecting", unit="photo", disable=True if arguments.json else None) as bar:

        def on_outcome(outcome: Outcome) -> None:
            outcomes.append(outcome)
            done = sum(outcome.status in (PROTECTED, DONE_BEFORE) for outcome in outcomes)
            arguments.kept = f"; {done} of {len(plan.photos)} photos are protected in {arguments.output}"
            bar.update()
            for words in filter(None, () if arguments.json else (outcome.error, *outcome.warnings)):
                named = words if words.startswith(str(outcome.source)) else f"{outcome.source}: {words}"
                bar.write(plain_name(named), file=sys.stderr)

        fastcloak.protect_photos(plan, cloak, **options, jobs=arguments.jobs, progress=on_outcome)
    outcomes.sort(key=lambda outcome: outcome.source)
    by_status = Counter(outcome.status for outcome in outcomes)
    lines = [(number, status) for status, number in by_status.items() if status != FAILED]
    lines.append((by_status[FAILED], FAILED))
    lines += reasons(Counter(outcome.reason for outcome in outcomes if outcome.reason))
    lines.append((sum(outcome.faces for outcome in outcomes), "faces"))
    lines.append((sum(bool(outcome.warnings) for outcome in outcomes), "photos with a warning"))
    lines.append((sum(outcome.uncertain > 0 for outcome in outcomes), TO_TURN))
    result = {"cloak": cloak.id, "counts": by_status, "photos": [asdict(outcome) for outcome in outcomes]}
    print_result(arguments.json, result, *counts(arguments.output, lines))
    uncertain = sum(outcome.uncertain for outcome in outcomes)
    return exit_code(by_status[FAILED], len(outcomes), by_status[ALREADY] + uncertain)
