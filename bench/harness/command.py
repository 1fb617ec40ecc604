"""The options that commands of the bench share, each declared once."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import Any

from bench.harness.nets import NETS
from fastcloak.cli.options import MODEL_HELP

SHARED: dict[str, dict[str, Any]] = {
    "people": {"type": Path, "metavar": "PEOPLE_DIR", "help": "folder of a folder of photos per person"},
    "output": {"type": Path, "metavar": "CSV", "required": True},
    "distractors": {"type": Path, "metavar": "DIR", "help": "folder of photos of others"},
    "learn": {"type": int, "help": "the first photos teach, the others judge (%(default)s)"},
    "first": {"type": int, "default": 0, "help": "skip the first people (%(default)s)"},
    "count": {"type": int, "help": "people that get a cloak (%(default)s)"},
    "targets": {"nargs": "+", "metavar": "M", "help": f"networks that judge: {MODEL_HELP} (%(default)s)"},
    "cloaks": {"type": Path, "metavar": "DIR", "help": "folder that keeps the cloaks"},
    "summary": {"action": "store_true", "help": "show what the file holds, measure nothing"},
    "net": {"choices": sorted(NETS), "default": "mobilefacenet", "help": "network (%(default)s)"},
    "dry_run": {"action": "store_true", "help": "tiny sizes on a CPU"},
}


def command(doc: str | None, *names: str, required: Collection[str] = (), **defaults: Any) -> argparse.ArgumentParser:
    """A parser with the module's docstring as help.

    Args:
        doc: the docstring.
        names: of `SHARED`, as they are declared there.
        required: those of them that must be given.
        defaults: more of `SHARED`, with these defaults.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in (*names, *defaults):
        options = SHARED[name] | ({"default": defaults[name]} if name in defaults else {})
        if name == "people":
            parser.add_argument("people", **(options if name in required else options | {"nargs": "?"}))
        else:
            flags = ["-o"] * (name == "output") + [f"--{name.replace('_', '-')}"]
            parser.add_argument(*flags, **(options | ({"required": True} if name in required else {})))
    return parser
