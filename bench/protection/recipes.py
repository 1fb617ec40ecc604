"""The recipes that `bench.protection` measures: keyword options of `fastcloak.fit_many` by name, and groups of names.

A recipe that depends on N, the number of photos learnt from, is a function of N. What is compared within table1, table2
and fig2a costs the same: 16 N image-gradients, which is what opom costs with 16 steps. Where b does not divide N, fig2a
comes as close as whole inner steps and whole steps allow.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fastcloak.fitting.options import AUGMENTATIONS, OBJECTIVES, PRESETS

Options = dict[str, Any]
Recipe = Options | Callable[[int], Options]

STEPS = 16
INNER_STEPS = (1, 2, 5, 10, 20)
MOMENTUM: Options = {"decay": 1.0}
DFANET: Options = {"dropout": 0.1}
IMPROVED: dict[str, Options] = {"momentum": MOMENTUM, "DFANet": DFANET, "momentum DFANet": {**MOMENTUM, **DFANET}}


def ga(batch_size: int, inner_steps: int, **options: Any) -> Options:
    """GA-OPOM in 16 steps of b M image-gradients each."""
    own = {"batch_size": batch_size, "inner_steps": inner_steps}
    return {"method": "ga", "preset": "plain", "objective": "convex_hull", "steps": STEPS, **own, **options}


def opom(**options: Any) -> Options:
    """OPOM in 16 steps of N image-gradients each."""
    return {"method": "opom", "objective": "convex_hull", "steps": STEPS, **options}


def ga_pass(photos: int, batch_size: int | None = None, **options: Any) -> Options:
    """GA-OPOM whose steps cost what those of opom do: M = N / b. Without a batch size, b = N and M = 1."""
    b = min(batch_size or photos, photos)
    return ga(b, max(1, round(photos / b)), **options)


def unaccumulated(photos: int, batch_size: int) -> Options:
    """A signed step after every small batch, as many as 16 N image-gradients pay for."""
    b = min(batch_size, photos)
    return {**ga(b, 1), "steps": round(STEPS * photos / b)}


def search(**options: Any) -> Options:
    """A recipe of 320 image-gradients (with 10 photos), to be compared one change at a time."""
    return {"preset": "plain", "steps": 32, **options}


def options_of(recipe: Recipe, photos: int) -> Options:
    """The options of a recipe for N photos; masks have three channels of their own unless it says otherwise."""
    return {"grey": False, **(recipe(photos) if callable(recipe) else recipe)}


# One change at a time against the best so far: geometry, then all views with momentum, then a shorter look-ahead and
# fewer inner steps, then twice the work with an average of masks.
VIEWS: Options = {"augment": ("geometry", "flip", "color"), "decay": 1.0}
HALF: Options = {**VIEWS, "inner_alpha": 2 / 255}
SHORT: Options = {**HALF, "inner_steps": 5, "steps": 64}
SHORTER: Options = {**HALF, "inner_steps": 2, "steps": 160}
LONG: Options = {**SHORTER, "steps": 320, "decay": 0.9, "average": 0.5}
SEARCH: dict[str, Options] = {
    "opom, 32 steps": {"method": "opom", "steps": 32},
    "opom, 32 steps, geometry, momentum": {"method": "opom", "steps": 32, "augment": ("geometry",), "decay": 1.0},
    "plain": search(),
    "dropout 0.02": search(dropout=0.02),
    "photo": search(augment=("photo",)),
    "all views": search(augment=[name for name in AUGMENTATIONS if name not in ("symmetry", "jitter")]),  # came later
    "geometry": search(augment=("geometry",)),
    "geometry, no look-ahead": search(augment=("geometry",), inner_alpha=0),
    "geometry, look-ahead 2/255": search(augment=("geometry",), inner_alpha=2 / 255),
    "geometry, M=20": search(augment=("geometry",), steps=16, inner_steps=20),
    "geometry, flip": search(augment=("geometry", "flip")),
    "geometry, color": search(augment=("geometry", "color")),
    "geometry, momentum": search(augment=("geometry",), decay=1.0),
    "views": search(**VIEWS),
    "views, alpha 2/255": search(**VIEWS, alpha=2 / 255),
    "views, M=5": search(**{**VIEWS, "inner_steps": 5, "steps": 64}),
    "views, look-ahead 2/255": search(**HALF),
    "views, look-ahead 2/255, M=5": search(**SHORT),
    "views, look-ahead 2/255, M=5, alpha 2/255": search(**SHORT, alpha=2 / 255),
    "views, look-ahead 2/255, M=2": search(**SHORTER),
    "views, M=1": search(**{**HALF, "inner_steps": 1, "steps": 320}),
    "views, look-ahead 2/255, M=2, 320 steps": search(**{**SHORTER, "steps": 320}),
    "views, look-ahead 2/255, M=2, 320 steps, momentum 0.9": search(**{**SHORTER, "steps": 320, "decay": 0.9}),
    "views, 320 steps, momentum 0.9, average": search(**LONG),
    "views and mix, 320 steps, momentum 0.9, average": search(**{**LONG, "augment": (*VIEWS["augment"], "mix")}),
    "ensemble in turns": search(**SHORTER, ensemble="turns"),
    "ensemble by gradient": search(**{**SHORTER, "steps": 80}, ensemble="gradient"),
    "ensemble by loss": search(**{**SHORTER, "steps": 80}, ensemble="loss"),
}

# What the longer presets owe to each of their parts. M = 1 is as many image-gradients.
WITHOUT: dict[str, Callable[[Options], Options]] = {
    "no average": lambda preset: {"average": 0.0},
    "no symmetry": lambda preset: {"augment": [name for name in preset["augment"] if name != "symmetry"]},
    "no jitter": lambda preset: {"augment": [name for name in preset["augment"] if name != "jitter"]},
    "mix for both": lambda preset: {"augment": (*VIEWS["augment"], "mix")},
    "smaller steps": lambda preset: {"alpha": 1 / 255},
    "convex_hull": lambda preset: {"objective": "convex_hull"},
    "M=1": lambda preset: {"inner_steps": 1, "steps": preset["inner_steps"] * preset["steps"]},
}

RECIPES: dict[str, Recipe] = {
    **{f"opom {objective}": opom(objective=objective) for objective in OBJECTIVES},
    **{f"ga {objective}": partial(ga_pass, batch_size=1, objective=objective) for objective in OBJECTIVES},
    **{f"opom {name}": opom(**options) for name, options in IMPROVED.items()},
    **{f"ga {name}": partial(ga_pass, batch_size=1, **options) for name, options in IMPROVED.items()},
    **{f"ga b={b} M=N/{b}": partial(ga_pass, batch_size=b) for b in (2, 5)},
    "ga b=N M=1": ga_pass,
    **{f"no accumulation b={b}": partial(unaccumulated, batch_size=b) for b in (1, 2, 5)},
    **{f"ga b={b} M={M}": ga(b, M) for b in (1, 2) for M in INNER_STEPS},
    **SEARCH,
    **{f"preset {name}": {"preset": name, **options} for name, options in PRESETS.items() if options},
    **{
        f"preset {name}, {words}": {"preset": name, **PRESETS[name], **without(PRESETS[name])}
        for name in ("balanced", "strong")
        for words, without in WITHOUT.items()
    },
    "preset fast, grey": {"preset": "fast", **PRESETS["fast"], "grey": True},
    "preset fast, photo, grey": {
        "preset": "fast",
        **PRESETS["fast"],
        "augment": (*PRESETS["fast"]["augment"], "photo"),
        "grey": True,
    },
    **{
        f"preset {name}, photo": {"preset": name, **PRESETS[name], "augment": (*PRESETS[name]["augment"], "photo")}
        for name in ("fast", "balanced")
    },
}

# Batch size -> row. b = 1 accumulated is the row of table1; b = N is one and the same with and without accumulation.
ACCUMULATED = {"1": "ga convex_hull", "2": "ga b=2 M=N/2", "5": "ga b=5 M=N/5", "N": "ga b=N M=1"}
UNACCUMULATED = {**{b: f"no accumulation b={b}" for b in ("1", "2", "5")}, "N": "ga b=N M=1"}

GROUPS: dict[str, tuple[str, ...]] = {
    "table1": tuple(f"{method} {objective}" for objective in OBJECTIVES for method in ("opom", "ga")),
    "table2": tuple(f"{method} {name}" for name in ("convex_hull", *IMPROVED) for method in ("opom", "ga")),
    "fig2a": tuple(dict.fromkeys((*ACCUMULATED.values(), *UNACCUMULATED.values()))),
    "fig2b": tuple(f"ga b={b} M={M}" for b in (1, 2) for M in INNER_STEPS),
    "search": tuple(SEARCH),
    "ablation": ("preset balanced", *(f"preset balanced, {words}" for words in WITHOUT)),
    "presets": ("opom convex_hull", "preset fast", "preset balanced", "preset strong"),
}


def parse_rows(
    texts: Iterable[str],
    reserved: Collection[str] = (),
    recipes: Mapping[str, Recipe] = RECIPES,
    groups: Mapping[str, Sequence[str]] = GROUPS,
) -> dict[str, Recipe]:
    """Names, @groups and NAME=option:value,option:value -> recipes.

    Raises:
        ValueError: an unknown name or group, a reserved name, or a name for two things.
    """
    rows: dict[str, Recipe] = {}
    for text in texts:
        given = re.fullmatch(r"(.+?)=(\w+:.*)", text)
        if text in recipes:
            rows[text] = recipes[text]
        elif text.startswith("@") and text[1:] in groups:
            rows |= {name: recipes[name] for name in groups[text[1:]]}
        elif given is None or given[1] in rows or given[1] in recipes or given[1] in reserved:
            listed = ", ".join([*(f"@{group}" for group in groups), *recipes])
            raise ValueError(f"--rows must be one of {listed}; or a new NAME=option:value,option:value; got {text!r}")
        else:
            # A tuple has commas of its own; only one before another option's name divides.
            parts = [part.partition(":") for part in re.split(r",(?=\w+:)", given[2])]
            rows[given[1]] = {option: literal(value) for option, _, value in parts}
    return rows


def as_json(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def check_options(
    lines: Iterable[Mapping[str, Any]], options: Mapping[str, str], about: Mapping[str, str], path: Path
) -> None:
    """Raises ValueError if a file holds a row of the same people, as `about` says, with other options (as JSON)."""
    for line in lines:
        now = options.get(line["row"])
        if now is not None and about.items() <= line.items() and line["options"] != now:
            why = f"row {line['row']!r} is now {now}, but {path} has it with {line['options']}"
            raise ValueError(f"{why}; take another output file")


def literal(text: str) -> object:
    try:
        value: object = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value
