"""Options that several commands have, and how their words become values."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fastcloak
from fastcloak.fitting.options import PRESETS, FitConfig, Option, declared, default
from fastcloak.system.packages import ORL_PEOPLE

MODEL_HELP = (
    "sface, dlib, or an ONNX file, with its normalisation where that is not in the file: "
    "net.onnx,scale=1.9921875,shift=-0.99609375,bgr (the network gets RGB in [0, 1] * scale + shift)"
)


def path_argument(text: str) -> Path:
    # An empty path would mean the current folder, though it is mostly an empty variable of a script.
    if not text:
        raise argparse.ArgumentTypeError("must be a path, got an empty one")
    return Path(text)


def people_argument(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) < ORL_PEOPLE):
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 to {ORL_PEOPLE - 1}, got {text!r}")
    return int(text)


def model_argument(text: str) -> str:
    # `--models` takes all words that follow, also photos.
    if text not in ("sface", "dlib") and not text.lower().endswith(".onnx") and os.path.exists(text):
        raise argparse.ArgumentTypeError(f"must be networks, got the photo or folder {text!r}; put it before --models")
    return text


Group = argparse._ArgumentGroup
MODELS: dict[str, Any] = {"nargs": "+", "metavar": "MODEL", "type": model_argument}
JOBS: dict[str, Any] = {
    "type": int,
    "default": min(8, os.cpu_count() or 1),
    "help": "photos at a time (default: %(default)s)",
}
PROTECT_OPTIONS: dict[str, dict[str, Any]] = {
    "quality": {
        "type": int,
        "help": "of JPEG, HEIC and lossy WebP, 1 to 100 (default: 95, or a JPEG's own where that is better)",
    },
    "strip_gps": {"action": "store_true", "help": "leave out where photos were taken"},
    "strip_metadata": {"action": "store_true", "help": "leave out all metadata but for the colours"},
    "overwrite": {"action": "store_true", "help": "replace photos in the output folder, but never an original"},
    "again": {"action": "store_true", "help": "protect photos that are protected already too, twice as visible"},
    "dry_run": {"action": "store_true", "help": "look for the faces and show what would be done"},
}


def add_protect_options(protect: argparse.ArgumentParser, who: Sequence[str] = ("largest", "all")) -> None:
    words = "which faces of a photo get the cloak (default: %(default)s)"
    protect.add_argument("--who", choices=who, default=who[0], help=words)
    for name, option in PROTECT_OPTIONS.items():
        protect.add_argument(f"--{name.replace('_', '-')}", **option)


def protect_options(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in ("who", *PROTECT_OPTIONS)}


RUN_OPTIONS = {
    "device": "where to compute: auto, cpu, cuda ...",
    "dtype": "numbers of the network: auto, float32, bfloat16",
    "backend": "what computes the mask: auto, reference, triton",
    "engine": "how steps are launched: auto, eager, compile, cudagraph",
}


def add_fit_options(fit: argparse.ArgumentParser, models: Sequence[str] = ("sface",), preset: str = "") -> None:
    """What most people need, then the rest, as `fastcloak.fitting.options` declares it.

    Args:
        fit: the command.
        models: its default.
        preset: its default for ga, where it is not that of `fit`.
    """
    people, rest = option_groups(fit, "docs/results.md has what each gives and costs")
    networks = f"networks to fit on: {MODEL_HELP} (default: {' '.join(models)})"
    people.add_argument("--models", default=models, help=networks, **MODELS)
    people.add_argument(
        "--strict",
        action="store_true",
        help="fail if photos are copies of others or do not look like most of the others, instead of a warning",
    )
    add_declared(people, rest, FitConfig, preset)


def option_groups(parser: argparse.ArgumentParser, of_the_rest: str) -> tuple[Group, Group]:
    """The groups of a command's help, of what most people need and of the rest."""
    return parser.add_argument_group("what people need"), parser.add_argument_group("the rest", of_the_rest)


