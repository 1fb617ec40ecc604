"""Options that several commands have, and how their words become values."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import fastcloak
from fastcloak.fitting.options import (
    AUGMENTATIONS,
    ENSEMBLES,
    GA_BATCH_SIZE,
    GA_INNER_STEPS,
    METHODS,
    OBJECTIVES,
    PRESETS,
    FitConfig,
)
from fastcloak.system.packages import ORL_PEOPLE

MODEL_HELP = (
    "sface, dlib, or an ONNX file, with its normalisation where that is not in the file: "
    "net.onnx,scale=1.9921875,shift=-0.99609375,bgr (the network gets RGB in [0, 1] * scale + shift). "
    "Repeat for several"
)


def add_people(many: argparse.ArgumentParser) -> None:
    many.add_argument(
        "people",
        type=path_argument,
        help="folder with a folder of photos for each person; or a manifest, .jsonl with lines such as "
        '{"person": "anna", "photos": ["anna/1.jpg"]}, or .parquet with these columns',
    )
    many.add_argument(
        "--address",
        help="of a Ray cluster that this machine is in: auto or HOST:6379 (default: RAY_ADDRESS, else this machine)",
    )
    many.add_argument(
        "--workers", type=int, help="people at a time; 0: in this process, without Ray (default: one per GPU or CPU)"
    )


def add_protect_options(protect: argparse.ArgumentParser) -> None:
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


def add_fit_options(fit: argparse.ArgumentParser) -> None:
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
        "--eps", type=eps_levels, default=8.0, help="largest change of a pixel, in grey levels (default: %(default)g)"
    )
    by_preset = "default: the preset's, else"
    fit.add_argument("--alpha", type=alpha_levels, help=f"size of a step, in grey levels ({by_preset} 1)")
    fit.add_argument("--steps", type=positive, help=f"steps of the mask ({by_preset} {default.steps})")
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


def fit_options(arguments: argparse.Namespace) -> dict[str, Any]:
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


def models(specifications: list[str]) -> list[fastcloak.Surrogate]:
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


def path_argument(text: str) -> Path:
    # An empty path would mean the current folder, though it is mostly an empty variable of a script.
    if not text:
        raise argparse.ArgumentTypeError("must be a path, got an empty one")
    return Path(text)


def people_argument(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) < ORL_PEOPLE):
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 to {ORL_PEOPLE - 1}, got {text!r}")
    return int(text)


def grey_levels(text: str) -> float:
    try:
        levels = float(text)
    except ValueError:
        levels = -1.0
    if not 0 <= levels <= 255:  # also true for NaN
        raise argparse.ArgumentTypeError(f"must be 0 to 255 grey levels, got {text!r}")
    return levels


def eps_levels(text: str) -> float:
    levels = grey_levels(text)
    if levels < 0.5:
        raise argparse.ArgumentTypeError(
            f"must be 0.5 grey levels or more, got {text!r}, which 8 bits round to no change; 8 is usual"
        )
    return levels


def alpha_levels(text: str) -> float:
    levels = grey_levels(text)
    if not levels:
        raise argparse.ArgumentTypeError(f"must be above 0 grey levels, got {text!r}: nothing would be learnt")
    return levels


def positive(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more, got {text!r}")
    return int(text)
