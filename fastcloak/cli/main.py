"""The command line: a table of commands, the streams, Ctrl-C and exit codes.

Exit codes: 0 all well; 1 failed; 2 wrong usage; 3 some photos or people failed, photos were protected already and left
out, or which way up a face is cannot be told; the others are done; 130 interrupted.
PyTorch, NumPy and tqdm are imported by the commands that need them: `--help` and wrong usage answer at once.
"""

from __future__ import annotations

import sys

try:
    import argparse
    import contextlib
    import logging
    import os
    import re
    import signal
    import threading
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType
    from typing import Any, NoReturn, TextIO, cast

    import fastcloak
    from fastcloak.cli import check, demo, doctor, fit, info, many, protect, tailor
    from fastcloak.cli.output import FAILED, INTERRUPTED, PlainFormatter, Stream, print_error
    from fastcloak.evaluation.text import plain_name
    from fastcloak.system.errors import FastcloakError
except KeyboardInterrupt:  # within the first tenth of a second
    print("fastcloak: interrupted", file=sys.stderr)
    sys.exit(130)

COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]] = {
    "demo": ("Fit cloaks for a few people on SFace and judge them on dlib.", demo.add_arguments, demo.run),
    "tailor": (
        "Give each photo of an album a mask of its own; originals stay unchanged.",
        tailor.add_arguments,
        tailor.run,
    ),
    "fit": ("Fit a cloak to about ten photos of one person.", fit.add_arguments, fit.run),
    "protect": ("Write cloaked copies of photos; originals stay unchanged.", protect.add_arguments, protect.run),
    "fit-many": ("Fit a cloak to each of many people; again to go on.", many.add_fit_arguments, many.run_fit_many),
    "protect-many": (
        "Write cloaked copies of many people's photos.",
        many.add_protect_arguments,
        many.run_protect_many,
    ),
    "check": ("Compare protected photos with originals on face networks.", check.add_arguments, check.run),
    "info": ("Show what is in a cloak file.", info.add_arguments, info.run),
    "doctor": ("Show which device, backend and engine would run, and why.", doctor.add_arguments, doctor.run),
}
"""Name -> what it does, what adds its arguments, what runs it. While it runs, a command that writes keeps in
`arguments.kept` what an interruption leaves behind."""


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        hint = "; networks are named by --models" if re.search(r"--model(?![\w-])", message) else ""
        super().error(plain_name(message + hint))


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="fastcloak", description="Class-universal privacy cloaks: one small mask per person.")
    parser.add_argument("--version", action="version", version=fastcloak.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (description, add_arguments, run) in COMMANDS.items():
        command = commands.add_parser(name, help=description, description=description)
        add_arguments(command)
        command.add_argument("--json", metavar="FILE", help="print JSON, or write it to FILE (.json); - prints too")
        command.set_defaults(run=run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line, by default with the arguments of the process; returns the exit code."""
    parsed = argparse.Namespace(kept="")
    out, err = Stream(sys.stdout), Stream(sys.stderr)
    handler = logging.StreamHandler(cast(TextIO, err))
    handler.setFormatter(PlainFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    with contextlib.redirect_stdout(cast(TextIO, out)), contextlib.redirect_stderr(cast(TextIO, err)):
        try:
            with _careful_interruption(parsed):
                build_parser().parse_args(_with_json_target(sys.argv[1:] if arguments is None else arguments), parsed)
                code: int = parsed.run(parsed)
        except KeyboardInterrupt:
            print_error(f"fastcloak: interrupted{parsed.kept}")
            code = INTERRUPTED
        except (FastcloakError, ValueError, TypeError, OSError, FloatingPointError, RuntimeError) as error:
            print_error(f"fastcloak: {error}")
            code = FAILED
        finally:
            logging.getLogger().removeHandler(handler)
            out.flush()
            if out.error is not None and not isinstance(out.error, BrokenPipeError):
                print_error(f"fastcloak: the output is lost: {out.error}{parsed.kept}")
            out.drop_rest()
            err.drop_rest()
    return code if out.error is None else code or FAILED


@contextlib.contextmanager
def _careful_interruption(parsed: argparse.Namespace) -> Iterator[None]:
    """Ctrl-C in an import ends the program at once: KeyboardInterrupt aborts some C++ modules or is lost in them."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        while frame is not None and frame.f_code is not main.__code__:
            if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
                print_error(f"fastcloak: interrupted{parsed.kept}")
                sys.stderr.flush()
                os._exit(INTERRUPTED)
            frame = frame.f_back
        raise KeyboardInterrupt

    # Not where it is ignored, as in background jobs, nor where a program has a handler of its own.
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _with_json_target(arguments: Sequence[str]) -> list[str]:
    """`--json` alone means `--json=-`; what follows it is its own only if it is `-` or ends in .json."""
    given: list[str] = []
    for argument in arguments:
        if given and given[-1] == "--json=-" and (argument == "-" or argument.endswith(".json")):
            given[-1] = f"--json={argument}"
        else:
            given.append("--json=-" if argument == "--json" else argument)
    return given
