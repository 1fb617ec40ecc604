"""`fastcloak protect`."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import fastcloak
from fastcloak.cli.options import parse_model
from fastcloak.cli.output import TO_TURN, counts, exit_code, print_json, reasons, say
from fastcloak.evaluation.text import plain_name

if TYPE_CHECKING:
    from fastcloak.protection.album import Outcome


def run_protect(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from fastcloak.photos.inputs import photo_files
    from fastcloak.protection.album import ALREADY, DONE_BEFORE, FAILED, PROTECTED

    if (arguments.who == "me") != (arguments.enrolment is not None) or (arguments.model and arguments.who != "me"):
        raise ValueError("--who me needs --enrolment FOLDER with photos of the person, and only --who me takes it")
    cloak = fastcloak.load(arguments.cloak)
    if cloak.idle is not None:
        raise ValueError(f"{arguments.cloak} protects nothing: {cloak.idle}; fit another")
    plan = fastcloak.plan_photos(arguments.photos, arguments.output)
    who = arguments.who
    if who == "me":
        who = fastcloak.enrol(photo_files(arguments.enrolment), parse_model(arguments.model or "sface"))
    outcomes: list[Outcome] = []
    with tqdm(total=len(plan.photos), desc="protecting", unit="photo", disable=True if arguments.json else None) as bar:

        def told(outcome: Outcome) -> None:
            outcomes.append(outcome)
            done = sum(outcome.status in (PROTECTED, DONE_BEFORE) for outcome in outcomes)
            arguments.kept = f"; {done} of {len(plan.photos)} photos are protected in {arguments.output}"
            bar.update()
            if not arguments.json:
                for words in filter(None, (outcome.error, *outcome.warnings)):
                    named = words if words.startswith(str(outcome.source)) else f"{outcome.source}: {words}"
                    bar.write(plain_name(named), file=sys.stderr)

        fastcloak.protect_photos(
            plan,
            cloak,
            who=who,
            quality=arguments.quality,
            strip_gps=arguments.strip_gps,
            strip_metadata=arguments.strip_metadata,
            overwrite=arguments.overwrite,
            again=arguments.again,
            dry_run=arguments.dry_run,
            jobs=arguments.jobs,
            progress=told,
        )
    outcomes.sort(key=lambda outcome: outcome.source)
    counts = Counter(outcome.status for outcome in outcomes)
    if arguments.json:
        photos = [asdict(outcome) for outcome in outcomes]
        print_json({"cloak": cloak.id, "counts": counts, "photos": photos}, arguments.json)
    else:
        say(*_summary(outcomes, arguments.output))
    uncertain = sum(outcome.uncertain for outcome in outcomes)
    return exit_code(counts[FAILED], len(outcomes), counts[ALREADY] + uncertain)


def _summary(outcomes: Sequence[Outcome], output: Path) -> list[str]:
    """A table of how many photos came to what, with the reasons of failures below."""
    from fastcloak.protection.album import FAILED

    by_status = Counter(outcome.status for outcome in outcomes)
    lines = [(number, status) for status, number in by_status.items() if status != FAILED]
    lines.append((by_status[FAILED], FAILED))
    lines += reasons(Counter(outcome.reason for outcome in outcomes if outcome.reason))
    lines.append((sum(outcome.faces for outcome in outcomes), "faces"))
    lines.append((sum(bool(outcome.warnings) for outcome in outcomes), "photos with a warning"))
    lines.append((sum(outcome.uncertain > 0 for outcome in outcomes), TO_TURN))
    return counts(output, lines)
