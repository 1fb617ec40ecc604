"""`fastcloak check` and `fastcloak info`."""

from __future__ import annotations

import argparse
import json
from typing import Any

import fastcloak
from fastcloak.cli.options import models
from fastcloak.cli.output import OK, SOME_FAILED, print_json, say


def run_check(arguments: argparse.Namespace) -> int:
    from fastcloak.evaluation.page import check_page_may_go_to

    if arguments.html is not None:
        check_page_may_go_to(arguments.html)
        arguments.kept = "; no report was written"
    check = fastcloak.check_photos(
        arguments.originals,
        arguments.protected,
        models(arguments.model or ["sface", "dlib"]),
        arguments.distractors,
        cloak=None if arguments.cloak is None else fastcloak.load(arguments.cloak),
        keep_pictures=arguments.html is not None,
        progress=False if arguments.json else None,
    )
    if arguments.html is not None:
        fastcloak.write_page(check, arguments.html)
        arguments.kept = f"; the report is in {arguments.html}"
    if arguments.json:
        print_json(check.to_json(), arguments.json)
    else:
        say(*check.table().split("\n"))
        if arguments.html is not None:
            say(f"Report with pictures: {arguments.html}")
    return OK if check.complete else SOME_FAILED


def run_info(arguments: argparse.Namespace) -> int:
    cloak = fastcloak.load(arguments.cloak)
    if arguments.json:
        print_json({"eps": cloak.eps, "id": cloak.id, **cloak.info}, arguments.json)
        return OK
    say(f"eps: {255 * cloak.eps:g} grey levels", f"id: {cloak.id}")
    for name, value in cloak.info.items():
        if name != "eps":
            say(f"{_words(name)}: {_shown(name, value)}")
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
