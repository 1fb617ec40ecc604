"""How the albums of `bench.protection.tailored` are protected: recipes by name, groups of names, and the protecting.

A recipe holds options of `TailorConfig` (of `fit`, where it is universal) and what the bench alone knows:

    how         tailored; universal: one mask of `fit` for the whole album; clean: no mask
    surrogates  networks that the masks are learnt on, as in sface&dlib
    me          False: without photos of the person
    zoom        factor by which the sides of photos are multiplied before they are protected
    later       number of photos of each album that come in a second run, which looks at the first run's protected ones
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.protection.recipes import Options
from fastcloak import enrol, fit
from fastcloak.evaluation.postprocessing import Pixels
from fastcloak.fitting.options import configure
from fastcloak.models import Surrogate
from fastcloak.photos.alignment import Face, align
from fastcloak.protection.overlay import added, is_grey
from fastcloak.protection.photo import protect
from fastcloak.tailoring.canvas import canvas_of, lay
from fastcloak.tailoring.options import LOOKS, STRENGTHS, configure_tailor
from fastcloak.tailoring.tailor import Tailor

HOWS = TAILORED, UNIVERSAL, CLEAN = "tailored", "universal", "clean"
Picture = tuple[Pixels, Face]


@dataclass(frozen=True)
class AlbumRecipe:
    """What is done to every album of a row; the module says what each means."""

    how: str = TAILORED
    surrogates: str = "sface&dlib"
    me: bool = True
    zoom: float = 1
    later: int = 0
    options: Options = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.how not in HOWS:
            raise ValueError(f"how must be one of {', '.join(HOWS)}, got {self.how!r}")
        if type(self.me) is not bool or type(self.later) is not int or self.later < 0 or not self.zoom > 0:
            got = f"me={self.me!r}, later={self.later!r}, zoom={self.zoom!r}"
            raise ValueError(f"me must be True or False, later a whole number and zoom above 0, got {got}")


def album_recipe(given: Mapping[str, Any]) -> AlbumRecipe:
    """The recipe of these options, with the defaults of `TailorConfig` written out: another default is another row.

    Raises:
        TypeError, ValueError: options that are unknown or out of range.
    """
    own = {one.name: given[one.name] for one in fields(AlbumRecipe) if one.name in given and one.name != "options"}
    options = {name: value for name, value in given.items() if name not in own}
    recipe = AlbumRecipe(**own)
    if recipe.how == TAILORED:
        options = asdict(configure_tailor(options))
        del options["strength"]  # a name of eps
    elif recipe.how == UNIVERSAL:
        configure(options)
    elif options:
        raise ValueError(f"a clean row must have no options, got {', '.join(options)}")
    return AlbumRecipe(**own, options=options)


def _named(rows: Iterable[tuple[str, Options]]) -> dict[str, Options]:
    """By name; what is the default is the row "tailored", which groups share."""
    default = album_recipe({})
    return {TAILORED if album_recipe(options) == default else name: options for name, options in rows}


def _each(option: str, values: Sequence[float]) -> dict[str, Options]:
    return _named((f"{option} {value:g}", {option: value}) for value in values)


_GROUPS: dict[str, dict[str, Options]] = {
    "gradients": _each("gradients", (10, 20, 40, 60, 80, 120)),
    "apart": _each("apart", (0.0, 0.25, 0.5, 1.0, 2.0)),
    "bounds": _named(
        (f"{look} {level:g}", {"look": look, "eps": level / 255}) for look in LOOKS for level in (5, 6, 7.25, 8, 9)
    ),
    "smoothing": _each("smoothing", (0.0, 1.0, 1.25, 1.5, 2.0)),
    "color": _each("color", (0.0, 0.5, 1.0)),
    "me": _named([(TAILORED, {}), ("without me", {"me": False})]),
    "surrogates": _named([("on sface", {"surrogates": "sface"}), (TAILORED, {})]),
    "sizes": _each("zoom", (0.3, 0.5, 0.75, 1.0, 1.5, 2.5)),
    "looks": _named(
        (f"{look} {strength}", {"look": look, "strength": strength}) for look in LOOKS for strength in STRENGTHS
    ),
    "later": _named([("later 5", {"later": 5})]),
    "universal": {CLEAN: {"how": CLEAN}, "universal strong": {"how": UNIVERSAL, "preset": "strong"}},
}
RECIPES: dict[str, Options] = {name: own for group in _GROUPS.values() for name, own in group.items()}
GROUPS: dict[str, tuple[str, ...]] = {name: tuple(group) for name, group in _GROUPS.items()}


@dataclass(frozen=True)
class Album:
    """The protected photos of a person, and what a photo has cost."""

    photos: list[Pixels]
    seconds: float = 0.0
    image_gradients: float = 0.0


def protect_album(recipe: AlbumRecipe, pictures: Sequence[Picture], learn: Tensor, surrogate: Surrogate) -> Album:
    """Protect the photos of one person.

    Args:
        recipe: of the row.
        pictures: the photos with the face that is meant.
        learn: [N, 3, 112, 112] float, faces of the person to learn from.
        surrogate: what the recipe's surrogates name.

    Returns:
        The photos; the seconds are those of learning and laying masks, without making networks ready.
    """
    if recipe.how == CLEAN:
        return Album([pixels for pixels, _ in pictures])
    if recipe.how == UNIVERSAL:
        cloak = fit(learn, surrogate, **recipe.options)
        began = time.perf_counter()
        photos = [protect(pixels, cloak, faces=[face]) for pixels, face in pictures]
        seconds = cloak.info["seconds"] + time.perf_counter() - began
        return Album(photos, seconds / len(photos), cloak.info["image_gradients"] / len(photos))
    # The network that finds the person plays no part here, and neither does its threshold.
    me = enrol(learn, surrogate, threshold=0.0) if recipe.me else None
    old = len(pictures) - recipe.later
    photos, seconds = [], 0.0
    for run in filter(None, (pictures[:old], pictures[old:])):
        tailor = Tailor(me, surrogate, **recipe.options)
        if photos:
            tailor.remember(_faces(photos, [face for _, face in pictures]))
        began = time.perf_counter()
        photos += tailored(tailor, run)
        seconds += time.perf_counter() - began
    return Album(photos, seconds / len(photos), recipe.options["gradients"])


def tailored(tailor: Tailor, pictures: Sequence[Picture]) -> list[Pixels]:
    """The photos of one run, pass by pass, grey ones apart, as `fastcloak.tailor_photos` takes them."""
    protected = [pixels.copy() for pixels, _ in pictures]
    grey = [is_grey(pixels) for pixels in protected]
    for kind in sorted(set(grey)):
        alike = [i for i, one in enumerate(grey) if one == kind]
        for first in range(0, len(alike), tailor.faces_per_pass):
            part = alike[first : first + tailor.faces_per_pass]
            canvases = [canvas_of(*pictures[i]) for i in part]
            for i, canvas, learnt in zip(part, canvases, tailor.masks(canvases, grey=kind), strict=True):
                region, change = lay(*learnt, canvas, *protected[i].shape[:2])
                original = protected[i][region].copy()
                protected[i][region] = added(original, original, change[..., : 1 if kind else 3], tailor.config.largest)
            tailor.remember(_faces([protected[i] for i in part], [pictures[i][1] for i in part]))
    return protected


def _faces(photos: Sequence[Pixels], faces: Sequence[Face]) -> Tensor:  # [n, 3, 112, 112] float32 in [0, 1]
    crops = [align(pixels, face)[0] for pixels, face in zip(photos, faces, strict=False)]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255