def add_declared(people: Group, rest: Group, config: Any, preset: str = "") -> None:
    """The options of a class of options, and how it is run; `preset` as in `add_fit_options`."""
    for name, option in declared(config).items():
        more: dict[str, Any] = {"type": _parsed(option), "metavar": METAVARS.get(option.kind)}
        if option.kind == "switch":
            more = {"action": argparse.BooleanOptionalAction}
        elif option.kind == "choice":
            more = {"choices": option.choices}
        words = f"{option.help} (default: {default_in_words(name, config, preset)})"
        (people if option.basic else rest).add_argument(f"--{name.replace('_', '-')}", help=words, **more)
    for name, words in RUN_OPTIONS.items():
        rest.add_argument(f"--{name}", default="auto", help=f"{words} (default: auto)")


def default_in_words(name: str, config: Any = FitConfig, preset: str = "") -> str:
    """What an option is where it is not given; `preset` as in `add_fit_options`."""
    option, value = declared(config)[name], default(name, config)
    if name == "preset":
        return f"{preset or 'fast'}; of opom, plain"
    if option.kind == "names":
        words = ", ".join(value) or "none"
    elif option.kind == "switch" and value is not None:
        words = "yes" if value else "no"
    elif option.kind in ("real", "levels") and value is not None:
        words = f"{value * (255 if option.kind == 'levels' else 1):g}"
    else:
        words = option.none if value is None else str(value)
    by_preset = config is FitConfig and any(name in recipe for recipe in PRESETS.values())
    return f"the preset's, else {words}" if by_preset else words


METAVARS = {"levels": "GREY_LEVELS", "names": "NAMES", "whole": "N", "real": "X"}


def _parsed(option: Option) -> Callable[[str], Any]:
    """Text of the command line -> value, where it is in range and anything can be learnt with it."""
    least = option.least if option.useful is None else option.useful
    scale = 255 if option.kind == "levels" else 1

    def parse(text: str) -> Any:
        if option.kind == "names":
            return text
        try:
            value = int(text) if option.kind == "whole" else float(text) / scale
        except ValueError:
            value = math.nan
        if least <= value <= option.most:
            return value
        expected = f"{scale * least:g} to {scale * option.most:g}{' grey levels' if scale > 1 else ''}"
        if option.kind == "whole":
            expected = f"a whole number, {least} to {option.most}"
        hint = ", with which a cloak protects nothing" if option.least <= value < least else ""
        raise argparse.ArgumentTypeError(f"must be {expected}, got {text!r}{hint}")

    return parse


def fit_options(arguments: argparse.Namespace, preset: str = "") -> dict[str, Any]:
    """The keywords of `fit`, of those that were given; `preset` as in `add_fit_options`."""
    own = {"preset": preset} if preset and arguments.method != "opom" else {}
    return {**own, **declared_options(arguments, FitConfig), "strict": arguments.strict}


def declared_options(arguments: argparse.Namespace, config: Any) -> dict[str, Any]:
    """The options of a class of options that were given, and how it is run."""
    given = {name: getattr(arguments, name) for name in (*declared(config), *RUN_OPTIONS)}
    return {name: value for name, value in given.items() if value is not None}


def models(specifications: Sequence[str]) -> list[fastcloak.Surrogate]:
    return [parse_model(specification) for specification in specifications]


def parse_model(specification: str) -> fastcloak.Surrogate:
    """Loads a network from text: a name or file, then options, as in net.onnx,scale=1.99,shift=-0.99,bgr."""
    what, *rest = specification.split(",")
    options: dict[str, Any] = {}
    for option in rest:
        name, _, value = option.partition("=")
        if option == "bgr":
            options["bgr"] = True
            continue
        if name not in ("scale", "shift", "input_size") or not value:
            raise ValueError(
                f"model option must be scale=, shift=, input_size= or bgr, got {option!r} in {specification!r}"
            )
        try:
            options[name] = int(value) if name == "input_size" else float(value)
        except ValueError:
            expected = "a whole number" if name == "input_size" else "a number"
            raise ValueError(f"model option {name} must be {expected}, got {value!r} in {specification!r}") from None
    return fastcloak.load_model(what, **options)
