"""The options that decide a cloak, checked once. The command line lists them: PyTorch and NumPy are not imported."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

METHODS = ("ga", "opom")
OBJECTIVES = ("fi_uap", "fi_uap_plus", "class_center", "affine_hull", "convex_hull")
"""The objectives of OPOM, in the order of the paper."""
AUGMENTATIONS = ("mix", "photo", "color", "blur", "jpeg", "geometry", "flip")
"""In the order in which they are applied, with the numbers of `fastcloak.ops.augment`.

mix: the face, not the mask, fades by up to `MIX` into one of `TEXTURES` random pictures with the spectrum of photos.
photo: the mask is enlarged or shrunk into a photo and the aligned face cut out of it again, as `protect` and a
    recogniser do, at a face size of `FACE_PIXELS`; only the mask is resampled, not the face.
color: contrast and brightness.
blur: Gaussian, sigma up to `BLUR`.
jpeg: JPEG with 4:2:0 colour at a quality in `JPEG_QUALITY`; its rounding passes gradients through.
geometry: shift, scale and rotation, as between the alignments of two detectors.
flip: every second picture mirrored.

Source: input diversity, Xie et al., CVPR 2019; expectation over transformation, Athalye et al., ICML 2018; mix: Admix,
Wang et al., ICCV 2021, with noise in place of other pictures; JPEG: Shin and Song, NIPS workshop 2017.
"""
_BOOSTED: dict[str, Any] = {
    "augment": ("geometry", "flip", "color"),
    "decay": 1.0,
    "inner_steps": 2,
    "inner_alpha": 2 / 255,
}
_LONG: dict[str, Any] = {**_BOOSTED, "augment": (*_BOOSTED["augment"], "mix"), "decay": 0.9, "average": 0.5}
PRESETS: dict[str, dict[str, Any]] = {
    "plain": {},
    "fast": {**_BOOSTED, "steps": 80},
    "balanced": {**_LONG, "steps": 320},
    "strong": {**_LONG, "steps": 640, "ensemble": "turns"},
}
"""Options that a preset sets, the others have their own defaults: docs/method.md has what each gives and costs."""
LEFT_OUT = frozenset(
    {"preset", "alpha", "steps", "batch_size", "inner_steps", "inner_alpha", "normalise", "decay", "augment", "dropout"}
    | {"smoothing", "spread", "ensemble", "average"}
)
"""Options that may be None: the preset says them, or else the default."""
ENSEMBLES = ("loss", "gradient", "turns")
GA_BATCH_SIZE = 1
GA_INNER_STEPS = 10
GA_INNER_ALPHA = 0.5
"""Step of the look-ahead in units of eps. These three come from our ablation: docs/method.md."""
MOST_STEPS = 1_000_000

LEVELS = "in [0, 1] on the scale of pictures in [0, 1]; divide grey levels by 255"


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """What decides a cloak, besides the photos and the surrogate. `fit` documents each field, `configure` makes one.

    Numbers of numpy and 0-d tensors are taken as plain ones.

    Raises:
        ValueError: an option out of range or of another kind.
    """

    method: str = "ga"
    preset: str = "plain"
    objective: str = "convex_hull"
    eps: float = 8 / 255
    alpha: float = 1 / 255
    steps: int = 16
    batch_size: int | None = None
    inner_steps: int | None = None
    inner_alpha: float | None = None
    normalise: bool = False
    decay: float = 0.0
    augment: tuple[str, ...] = ()
    dropout: float = 0.0
    smoothing: float = 0.0
    spread: float = 0.0
    ensemble: str = "loss"
    average: float = 0.0
    warmup: int = 5
    lower: float = 0.0
    upper: float = 1.0
    random_start: bool = True
    grey: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self._choice("method", METHODS)
        self._choice("preset", tuple(PRESETS))
        self._choice("objective", OBJECTIVES)
        self._real("eps", 0, 1, LEVELS)
        self._real("alpha", 0, 1, LEVELS)
        self._whole("steps", 0, MOST_STEPS)
        if self.batch_size is not None:
            self._whole("batch_size", 1, MOST_STEPS)
        if self.inner_steps is not None:
            self._whole("inner_steps", 1, MOST_STEPS)
        if self.inner_alpha is not None:
            self._real("inner_alpha", 0, 1, LEVELS)
        self._switch("normalise")
        self._real("decay", 0, 1, "in [0, 1]")
        self._names("augment", AUGMENTATIONS)
        self._real("dropout", 0, 0.9, "in [0, 0.9]")
        self._real("smoothing", 0, 100, "a width in pixels, in [0, 100]")
        self._real("average", 0, 1, "the share of the steps whose masks are averaged, in [0, 1]")
        self._real("spread", 0, 1e3, "in [0, 1000]")
        self._choice("ensemble", ENSEMBLES)
        self._whole("warmup", 0, MOST_STEPS)
        self._real("lower", -1e3, 1, "in [-1000, 1]")
        self._real("upper", self.lower, 1, f"above lower = {self.lower:g} and at most 1")
        self._switch("random_start")
        if self.grey is not None:
            self._switch("grey")
        self._whole("seed", -(2**63), 2**63 - 1)
        if self.steps * self.inner() > MOST_STEPS:
            raise ValueError(f"steps * inner_steps must be at most {MOST_STEPS}, got {self.steps * self.inner()}")
        if self.method == "opom" and self.preset != "plain":
            raise ValueError(f"preset {self.preset!r} belongs to method 'ga': 'opom' is the published loop, 'plain'")
        if self.method == "opom" and (self.batch_size, self.inner_steps, self.inner_alpha) != (None, None, None):
            raise ValueError(
                "batch_size, inner_steps and inner_alpha belong to method 'ga': 'opom' takes all photos in one step"
            )
        zero_start = ("fi_uap", "affine_hull") if self.warmup else ("fi_uap", "affine_hull", "convex_hull")
        if not self.random_start and self.objective in zero_start:
            raise ValueError(
                f"random_start must be True for {self.objective}: an uncloaked photo lies in its own hull, where the "
                "gradient is zero; or take class_center, or convex_hull with warmup of 1 or more"
            )

    def of(self, faces: torch.Tensor) -> FitConfig:
        """The same with `grey` said: None is whether ga learns from grey photos only, and False for opom, as published.

        Args:
            faces: [N, 3, 112, 112] float, of one person or of people who have it in common.
        """
        if self.grey is not None:
            return self
        return replace(self, grey=self.method == "ga" and bool((faces == faces[..., :1, :, :]).all()))

    def batch(self, photos: int) -> int:
        """Photos per inner step for a person with this many."""
        return photos if self.method == "opom" else min(self.batch_size or GA_BATCH_SIZE, photos)

    def inner(self) -> int:
        """Inner steps per step."""
        return 1 if self.method == "opom" else self.inner_steps or GA_INNER_STEPS

    def look_ahead(self) -> float:
        """Step of the look-ahead mask; opom has none."""
        if self.method == "opom":
            return 0.0
        return GA_INNER_ALPHA * self.eps if self.inner_alpha is None else self.inner_alpha

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _choice(self, name: str, choices: tuple[str, ...]) -> None:
        got = getattr(self, name)
        if not isinstance(got, str) or got not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {got!r}")

    def _names(self, name: str, choices: tuple[str, ...]) -> None:
        got = getattr(self, name)
        names = [one.strip() for one in got.split(",") if one.strip()] if isinstance(got, str) else got
        if not isinstance(names, (tuple, list)) or not all(one in choices for one in names):
            raise ValueError(f"{name} must be names out of {', '.join(choices)}, as a tuple or 'a,b', got {got!r}")
        self._set(name, tuple(one for one in choices if one in names))

    def _whole(self, name: str, least: int, most: int) -> None:
        got = getattr(self, name)
        expected = f"{name} must be a whole number, {least} or more" + (
            "" if most == MOST_STEPS else f", at most {most}"
        )
        if _is_switch(got):
            raise ValueError(f"{expected}, got {got!r}")
        try:
            number = operator.index(got)
        except TypeError:
            raise ValueError(f"{expected}, got {got!r}") from None
        if not least <= number <= most:
            raise ValueError(f"{expected}{f' and at most {most}' if number > most else ''}, got {number}")
        self._set(name, number)

    def _real(self, name: str, least: float, most: float, expected: str) -> None:
        got = getattr(self, name)
        try:
            number = math.nan if _is_switch(got) or isinstance(got, (str, bytes)) else float(got)
        except (TypeError, ValueError, RuntimeError):
            number = math.nan
        if not least <= number <= most:
            raise ValueError(f"{name} must be {expected}, got {got!r}")
        self._set(name, number)

    def _switch(self, name: str) -> None:
        got = getattr(self, name)
        if not _is_switch(got):
            raise ValueError(f"{name} must be True or False, got {got!r}")
        self._set(name, bool(got))


def _is_switch(value: Any) -> bool:
    if isinstance(value, bool):
        return True
    # Late, so that the command line answers at once.
    import numpy as np

    return isinstance(value, np.bool_)


def configure(options: Mapping[str, Any]) -> FitConfig:
    """The options of a fit: what the caller gave, then what the preset says, then the default.

    Args:
        options: fields of `FitConfig`; None in those of `LEFT_OUT` is not given. The preset is "fast" for ga and
            "plain" for opom.

    Raises:
        TypeError: a name that is not an option.
        ValueError: as `FitConfig`.
    """
    unknown = set(options) - {field.name for field in fields(FitConfig)}
    if unknown:
        raise TypeError(f"unknown option {', '.join(sorted(unknown))}; options are the keyword arguments of fit")
    given = {name: value for name, value in options.items() if value is not None or name not in LEFT_OUT}
    preset = given.setdefault("preset", "plain" if given.get("method") == "opom" else "fast")
    recipe = PRESETS.get(preset, {}) if isinstance(preset, str) else {}
    augment = given.get("augment")
    if isinstance(augment, str) and augment.startswith("+"):
        given["augment"] = ",".join((*recipe.get("augment", ()), augment[1:]))
    return FitConfig(**{**recipe, **given})
