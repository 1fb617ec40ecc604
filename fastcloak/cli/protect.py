"""`fastcloak protect`."""

from __future__ import annotations

import argparse

import fastcloak
from fastcloak.cli.options import JOBS, MODEL_HELP, MODELS, add_protect_options, models, path_argument, protect_options
from fastcloak.cli.photos import OUTPUT_HELP, PHOTOS_HELP, Photos


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("cloak", type=path_argument, help="a file that fit wrote")
    add("photos", nargs="+", metavar="PHOTO", type=path_argument, help=PHOTOS_HELP)
    add("-o", "--output", type=path_argument, required=True, help=OUTPUT_HELP)
    add_protect_options(parser, ("largest", "all", "me"))
    add("--enrolment", type=path_argument, metavar="FOLDER", help="with --who me: photos of the person alone")
    network = f"with --who me: the network that recognises the person: {MODEL_HELP} (default: sface)"
    add("--models", help=network, **MODELS)
    add("--jobs", **JOBS)


def run(arguments: argparse.Namespace) -> int:
    from fastcloak.photos.inputs import photo_files

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
    with Photos("protecting", len(plan.photos), arguments) as photos:
        fastcloak.protect_photos(plan, cloak, **options, jobs=arguments.jobs, progress=photos.show)
    return photos.print_summary({"cloak": cloak.id})
