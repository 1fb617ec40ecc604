"""The command line: reads arguments, calls the library, prints. No logic of its own.

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
    import signal
    import threading
    from collections.abc import Iterator, Sequence
    from dataclasses import asdict
    from pathlib import Path
    from typing import TYPE_CHECKING, Any, NoReturn, TextIO, cast

    import fastcloak
    from fastcloak.cli.check import run_check, run_info
    from fastcloak.cli.fit import run_fit
    from fastcloak.cli.many import run_fit_many, run_protect_many
    from fastcloak.cli.options import (
        MODEL_HELP,
        add_fit_options,
        add_people,
        add_protect_options,
        path_argument,
        people_argument,
    )
    from fastcloak.cli.output import FAILED, INTERRUPTED, OK, PlainFormatter, Stream, print_json, say, tell
    from fastcloak.cli.protect import run_protect
    from fastcloak.evaluation.text import plain_name
    from fastcloak.system.packages import ORL_PEOPLE
except KeyboardInterrupt:  # within the first tenth of a second
    print("fastcloak: interrupted", file=sys.stderr)
    sys.exit(130)

if TYPE_CHECKING:
    from types import FrameType


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code.

    Args:
        arguments: without the program's name; None takes them from the process.
    """
    parsed = argparse.Namespace(kept="")
    out, err = Stream(sys.stdout), Stream(sys.stderr)
    handler = logging.StreamHandler(cast(TextIO, err))
    handler.setFormatter(PlainFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    with contextlib.redirect_stdout(cast(TextIO, out)), contextlib.redirect_stderr(cast(TextIO, err)):
        try:
            with _careful_interruption(parsed):
                _parser().parse_args(_with_json_target(sys.argv[1:] if arguments is None else arguments), parsed)
                code: int = parsed.run(parsed)
        except KeyboardInterrupt:
            tell(f"fastcloak: interrupted{parsed.kept}")
            code = INTERRUPTED
        except (ValueError, TypeError, OSError, FloatingPointError, fastcloak.MissingExtraError, RuntimeError) as error:
            tell(f"fastcloak: {error}")
            code = FAILED
        finally:
            logging.getLogger().removeHandler(handler)
            out.flush()
            if out.error is not None and not isinstance(out.error, BrokenPipeError):
                tell(f"fastcloak: what was to be printed is lost: {out.error}{parsed.kept}")
            out.drop_rest()
            err.drop_rest()
    return code if out.error is None else code or FAILED


@contextlib.contextmanager
def _careful_interruption(parsed: argparse.Namespace) -> Iterator[None]:
    """Ctrl-C in an import ends the program at once: KeyboardInterrupt aborts some C++ modules or is lost in them."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        while frame is not None and frame.f_code is not main.__code__:
            if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
                tell(f"fastcloak: interrupted{parsed.kept}")
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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(plain_name(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="fastcloak", description="Class-universal privacy cloaks: one small mask per person.")
    parser.add_argument("--version", action="version", version=fastcloak.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, description: str, aliases: Sequence[str] = ()) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=description, description=description, aliases=aliases)
        # A command that writes keeps in `kept` what an interruption leaves behind.
        added.set_defaults(run=run, kept="")
        return added

    demo = command("demo", _demo, "Learn cloaks for several people on SFace and judge them on dlib.")
    demo.add_argument(
        "-o",
        "--output",
        type=path_argument,
        default=Path("fastcloak-demo"),
        help="folder for cloaks and pictures, which replace those of an earlier demo (default: %(default)s)",
    )
    demo.add_argument(
        "--people",
        type=people_argument,
        default=6,
        help=f"how many people get a cloak, 1 to {ORL_PEOPLE - 1} (default: %(default)s)",
    )

    fit = command("fit", run_fit, "Learn a cloak from about ten photos of one person.")
    fit.add_argument(
        "photos", nargs="+", metavar="PHOTO", type=path_argument, help="photos of the person, or a folder of them"
    )
    fit.add_argument(
        "-o",
        "--output",
        type=path_argument,
        required=True,
        help="the cloak file, such as me.safetensors; an older cloak there is replaced, any other file is not",
    )
    add_fit_options(fit)
    fit.add_argument(
        "--checkpoint",
        metavar="DIR",
        type=path_argument,
        help="folder in which to save what was learnt about once a second: the same command goes on from there after "
        "any stop; it is removed at the end",
    )
    fit.add_argument("--restart", action="store_true", help="begin again, whatever is in the folder of --checkpoint")

    protect = command("protect", run_protect, "Add a cloak to photos of any size; the originals are never changed.")
    protect.add_argument("cloak", type=path_argument, help="a file that fit wrote")
    protect.add_argument(
        "photos",
        nargs="+",
        metavar="PHOTO",
        type=path_argument,
        help="photos, or folders of them and of further folders",
    )
    protect.add_argument(
        "-o",
        "--output",
        type=path_argument,
        required=True,
        help="folder for the protected photos, made if it is not there; or for a single photo a file name",
    )
    protect.add_argument(
        "--who",
        choices=("largest", "all", "me"),
        default="largest",
        help="which faces of a photo get the cloak; me: only the person of --enrolment (default: %(default)s)",
    )
    protect.add_argument(
        "--enrolment", type=path_argument, metavar="FOLDER", help="with --who me: photos of the person alone"
    )
    protect.add_argument(
        "--model", help="with --who me: the network that recognises the person, sface or dlib (default: sface)"
    )
    protect.add_argument(
        "--jobs", type=int, default=min(8, os.cpu_count() or 1), help="photos at a time (default: %(default)s)"
    )
    add_protect_options(protect)

    fit_many = command(
        "fit-many",
        run_fit_many,
        "Learn a cloak for each of many people, on all cores, GPUs and machines of a Ray cluster (extra ray); run it "
        "again to go on.",
    )
    add_people(fit_many)
    fit_many.add_argument(
        "-o",
        "--output",
        type=path_argument,
        required=True,
        help="folder for the cloaks and index/, new or of an earlier run",
    )
    fit_many.add_argument(
        "--gpus-per-worker", type=float, help="also a part of one (default: 1 if there are any GPUs, else 0)"
    )
    fit_many.add_argument(
        "--people-per-batch",
        type=int,
        help="people that a worker gets at once, and fits again if it is lost (default: 16, with a GPU 64)",
    )
    add_fit_options(fit_many)

    protect_many = command(
        "protect-many", run_protect_many, "Add each person's cloak to their photos, on all cores and machines."
    )
    protect_many.add_argument("cloaks", type=path_argument, help="the folder that fit-many wrote")
    add_people(protect_many)
    protect_many.add_argument(
        "-o",
        "--output",
        type=path_argument,
        required=True,
        help="folder for the protected photos, in a folder per person",
    )
    protect_many.add_argument(
        "--who", choices=("largest", "all"), default="largest", help="which faces get the cloak (default: %(default)s)"
    )
    add_protect_options(protect_many)

    check = command(
        "check",
        run_check,
        "Compare a person's protected photos with the originals on face networks, also after changes.",
    )
    check.add_argument("originals", type=path_argument, help="folder of originals, also in subfolders, or one photo")
    check.add_argument(
        "protected",
        type=path_argument,
        help="folder of the same photos, protected, of the same names but for the suffix",
    )
    check.add_argument("--model", action="append", help=f"a network to ask: {MODEL_HELP} (default: sface and dlib)")
    check.add_argument("--models", dest="model", nargs="+", action="extend", help="several of these at once")
    check.add_argument(
        "--distractors",
        type=path_argument,
        help="folder of photos of other people, also in subfolders, for Top-1, Top-5 and linkage",
    )
    check.add_argument("--cloak", type=path_argument, help="the cloak file, to mark the networks that it was learnt on")
    check.add_argument(
        "--html",
        type=path_argument,
        metavar="FILE",
        help="write a report with pictures, one .html file that needs no network; an older report is replaced, any "
        "other file is not",
    )

    info = command("info", run_info, "Show what is in a cloak file.")
    info.add_argument("cloak", type=path_argument, help="a file that fit wrote")

    doctor = command("doctor", _doctor, "Show which device, backend and engine would run, and why not others.")

    for added in (demo, fit, protect, fit_many, protect_many, check, info, doctor):
        added.add_argument(
            "--json", metavar="FILE", help="print JSON for programs, or write it to FILE (.json); - prints too"
        )
    return parser


def _demo(arguments: argparse.Namespace) -> int:
    from fastcloak.cli.demo import run_demo

    quiet = arguments.json
    arguments.kept = f"; any finished files are in {arguments.output}"
    demo = run_demo(
        arguments.output,
        people=arguments.people,
        progress=False if quiet else None,
        say=(lambda line: None) if quiet else say,
    )
    if quiet:
        print_json({**demo.evaluation.to_json(), "files": [str(file) for file in demo.files]}, quiet)
    else:
        say("", *demo.evaluation.table().split("\n"), "", f"Written: {', '.join(str(file) for file in demo.files)}")
    return OK


def _doctor(arguments: argparse.Namespace) -> int:
    from fastcloak.cli.doctor import diagnose

    findings = diagnose()
    if arguments.json:
        print_json({finding.subject: asdict(finding) for finding in findings}, arguments.json)
    else:
        width = max(len(finding.subject) for finding in findings)
        for finding in findings:
            say(f"{finding.subject:{width}}  {finding.answer}{': ' if finding.why else ''}{finding.why}")
    return OK


if __name__ == "__main__":
    sys.exit(main())
