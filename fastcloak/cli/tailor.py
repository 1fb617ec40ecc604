"""`fastcloak tailor`."""

from __future__ import annotations

import argparse

import fastcloak
from fastcloak.cli.options import (
    JOBS,
    MODEL_HELP,
    MODELS,
    PROTECT_OPTIONS,
    add_declared,
    declared_options,
    models,
    option_groups,
    path_argument,
)
from fastcloak.cli.photos import OUTPUT_HELP, PHOTOS_HELP, Photos
from fastcloak.tailoring.options import TailorConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("photos", nargs="+", metavar="PHOTO", type=path_argument, help=PHOTOS_HELP)
    add("-o", "--output", type=path_argument, required=True, help=OUTPUT_HELP)
    people, rest = option_groups(parser, "docs/use.md has what each gives and costs")
    me = "about ten photos of you alone, or a folder of them, to find you in the album and to learn what to hide; "
    people.add_argument("--me", nargs="+", metavar="PHOTO", type=path_argument, help=f"{me}without, less is hidden")
    who = "which face of a photo gets a mask: me; largest; all, each away from its own features, without --me "
    people.add_argument("--who", choices=("me", "largest", "all"), help=f"{who}(default: me with --me, else largest)")
    learn = f"networks to learn on: {MODEL_HELP} (default: sface dlib)"
    people.add_argument("--models", default=["sface", "dlib"], help=learn, **MODELS)
    for name, option in PROTECT_OPTIONS.items():
        people.add_argument(f"--{name.replace('_', '-')}", **option)
    rest.add_argument("--jobs", **JOBS)
    add_declared(people, rest, TailorConfig)


def run(arguments: argparse.Namespace) -> int:
    from fastcloak.photos.inputs import photo_files
    from fastcloak.protection.enrolment import recogniser

    if (arguments.who == "me" and not arguments.me) or (arguments.who == "all" and arguments.me):
        raise ValueError("--who me needs --me with photos of you; --who all goes without")
    plan = fastcloak.plan_photos(arguments.photos, arguments.output)
    surrogates, me = models(arguments.models), None
    if arguments.me:
        me = fastcloak.enrol(photo_files(arguments.me), recogniser(surrogates))
    options = {name: getattr(arguments, name) for name in ("who", *PROTECT_OPTIONS)}
    options |= declared_options(arguments, TailorConfig)
    with Photos("tailoring", len(plan.photos), arguments) as photos:
        fastcloak.tailor_photos(
            plan, me, surrogates, **options, jobs=arguments.jobs, progress=photos.show, learning=photos.learn
        )
    return photos.print_summary({"models": [one.name for one in surrogates]})
