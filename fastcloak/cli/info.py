"""`fastcloak info`."""

from __future__ import annotations

import argparse
import json
from typing import Any

import fastcloak
from fastcloak.cli.options import path_argument
from fastcloak.cli.output import OK, print_result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cloak", type=path_argument, help="a file that fit wrote")


def run(arguments: argparse.Namespace) -> int:
    cloak = fastcloak.load(arguments.cloak)
    lines = [f"eps: {255 * cloak.eps:g} grey levels", f"id: {cloak.id}"]
    lines += [f"{_words(name)}: {_shown(name, value)}" for name, value in cloak.info.items() if name != "eps"]
    print_result(arguments.json, {"eps": cloak.eps, "id": cloak.id, **cloak.info}, *lines)
    return OK


def _shown(name: str, value: Any) -> str:
    # The file may come from anyone: a value of an unexpected kind is shown as JSON.
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
