"""What commands print: JSON, tables of counts, exit codes."""

from __future__ import annotations

import builtins
import contextlib
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from fastcloak.evaluation.text import plain_name
from fastcloak.system.files import atomic_write

OK, FAILED, SOME_FAILED, INTERRUPTED = 0, 1, 3, 130


class Stream:
    """A standard stream that never stops the work: what it cannot write is dropped, and `error` says why.

    It may be closed (`>&-`), full, or a pipe whose reader is gone, as in `fastcloak info me.safetensors | head -1`.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream: TextIO = open(os.devnull, "w", encoding="utf-8") if stream is None else stream  # noqa: SIM115
        self.error: OSError | ValueError | None = None

    def write(self, text: str) -> int:
        # Other streams than a terminal's may be ASCII only.
        encoding = self._stream.encoding or "utf-8"
        try:
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError) as error:
            self.error = self.error or error
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self.error = self.error or error

    def drop_rest(self) -> None:
        if self.error is not None:
            with contextlib.suppress(OSError, ValueError):
                drop_output(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class PlainFormatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        return plain_name(super().formatMessage(record))


def print_lines(*lines: str) -> None:
    """Prints lines to stdout, whatever file names they hold."""
    print("\n".join(map(plain_name, lines)), flush=True)


def print_error(line: str) -> None:
    """Prints a line to stderr, whatever file names it holds."""
    print(plain_name(line), file=sys.stderr)


def print_result(to: str | None, value: Any, *lines: str) -> None:
    """Prints lines; or with `--json` the value instead, or writes it to a file."""
    if not to:
        print_lines(*lines)
        return
    text = json.dumps(value, indent=2, default=str).replace("\x7f", "\\u007f")
    if to == "-":
        print(text)
    else:
        atomic_write(Path(to), text.encode() + b"\n")


def drop_output(stream: TextIO) -> None:
    """Sends what is left to print nowhere. Without it Python's last flush fails too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


REASONS = {
    "FaceNotFoundError": "no face found",
    "PersonNotFoundError": "not the enrolled person",
    "PhotoError": "cannot be read or written as a photo",
    "CloakFileError": "the cloak file is damaged or foreign",
    "CheckpointError": "the state of the fit could not be saved",
    "EngineError": "the engine cannot run the network",
    "AlteredFileError": "a network's file was changed",
    "MissingExtraError": "a part of fastcloak is not installed",
    "ProcessDied": "its process died",
    "OutOfMemoryError": "not enough memory",
    "MemoryError": "not enough memory",
    "FloatingPointError": "the network gives numbers that are not finite",
    "FileExistsError": "the name is taken",
    "FileNotFoundError": "not there",
    "PermissionError": "not permitted",
    "OSError": "cannot be read or written",
    "ValueError": "cannot be used",
    "Exception": "unexpected error",
}
"""Kinds of error, and of built-in ones those that they derive from -> what the summary calls them."""
TO_TURN = "photos to turn upright and protect again"


def reasons(reasons: Counter[str]) -> list[tuple[int, str]]:
    words: Counter[str] = Counter()
    for reason, number in reasons.items():
        kinds = [reason, *(kind.__name__ for kind in getattr(builtins, reason, Exception).__mro__)]
        words[next(REASONS[kind] for kind in kinds if kind in REASONS)] += number
    return [(number, f"  {reason}") for reason, number in words.most_common()]


def counts(output: Path, lines: Sequence[tuple[int, str]]) -> list[str]:
    """A table of numbers and what they count, without those that are 0."""
    shown = [(str(number), what) for number, what in lines if number]
    width = max((len(number) for number, _ in shown), default=0)
    return [f"{output}:", *(f"{number:>{width + 2}}  {what}" for number, what in shown)]


def exit_code(failed: int, of: int, left_out: int = 0) -> int:
    if not failed:
        return SOME_FAILED if left_out else OK
    return SOME_FAILED if failed < of else FAILED
