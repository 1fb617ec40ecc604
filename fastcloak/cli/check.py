"""`fastcloak check`."""

from __future__ import annotations

import argparse

import fastcloak
from fastcloak.cli.options import MODEL_HELP, MODELS, models, path_argument
from fastcloak.cli.output import OK, SOME_FAILED, print_result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("originals", type=path_argument, help="folder of originals, also in subfolders, or one photo")
    add("protected", type=path_argument, help="folder of the same photos, protected; their suffixes may differ")
    networks = f"networks to ask: {MODEL_HELP} (default: sface dlib)"
    add("--models", default=["sface", "dlib"], help=networks, **MODELS)
    others = "folder of photos of other people, also in subfolders, for Top-1, Top-5 and linkage"
    add("--distractors", type=path_argument, help=others)
    cloaked = "folder of protected photos of other people: a crowd in which all are protected; needs --distractors"
    add("--protected-distractors", type=path_argument, metavar="DIR", help=cloaked)
    add("--cloak", type=path_argument, help="the cloak file, to mark the networks that it was fitted on")
    fitted_on = "networks to mark instead (default: those of --cloak, or that the folder of protected photos notes)"
    add("--fitted-on", nargs="+", metavar="NAME", help=fitted_on)
    report = "write a report with pictures, one .html file; replaces an older report, and no other file"
    add("--html", type=path_argument, metavar="FILE", help=report)


def run(arguments: argparse.Namespace) -> int:
    from fastcloak.evaluation.page import check_page_may_go_to

    if arguments.html is not None:
        check_page_may_go_to(arguments.html)
        arguments.kept = "; no report was written"
    check = fastcloak.check_photos(
        arguments.originals,
        arguments.protected,
        models(arguments.models),
        arguments.distractors,
        protected_distractors=arguments.protected_distractors,
        fitted_on=arguments.fitted_on,
        cloak=None if arguments.cloak is None else fastcloak.load(arguments.cloak),
        keep_pictures=arguments.html is not None,
        progress=False if arguments.json else None,
    )
    lines = check.table().split("\n")
    if arguments.html is not None:
        fastcloak.write_page(check, arguments.html)
        arguments.kept = f"; the report is in {arguments.html}"
        lines.append(f"Report with pictures: {arguments.html}")
    print_result(arguments.json, check.to_json(), *lines)
    return OK if check.complete else SOME_FAILED
