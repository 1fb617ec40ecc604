"""The command line: reads arguments, calls the library, prints. No logic of its own.

Exit codes: 0 all well; 1 failed; 2 wrong usage; 3 some photos failed, the others are done.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fastcloak
from fastcloak.assets import MissingExtraError
from fastcloak.config import FitConfig
from fastcloak.demo import run_demo
from fastcloak.diagnosis import diagnose
from fastcloak.evaluation import check_photos
from fastcloak.hull import OBJECTIVES
from fastcloak.models import Surrogate, load_model
from fastcloak.photos import photo_files
from fastcloak.protect import protect_photo

OK, FAILED, USAGE, SOME_FAILED = 0, 1, 2, 3

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
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    parsed = _parser().parse_args(arguments)
    try:
        code: int = parsed.run(parsed)
        return code
    except (ValueError, TypeError, OSError, FloatingPointError, MissingExtraError, RuntimeError) as error:
        print(f"fastcloak: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("fastcloak: interrupted, nothing was written", file=sys.stderr)
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastcloak", description="Class-universal privacy cloaks: one small mask per person."
    )
    parser.add_argument("--version", action="version", version=fastcloak.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    default = FitConfig()

    def command(name: str, run: Any, description: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=description, description=description)
        added.set_defaults(run=run)
        return added

    demo = command("demo", _demo, "Learn cloaks for several people on SFace and judge them on dlib.")
    demo.add_argument("-o", "--output", type=Path, default=Path("fastcloak-demo"), help="folder (%(default)s)")
    demo.add_argument("--people", type=int, default=6, help="how many people get a cloak (%(default)s)")

    fit = command("fit", _fit, "Learn a cloak from about ten photos of one person.")
    fit.add_argument("photos", nargs="+", metavar="PHOTO", help="photos of the person, or a folder of them")
    fit.add_argument("-o", "--output", type=Path, required=True, help="the cloak file, such as me.safetensors")
    fit.add_argument("--model", action="append", help=f"the surrogate: {MODEL_HELP} as an ensemble (sface)")
    fit.add_argument("--method", choices=("ga", "opom"), default=default.method, help="(%(default)s)")
    fit.add_argument("--objective", choices=OBJECTIVES, default=default.objective, help="(%(default)s)")
    fit.add_argument("--eps", type=float, default=8.0, help="largest change, grey levels (%(default)g)")
    fit.add_argument("--alpha", type=float, default=1.0, help="step, grey levels (%(default)g)")
    fit.add_argument("--steps", type=int, default=default.steps, help="(%(default)s)")
    fit.add_argument("--batch-size", type=int, help="photos per inner step of ga")
    fit.add_argument("--inner-steps", type=int, help="inner steps of ga per step")
    fit.add_argument("--decay", type=float, default=default.decay, help="momentum (%(default)g)")
    fit.add_argument("--seed", type=int, default=default.seed, help="(%(default)s)")
    fit.add_argument("--device", default="auto", help="auto, cpu, cuda ... (%(default)s)")
    fit.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16 (%(default)s)")
    fit.add_argument("--backend", default="auto", help="auto, reference, triton (%(default)s)")
    fit.add_argument("--engine", default="auto", help="auto, eager (%(default)s)")

    apply = command("apply", _apply, "Add a cloak to photos of any size; the originals are never changed.")
    apply.add_argument("cloak", type=Path, help="a file that fit wrote")
    apply.add_argument("photos", nargs="+", metavar="PHOTO", help="photos, or folders of them")
    apply.add_argument("-o", "--output", type=Path, required=True, help="folder for the protected photos")
    apply.add_argument("--who", choices=("largest", "all"), default="largest", help="which faces (%(default)s)")

    check = command("check", _check, "Compare a person's protected photos with the originals on face networks.")
    check.add_argument("originals", type=Path, help="folder of originals")
    check.add_argument("protected", type=Path, help="folder of the same photos, protected, in the same order")
    check.add_argument("--model", action="append", help=f"a network to ask: {MODEL_HELP} (sface and dlib)")
    check.add_argument("--distractors", type=Path, help="folder of photos of other people, for Top-1 and Top-5")

    info = command("info", _info, "Show what is in a cloak file.")
    info.add_argument("cloak", type=Path)

    doctor = command("doctor", _doctor, "Show which device, backend and engine would run, and why not others.")

    for added in (demo, fit, apply, check, info, doctor):
        added.add_argument("--json", action="store_true", help="print JSON for programs")
    return parser


def _demo(arguments: argparse.Namespace) -> int:
    quiet = arguments.json
    demo = run_demo(
        arguments.output,
        people=arguments.people,
        progress=False if quiet else None,
        say=(lambda line: None) if quiet else lambda line: print(line, flush=True),
    )
    if quiet:
        _print_json({**demo.evaluation.to_json(), "files": [str(file) for file in demo.files]})
    else:
        print(f"\n{demo.evaluation.table()}\n\nWritten: {', '.join(str(file) for file in demo.files)}")
    return OK


def _fit(arguments: argparse.Namespace) -> int:
    cloak = fastcloak.fit(
        photo_files(arguments.photos),
        _models(arguments.model or ["sface"]),
        method=arguments.method,
        objective=arguments.objective,
        eps=arguments.eps / 255,
        alpha=arguments.alpha / 255,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        inner_steps=arguments.inner_steps,
        decay=arguments.decay,
        seed=arguments.seed,
        device=arguments.device,
        dtype=arguments.dtype,
        backend=arguments.backend,
        engine=arguments.engine,
        progress=False if arguments.json else None,
    )
    cloak.save(arguments.output)
    if arguments.json:
        _print_json({"cloak": str(arguments.output), "eps": cloak.eps, **cloak.info})
    else:
        info = cloak.info
        print(
            f"{arguments.output}: a cloak from {info['photos']} photos, learnt on {' + '.join(info['models'])} with "
            f"{info['image_gradients']} image-gradients in {info['seconds']:.1f} s"
        )
    return OK


def _apply(arguments: argparse.Namespace) -> int:
    cloak = fastcloak.load(arguments.cloak)
    arguments.output.mkdir(parents=True, exist_ok=True)
    done, failed = [], {}
    taken: set[Path] = set()
    for source in photo_files(arguments.photos):
        destination = arguments.output / source.name
        try:
            if destination in taken:
                raise FileExistsError(f"another photo is called {source.name} too; apply the folders one by one")
            done.append(protect_photo(source, destination, cloak, who=arguments.who))
            taken.add(destination)
        except MissingExtraError:
            raise
        except (ValueError, OSError) as error:
            failed[str(source)] = str(error)
            if not arguments.json:
                print(f"{source}: {error}", file=sys.stderr)
    if arguments.json:
        _print_json({"protected": [asdict(photo) for photo in done], "failed": failed})
    else:
        print(f"{len(done)} photos protected in {arguments.output}, {len(failed)} failed")
    if not failed:
        return OK
    return SOME_FAILED if done else FAILED


def _check(arguments: argparse.Namespace) -> int:
    check = check_photos(
        arguments.originals, arguments.protected, _models(arguments.model or ["sface", "dlib"]), arguments.distractors
    )
    if arguments.json:
        _print_json(check.to_json())
    else:
        print(check.table())
    return OK


def _info(arguments: argparse.Namespace) -> int:
    cloak = fastcloak.load(arguments.cloak)
    if arguments.json:
        _print_json({"eps": cloak.eps, **cloak.info})
        return OK
    print(f"eps: {255 * cloak.eps:g} grey levels")
    for name, value in cloak.info.items():
        if name == "losses":
            value = " ".join(f"{loss:.3f}" for loss in value)
        elif name in ("alpha", "inner_alpha"):
            value = f"{255 * value:g} grey levels"
        elif isinstance(value, (list, tuple)):
            value = ", ".join(map(str, value))
        elif isinstance(value, dict):
            value = ", ".join(f"{key} {text}" for key, text in value.items())
        if name != "eps":
            print(f"{name}: {value}")
    return OK


def _doctor(arguments: argparse.Namespace) -> int:
    findings = diagnose()
    if arguments.json:
        _print_json({finding.subject: asdict(finding) for finding in findings})
    else:
        width = max(len(finding.subject) for finding in findings)
        for finding in findings:
            print(f"{finding.subject:{width}}  {finding.answer}{': ' if finding.why else ''}{finding.why}")
    return OK


def _models(specifications: list[str]) -> list[Surrogate]:
    return [parse_model(specification) for specification in specifications]


def parse_model(specification: str) -> Surrogate:
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
            options[name] = int(value) if name == "input_size" else float(value)
        else:
            raise ValueError(
                f"model option must be scale=, shift=, input_size= or bgr, got {option!r} in {specification!r}"
            )
    return load_model(what, **options)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))


if __name__ == "__main__":
    sys.exit(main())
