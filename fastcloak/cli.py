"""The command line: reads arguments, calls the library, prints. No logic of its own.

Exit codes: 0 all well; 1 failed; 2 wrong usage; 3 some photos or people failed, photos were protected already and left
out, or which way up a face is cannot be told; the others are done; 130 interrupted.
PyTorch, NumPy and tqdm are imported by the commands that need them: `--help` and wrong usage answer at once.
"""

from __future__ import annotations

import sys

try:
    import argparse
    import builtins
    import contextlib
    import json
    import logging
    import os
    import signal
    import threading
    from collections import Counter
    from collections.abc import Callable, Iterator, Sequence
    from dataclasses import asdict
    from itertools import count
    from pathlib import Path
    from typing import TYPE_CHECKING, Any, NoReturn, TextIO, cast

    import fastcloak
    from fastcloak.assets import ORL_PEOPLE
    from fastcloak.check_results import plain_name
    from fastcloak.config import (
        AUGMENTATIONS,
        ENSEMBLES,
        GA_BATCH_SIZE,
        GA_INNER_STEPS,
        METHODS,
        OBJECTIVES,
        PRESETS,
        FitConfig,
    )
except KeyboardInterrupt:  # within the first tenth of a second
    print("fastcloak: interrupted", file=sys.stderr)
    sys.exit(130)

if TYPE_CHECKING:
    from types import FrameType

    from fastcloak.folder import Outcome

OK, FAILED, USAGE, SOME_FAILED, INTERRUPTED = 0, 1, 2, 3, 130

