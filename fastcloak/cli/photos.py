"""What `protect` and `tailor` have in common: a bar of photos with what went wrong above it, and a summary."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fastcloak.cli.output import TO_TURN, counts, exit_code, print_result, reasons
from fastcloak.evaluation.text import plain_name

if TYPE_CHECKING:
    from fastcloak.protection.album import Outcome

PHOTOS_HELP = "photos, or folders, taken with subfolders"
OUTPUT_HELP = "folder for the protected photos, made if it is missing; or for a single photo a file name"


class Photos:
    """The photos of a command on their way, as a context: its bar is there within.

    Attributes:
        outcomes: those that are known.
    """

    def __init__(self, doing: str, photos: int, arguments: argparse.Namespace) -> None:
        """Open the bar.

        Args:
            doing: what it says in front.
            photos: how many there are.
            arguments: of the command; `kept` is kept up to date.
        """
        from tqdm import tqdm

        self.outcomes: list[Outcome] = []
        self._photos, self._arguments, self._learnt = photos, arguments, 0.0
        self._keep()
        shape = "{l_bar}{bar}| {n:.0f}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
        off = True if arguments.json else None  # None: where it is no terminal
        self._bar = tqdm(total=photos, desc=doing, unit="photo", disable=off, bar_format=shape)

    def __enter__(self) -> Photos:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.close()

    def learn(self, photos: float) -> None:
        """Move the bar while photos are on their way; `photos` is a part of one, or of some."""
        self._learnt += photos
        self._move()

    def show(self, outcome: Outcome) -> None:
        """Move the bar after a photo, and print what is to be said of it."""
        self.outcomes.append(outcome)
        self._keep()
        self._move()
        for words in filter(None, () if self._arguments.json else (outcome.error, *outcome.warnings)):
            named = words if words.startswith(str(outcome.source)) else f"{outcome.source}: {words}"
            self._bar.write(plain_name(named), file=sys.stderr)

    def _keep(self) -> None:
        from fastcloak.protection.album import DONE_BEFORE, PROTECTED

        done = sum(outcome.status in (PROTECTED, DONE_BEFORE) for outcome in self.outcomes)
        output = self._arguments.output
        self._arguments.kept = f"; {done} of {self._photos} photos are protected in {output}"

    def _move(self) -> None:
        from fastcloak.protection.album import PROTECTED

        # What is learnt of a photo counts before it is written.
        others = sum(outcome.status != PROTECTED for outcome in self.outcomes)
        done = max(len(self.outcomes), min(others + self._learnt, self._photos))
        self._bar.update(done - self._bar.n)

    def print_summary(self, more: dict[str, Any]) -> int:
        """Print the counts, or with --json all there is and `more`; the exit code."""
        from fastcloak.protection.album import ALREADY, FAILED

        outcomes = sorted(self.outcomes, key=lambda outcome: outcome.source)
        by_status = Counter(outcome.status for outcome in outcomes)
        lines = [(number, status) for status, number in by_status.items() if status != FAILED]
        lines.append((by_status[FAILED], FAILED))
        lines += reasons(Counter(outcome.reason for outcome in outcomes if outcome.reason))
        lines.append((sum(outcome.faces for outcome in outcomes), "faces"))
        lines.append((sum(bool(outcome.warnings) for outcome in outcomes), "photos with a warning"))
        lines.append((sum(outcome.uncertain > 0 for outcome in outcomes), TO_TURN))
        result = {**more, "counts": by_status, "photos": [asdict(outcome) for outcome in outcomes]}
        print_result(self._arguments.json, result, *counts(self._arguments.output, lines))
        uncertain = sum(outcome.uncertain for outcome in outcomes)
        return exit_code(by_status[FAILED], len(outcomes), by_status[ALREADY] + uncertain)