MODEL_HELP = (
    "sface, dlib, or an ONNX file, with its normalisation where that is not in the file: "
    "net.onnx,scale=1.9921875,shift=-0.99609375,bgr (the network gets RGB in [0, 1] * scale + shift). "
    "Repeat for several"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code.

    Args:
        arguments: without the program's name; None takes them from the process.
    """
    parsed = argparse.Namespace(kept="")
    out, err = _Stream(sys.stdout), _Stream(sys.stderr)
    handler = logging.StreamHandler(cast(TextIO, err))
    handler.setFormatter(_PlainFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    with contextlib.redirect_stdout(cast(TextIO, out)), contextlib.redirect_stderr(cast(TextIO, err)):
        try:
            with _careful_interruption(parsed):
                _parser().parse_args(_with_json_target(sys.argv[1:] if arguments is None else arguments), parsed)
                code: int = parsed.run(parsed)
        except KeyboardInterrupt:
            _tell(f"fastcloak: interrupted{parsed.kept}")
            code = INTERRUPTED
        except (ValueError, TypeError, OSError, FloatingPointError, fastcloak.MissingExtraError, RuntimeError) as error:
            _tell(f"fastcloak: {error}")
            code = FAILED
        finally:
            logging.getLogger().removeHandler(handler)
            out.flush()
            if out.error is not None and not isinstance(out.error, BrokenPipeError):
                _tell(f"fastcloak: what was to be printed is lost: {out.error}{parsed.kept}")
            out.drop_rest()
            err.drop_rest()
    return code if out.error is None else code or FAILED


@contextlib.contextmanager
def _careful_interruption(parsed: argparse.Namespace) -> Iterator[None]:
    """Ctrl-C in an import ends the program at once: KeyboardInterrupt aborts some C++ modules or is lost in them."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        while frame is not None and frame.f_code is not main.__code__:
            if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
                _tell(f"fastcloak: interrupted{parsed.kept}")
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


class _Stream:
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


class _PlainFormatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        return plain_name(super().formatMessage(record))


def _say(*lines: str) -> None:
    """Prints lines to stdout, whatever file names they hold."""
    print("\n".join(map(plain_name, lines)), flush=True)


def _tell(line: str) -> None:
    """Prints a line to stderr, whatever file names it holds."""
    print(plain_name(line), file=sys.stderr)


def _with_json_target(arguments: Sequence[str]) -> list[str]:
    """`--json` alone means `--json=-`; what follows it is its own only if it is `-` or ends in .json."""
    given: list[str] = []
    for argument in arguments:
        if given and given[-1] == "--json=-" and (argument == "-" or argument.endswith(".json")):
            given[-1] = f"--json={argument}"
        else:
            given.append("--json=-" if argument == "--json" else argument)
    return given


def drop_output(stream: TextIO) -> None:
    """Sends what is left to print nowhere. Without it Python's last flush fails too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


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
        type=_path,
        default=Path("fastcloak-demo"),
        help="folder for cloaks and pictures, which replace those of an earlier demo (default: %(default)s)",
    )
    demo.add_argument(
        "--people",
        type=_people,
        default=6,
        help=f"how many people get a cloak, 1 to {ORL_PEOPLE - 1} (default: %(default)s)",
    )

    fit = command("fit", _fit, "Learn a cloak from about ten photos of one person.")
    fit.add_argument("photos", nargs="+", metavar="PHOTO", type=_path, help="photos of the person, or a folder of them")
    fit.add_argument(
        "-o",
        "--output",
        type=_path,
        required=True,
        help="the cloak file, such as me.safetensors; an older cloak there is replaced, any other file is not",
    )
    _add_fit_options(fit)
    fit.add_argument(
        "--checkpoint",
        metavar="DIR",
        type=_path,
        help="folder in which to save what was learnt about once a second: the same command goes on from there after "
        "any stop; it is removed at the end",
    )
    fit.add_argument("--restart", action="store_true", help="begin anew, whatever is in the folder of --checkpoint")

    protect = command(
        "protect", _protect, "Add a cloak to photos of any size; the originals are never changed.", aliases=["apply"]
    )
    protect.add_argument("cloak", type=_path, help="a file that fit wrote")
    protect.add_argument(
        "photos", nargs="+", metavar="PHOTO", type=_path, help="photos, or folders of them and of further folders"
    )
    protect.add_argument(
        "-o",
        "--output",
        type=_path,
        required=True,
        help="folder for the protected photos, made if it is not there; or for a single photo a file name",
    )
    protect.add_argument(
        "--who",
        choices=("largest", "all", "me"),
        default="largest",
        help="which faces of a photo get the cloak; me: only the person of --enrolment (default: %(default)s)",
    )
    protect.add_argument("--enrolment", type=_path, metavar="FOLDER", help="with --who me: photos of the person alone")
    protect.add_argument(
        "--model", help="with --who me: the network that recognises the person, sface or dlib (default: sface)"
    )
    protect.add_argument(
        "--jobs", type=int, default=min(8, os.cpu_count() or 1), help="photos at a time (default: %(default)s)"
    )
    _add_protect_options(protect)

    fit_many = command(
        "fit-many",
        _fit_many,
        "Learn a cloak for each of many people, on all cores, GPUs and machines of a Ray cluster (extra ray); run it "
        "again to go on.",
    )
    _add_people(fit_many)
    fit_many.add_argument(
        "-o", "--output", type=_path, required=True, help="folder for the cloaks and index/, new or of an earlier run"
    )
    fit_many.add_argument(
        "--gpus-per-worker", type=float, help="also a part of one (default: 1 if there are any GPUs, else 0)"
    )
    fit_many.add_argument(
        "--people-per-batch",
        type=int,
        help="people that a worker gets at once, and fits again if it is lost (default: 16, with a GPU 64)",
    )
    _add_fit_options(fit_many)

    protect_many = command(
        "protect-many", _protect_many, "Add each person's cloak to their photos, on all cores and machines."
    )
    protect_many.add_argument("cloaks", type=_path, help="the folder that fit-many wrote")
    _add_people(protect_many)
    protect_many.add_argument(
        "-o", "--output", type=_path, required=True, help="folder for the protected photos, in a folder per person"
    )
    protect_many.add_argument(
        "--who", choices=("largest", "all"), default="largest", help="which faces get the cloak (default: %(default)s)"
    )
    _add_protect_options(protect_many)

    check = command(
        "check", _check, "Compare a person's protected photos with the originals on face networks, also after changes."
    )
    check.add_argument("originals", type=_path, help="folder of originals, also in subfolders, or one photo")
    check.add_argument(
        "protected", type=_path, help="folder of the same photos, protected, of the same names but for the suffix"
    )
    check.add_argument("--model", action="append", help=f"a network to ask: {MODEL_HELP} (default: sface and dlib)")
    check.add_argument("--models", dest="model", nargs="+", action="extend", help="several of these at once")
    check.add_argument(
        "--distractors",
        type=_path,
        help="folder of photos of other people, also in subfolders, for Top-1, Top-5 and linkage",
    )
    check.add_argument("--cloak", type=_path, help="the cloak file, to mark the networks that it was learnt on")
    check.add_argument(
        "--html",
        type=_path,
        metavar="FILE",
        help="write a report with pictures, one .html file that needs no network; an older report is replaced, any "
        "other file is not",
    )

    info = command("info", _info, "Show what is in a cloak file.")
    info.add_argument("cloak", type=_path, help="a file that fit wrote")

    doctor = command("doctor", _doctor, "Show which device, backend and engine would run, and why not others.")

    for added in (demo, fit, protect, fit_many, protect_many, check, info, doctor):
        added.add_argument(
            "--json", metavar="FILE", help="print JSON for programs, or write it to FILE (.json); - prints too"
        )
    return parser


def _add_people(many: argparse.ArgumentParser) -> None:
    many.add_argument(
        "people",
        type=_path,
        help="folder with a folder of photos for each person; or a manifest, .jsonl with lines such as "
        '{"person": "anna", "photos": ["anna/1.jpg"]}, or .parquet with these columns',
    )
    many.add_argument(
        "--address",
        help="of a Ray cluster: auto, HOST:6379 or ray://HOST:10001 (default: RAY_ADDRESS, else this machine)",
    )
    many.add_argument(
        "--workers", type=int, help="people at a time; 0: in this process, without Ray (default: one per GPU or CPU)"
    )


def _add_protect_options(protect: argparse.ArgumentParser) -> None:
    protect.add_argument(
        "--quality",
        type=int,
        help="of JPEG, HEIC and lossy WebP, 1 to 100 (default: 95, or a JPEG's own where that is better)",
    )
    protect.add_argument("--strip-gps", action="store_true", help="leave out where photos were taken")
    protect.add_argument("--strip-metadata", action="store_true", help="leave out all metadata but for the colours")
    protect.add_argument(
        "--overwrite", action="store_true", help="replace photos that are in the output folder, but never an original"
    )
    protect.add_argument(
        "--again", action="store_true", help="add the cloak to photos that carry it already too, twice as visible"
    )
    protect.add_argument("--dry-run", action="store_true", help="look for the faces and say what would be done")


def _add_fit_options(fit: argparse.ArgumentParser) -> None:
    default = FitConfig  # the class: an instance checks itself, which takes NumPy
    fit.add_argument("--model", action="append", help=f"the surrogate: {MODEL_HELP} as an ensemble (default: sface)")
    fit.add_argument(
        "--method",
        choices=METHODS,
        default=default.method,
        help="ga gathers the gradients of small batches into one step, opom takes all photos in every step "
        "(default: %(default)s)",
    )
    fit.add_argument(
        "--preset",
        choices=PRESETS,
        help="ga only: how much work, with the best recipe for it; plain has no boosters (default of ga: fast)",
    )
    fit.add_argument(
        "--objective",
        choices=OBJECTIVES,
        default=default.objective,
        help="what cloaked photos are driven away from: fi_uap their own originals, fi_uap_plus all originals, "
        "class_center their mean, affine_hull and convex_hull the nearest point that they span (default: %(default)s)",
    )
    fit.add_argument(
        "--eps", type=_eps, default=8.0, help="largest change of a pixel, in grey levels (default: %(default)g)"
    )
    by_preset = "default: the preset's, else"
    fit.add_argument("--alpha", type=_alpha, help=f"size of a step, in grey levels ({by_preset} 1)")
    fit.add_argument("--steps", type=_steps, help=f"steps of the mask ({by_preset} {default.steps})")
    fit.add_argument("--batch-size", type=int, help=f"ga only: photos per inner step ({by_preset} {GA_BATCH_SIZE})")
    fit.add_argument("--inner-steps", type=int, help=f"ga only: inner steps per step ({by_preset} {GA_INNER_STEPS})")
    fit.add_argument("--decay", type=float, help=f"momentum, 0 to 1 ({by_preset} {default.decay:g})")
    fit.add_argument(
        "--augment",
        metavar="NAMES",
        help=f"random views of photos, names with commas out of {', '.join(AUGMENTATIONS)}; +photo adds that one to "
        f"the preset's, for photos with small faces ({by_preset} none)",
    )
    fit.add_argument("--dropout", type=float, help=f"DFANet: share dropped after convolutions ({by_preset} 0)")
    fit.add_argument("--smoothing", type=float, help=f"blur of the gradient in pixels ({by_preset} 0)")
    fit.add_argument(
        "--ensemble",
        choices=ENSEMBLES,
        help="several models: mean of their losses, of their gradients, or one model each inner step in turns "
        f"({by_preset} {default.ensemble})",
    )
    fit.add_argument("--average", type=float, help=f"share of the steps whose masks are averaged ({by_preset} 0)")
    fit.add_argument(
        "--grey",
        action=argparse.BooleanOptionalAction,
        help="learn a mask of three equal channels, which grey photos hold much better "
        "(default: ga does if all photos are grey)",
    )
    fit.add_argument(
        "--seed",
        type=int,
        default=default.seed,
        help="of the random start and the order of photos (default: %(default)s)",
    )
    fit.add_argument(
        "--strict",
        action="store_true",
        help="fail if photos are copies of others or do not look like most of the others, instead of a warning",
    )
    fit.add_argument("--device", default="auto", help="where to compute: auto, cpu, cuda ... (default: %(default)s)")
    fit.add_argument(
        "--dtype", default="auto", help="numbers of the network: auto, float32, bfloat16 (default: %(default)s)"
    )
    fit.add_argument(
        "--backend", default="auto", help="what computes the mask: auto, reference, triton (default: %(default)s)"
    )
    fit.add_argument(
        "--engine",
        default="auto",
        help="how steps are launched: auto, eager, compile, cudagraph (default: %(default)s)",
    )


def _demo(arguments: argparse.Namespace) -> int:
    from fastcloak.demo import run_demo

    quiet = arguments.json
    arguments.kept = f"; any finished files are in {arguments.output}"
    demo = run_demo(
        arguments.output,
        people=arguments.people,
        progress=False if quiet else None,
        say=(lambda line: None) if quiet else _say,
    )
    if quiet:
        _print_json({**demo.evaluation.to_json(), "files": [str(file) for file in demo.files]}, quiet)
    else:
        _say("", *demo.evaluation.table().split("\n"), "", f"Written: {', '.join(str(file) for file in demo.files)}")
    return OK


def _fit(arguments: argparse.Namespace) -> int:
    from fastcloak import checkpoint

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
        checkpoint.clear(arguments.checkpoint)
    if arguments.json:
        _print_json({"cloak": str(arguments.output), "eps": cloak.eps, **cloak.info}, arguments.json)
    else:
        info = cloak.info
        _say(
            f"{arguments.output}: a cloak from {info['photos']} photos, learnt on {' + '.join(info['models'])} with "
            f"{info['image_gradients']} image-gradients in {info['seconds']:.1f} s"
        )
    return OK


def _fitted(arguments: argparse.Namespace) -> fastcloak.Cloak:
    from fastcloak.photos import photo_files

    return fastcloak.fit(
        photo_files(arguments.photos),
        _models(arguments.model or ["sface"]),
        **_fit_options(arguments),
        progress=False if arguments.json else None,
        checkpoint=arguments.checkpoint,
        resume=not arguments.restart,
    )


def _fit_options(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "method": arguments.method,
        "preset": arguments.preset,
        "objective": arguments.objective,
        "eps": arguments.eps / 255,
        "alpha": None if arguments.alpha is None else arguments.alpha / 255,
        "steps": arguments.steps,
        "batch_size": arguments.batch_size,
        "inner_steps": arguments.inner_steps,
        "decay": arguments.decay,
        "augment": arguments.augment,
        "dropout": arguments.dropout,
        "smoothing": arguments.smoothing,
        "ensemble": arguments.ensemble,
        "average": arguments.average,
        "grey": arguments.grey,
        "seed": arguments.seed,
        "strict": arguments.strict,
        "device": arguments.device,
        "dtype": arguments.dtype,
        "backend": arguments.backend,
        "engine": arguments.engine,
    }


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


def _protect(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from fastcloak.folder import ALREADY, DONE_BEFORE, FAILED, PROTECTED
    from fastcloak.photos import photo_files

    if (arguments.who == "me") != (arguments.enrolment is not None) or (arguments.model and arguments.who != "me"):
        raise ValueError("--who me needs --enrolment FOLDER with photos of the person, and only --who me takes it")
    cloak = fastcloak.load(arguments.cloak)
    if cloak.idle is not None:
        raise ValueError(f"{arguments.cloak} protects nothing: {cloak.idle}; fit another")
    plan = fastcloak.plan_photos(arguments.photos, arguments.output)
    enrolment = None
    if arguments.who == "me":
        enrolment = fastcloak.enrol(photo_files(arguments.enrolment), parse_model(arguments.model or "sface"))
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
            who=arguments.who,
            enrolment=enrolment,
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
        _print_json({"cloak": cloak.id, "counts": counts, "photos": photos}, arguments.json)
    else:
        _say(*_summary(outcomes, arguments.output))
    uncertain = sum(outcome.uncertain for outcome in outcomes)
    return _code(counts[FAILED], len(outcomes), counts[ALREADY] + uncertain)


REASONS = {
    "FaceNotFoundError": "no face found",
    "PersonNotFoundError": "not the enrolled person",
    "PhotoError": "cannot be read or written as a photo",
    "CloakFileError": "the cloak file is damaged or foreign",
    "CheckpointError": "what was learnt could not be saved",
    "EngineError": "the engine cannot run the network",
    "AlteredFileError": "a network's file was changed",
    "MissingExtraError": "a part of fastcloak is not installed",
    "ProcessDied": "its process died",
    "OutOfMemoryError": "not enough memory",
    "MemoryError": "not enough memory",
    "FloatingPointError": "the network gives numbers that are not finite",
    "FileExistsError": "the place is taken",
    "FileNotFoundError": "not there",
    "PermissionError": "not permitted",
    "OSError": "cannot be read or written",
    "ValueError": "cannot be used",
    "Exception": "unexpected error",
}
"""Kinds of error, and of built-in ones those that they derive from, in words."""


def _summary(outcomes: Sequence[Outcome], output: Path) -> list[str]:
    """A table of how many photos came to what, with the reasons of failures below."""
    from fastcloak.folder import FAILED

    by_status = Counter(outcome.status for outcome in outcomes)
    lines = [(number, status) for status, number in by_status.items() if status != FAILED]
    lines.append((by_status[FAILED], FAILED))
    lines += _reasons(Counter(outcome.reason for outcome in outcomes if outcome.reason))
    lines.append((sum(outcome.faces for outcome in outcomes), "faces"))
    lines.append((sum(bool(outcome.warnings) for outcome in outcomes), "photos with a warning"))
    lines.append((sum(outcome.uncertain > 0 for outcome in outcomes), TO_TURN))
    return _counts(output, lines)


TO_TURN = "photos to turn upright and protect again"
MOST_ERRORS_SHOWN = 20


def _fit_many(arguments: argparse.Namespace) -> int:
    from fastcloak.index import INDEX
    from fastcloak.scale import fit_dataset

    arguments.kept = f"; who is finished has a cloak in {arguments.output}, and the same command goes on"
    with _people_bar("fitting", arguments) as told:
        summary = fit_dataset(
            arguments.people,
            _models(arguments.model or ["sface"]),
            arguments.output,
            concurrency=arguments.workers,
            num_gpus=arguments.gpus_per_worker,
            people_per_batch="auto" if arguments.people_per_batch is None else arguments.people_per_batch,
            address=arguments.address,
            progress=told,
            **_fit_options(arguments),
        )
    if arguments.json:
        _print_json({"cloaks": str(arguments.output), **summary.to_json()}, arguments.json)
    else:
        lines = [(summary.fitted, "people fitted"), (summary.done_before, "done before"), (summary.failed, "failed")]
        _say(*_counts(arguments.output, [*lines, *_reasons(summary.reasons)]))
        _say(f"{summary.people_per_hour:.0f} people per hour; a row for each: {arguments.output / INDEX}")
    return _code(summary.failed, summary.people)


def _protect_many(arguments: argparse.Namespace) -> int:
    from fastcloak.folder import ALREADY, FAILED
    from fastcloak.scale import protect_dataset

    arguments.kept = f"; what is finished is in {arguments.output}, and the same command goes on"
    with _people_bar("protecting", arguments) as told:
        summary = protect_dataset(
            arguments.people,
            arguments.cloaks,
            arguments.output,
            concurrency=arguments.workers,
            address=arguments.address,
            progress=told,
            who=arguments.who,
            quality=arguments.quality,
            strip_gps=arguments.strip_gps,
            strip_metadata=arguments.strip_metadata,
            overwrite=arguments.overwrite,
            again=arguments.again,
            dry_run=arguments.dry_run,
        )
    if arguments.json:
        _print_json({"protected": str(arguments.output), **summary.to_json()}, arguments.json)
    else:
        lines = [(summary.people, "people"), (summary.failed, "people without a cloak or photos")]
        photos = [(number, f"photos {status}") for status, number in summary.photos.items()]
        photos.append((summary.uncertain, TO_TURN))
        _say(*_counts(arguments.output, [*lines, *photos, *_reasons(summary.reasons)]))
    failed, of = summary.failed + summary.photos[FAILED], summary.people + summary.photos.total()
    return _code(failed, of, summary.photos[ALREADY] + summary.uncertain)


@contextlib.contextmanager
def _people_bar(doing: str, arguments: argparse.Namespace) -> Iterator[Callable[[dict[str, Any], int | None], None]]:
    """A bar of people, above which the first errors are written; what is yielded takes their rows."""
    from tqdm import tqdm

    shown = 0
    with tqdm(desc=doing, unit="person", disable=True if arguments.json else None) as bar:

        def told(row: dict[str, Any], total: int | None) -> None:
            nonlocal shown
            bar.total = total
            bar.update()
            errors = [f"{row['person']}: {row['error']}"] if row["error"] else []
            for outcome in map(json.loads, row["photos"] or () if isinstance(row["photos"], list) else ()):
                errors += filter(None, [outcome["error"] and f"{outcome['source']}: {outcome['error']}"])
            for error in errors if not arguments.json else ():
                shown += 1
                if shown <= MOST_ERRORS_SHOWN:
                    bar.write(plain_name(error), file=sys.stderr)

        yield told
    if shown > MOST_ERRORS_SHOWN:
        _tell(f"{shown - MOST_ERRORS_SHOWN} more errors")


def _reasons(reasons: Counter[str]) -> list[tuple[int, str]]:
    words: Counter[str] = Counter()
    for reason, number in reasons.items():
        kinds = [reason, *(kind.__name__ for kind in getattr(builtins, reason, Exception).__mro__)]
        words[next(REASONS[kind] for kind in kinds if kind in REASONS)] += number
    return [(number, f"  {reason}") for reason, number in words.most_common()]


def _counts(output: Path, lines: Sequence[tuple[int, str]]) -> list[str]:
    """A table of numbers and what they count, without those that are 0."""
    shown = [(str(number), what) for number, what in lines if number]
    width = max((len(number) for number, _ in shown), default=0)
    return [f"{output}:", *(f"{number:>{width + 2}}  {what}" for number, what in shown)]


def _code(failed: int, of: int, left_out: int = 0) -> int:
    if not failed:
        return SOME_FAILED if left_out else OK
    return SOME_FAILED if failed < of else FAILED


def _check(arguments: argparse.Namespace) -> int:
    from fastcloak.page import check_page_may_go_to

    if arguments.html is not None:
        check_page_may_go_to(arguments.html)
        arguments.kept = "; no report was written"
    check = fastcloak.check_photos(
        arguments.originals,
        arguments.protected,
        _models(arguments.model or ["sface", "dlib"]),
        arguments.distractors,
        cloak=None if arguments.cloak is None else fastcloak.load(arguments.cloak),
        keep_pictures=arguments.html is not None,
        progress=False if arguments.json else None,
    )
    if arguments.html is not None:
        fastcloak.write_page(check, arguments.html)
        arguments.kept = f"; the report is in {arguments.html}"
    if arguments.json:
        _print_json(check.to_json(), arguments.json)
    else:
        _say(*check.table().split("\n"))
        if arguments.html is not None:
            _say(f"Report with pictures: {arguments.html}")
    return OK if check.complete else SOME_FAILED


def _info(arguments: argparse.Namespace) -> int:
    cloak = fastcloak.load(arguments.cloak)
    if arguments.json:
        _print_json({"eps": cloak.eps, "id": cloak.id, **cloak.info}, arguments.json)
        return OK
    _say(f"eps: {255 * cloak.eps:g} grey levels", f"id: {cloak.id}")
    for name, value in cloak.info.items():
        if name != "eps":
            _say(f"{_words(name)}: {_shown(name, value)}")
    return OK


def _shown(name: str, value: Any) -> str:
    # The file may come from anyone: a value of an unexpected kind is shown as it is.
    if name == "losses" and isinstance(value, list) and all(isinstance(loss, float) for loss in value):
        return " ".join(f"{loss:.3f}" for loss in value)
    if name in ("alpha", "inner_alpha") and isinstance(value, float):
        return f"{255 * value:g} grey levels"
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    if isinstance(value, dict):
        return ", ".join(f"{_words(key)} {_words(entry)}" for key, entry in value.items())
    return _words(value)


def _words(value: Any) -> str:
    """A value as JSON, text without quotes."""
    text = json.dumps(value)
    return text[1:-1] if isinstance(value, str) else text


def _doctor(arguments: argparse.Namespace) -> int:
    from fastcloak.diagnosis import diagnose

    findings = diagnose()
    if arguments.json:
        _print_json({finding.subject: asdict(finding) for finding in findings}, arguments.json)
    else:
        width = max(len(finding.subject) for finding in findings)
        for finding in findings:
            _say(f"{finding.subject:{width}}  {finding.answer}{': ' if finding.why else ''}{finding.why}")
    return OK


def _models(specifications: list[str]) -> list[fastcloak.Surrogate]:
    return [parse_model(specification) for specification in specifications]


def parse_model(specification: str) -> fastcloak.Surrogate:
    """Loads a model given in words: a name or file, then options, as in net.onnx,scale=1.99,shift=-0.99,bgr.

    Raises:
        ValueError: an unknown option, or what `load_model` refuses.
    """
    what, *rest = specification.split(",")
    options: dict[str, Any] = {}
    for option in rest:
        name, _, value = option.partition("=")
        if name == "bgr" and not value:
            options[name] = True
        elif name in ("scale", "shift", "input_size") and value:
            kind, expected = (int, "a whole number") if name == "input_size" else (float, "a number")
            try:
                options[name] = kind(value)
            except ValueError:
                raise ValueError(
                    f"model option {name} must be {expected}, got {value!r} in {specification!r}"
                ) from None
        else:
            raise ValueError(
                f"model option must be scale=, shift=, input_size= or bgr, got {option!r} in {specification!r}"
            )
    return fastcloak.load_model(what, **options)


def _path(text: str) -> Path:
    # An empty path would mean the current folder, though it is mostly an empty variable of a script.
    if not text:
        raise argparse.ArgumentTypeError("must be a path, got an empty one")
    return Path(text)


def _people(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) < ORL_PEOPLE):
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 to {ORL_PEOPLE - 1}, got {text!r}")
    return int(text)


def _grey_levels(text: str) -> float:
    try:
        levels = float(text)
    except ValueError:
        levels = -1.0
    if not 0 <= levels <= 255:  # also true for NaN
        raise argparse.ArgumentTypeError(f"must be 0 to 255 grey levels, got {text!r}")
    return levels


def _eps(text: str) -> float:
    levels = _grey_levels(text)
    if levels < 0.5:
        raise argparse.ArgumentTypeError(
            f"must be 0.5 grey levels or more, got {text!r}, which 8 bits round to no change; 8 is usual"
        )
    return levels


def _alpha(text: str) -> float:
    levels = _grey_levels(text)
    if not levels:
        raise argparse.ArgumentTypeError(f"must be above 0 grey levels, got {text!r}: nothing would be learnt")
    return levels


def _steps(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more, got {text!r}")
    return int(text)


def _print_json(value: Any, to: str) -> None:
    from fastcloak.atomic import atomic_write

    text = json.dumps(value, indent=2, default=str).replace("\x7f", "\\u007f")
    if to == "-":
        print(text)
    else:
        atomic_write(Path(to), text.encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
