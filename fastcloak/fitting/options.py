"""The options that decide a cloak, each declared once: its range is checked, and its help printed, from here.

`FitConfig` has the declarations, `FitOptions` their types as the keywords of `fit`. The command line and the table in
docs/use.md are made from them. Nothing here imports PyTorch or NumPy: `--help` answers at once.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypedDict

from fastcloak.system.checks import is_switch, whole

if TYPE_CHECKING:
    import torch

log = logging.getLogger("fastcloak")

METHODS = ("ga", "opom")
OBJECTIVES = ("fi_uap", "fi_uap_plus", "class_center", "affine_hull", "convex_hull")
"""The objectives of OPOM, in the order of the paper."""
AUGMENTATIONS = ("symmetry", "jitter", "mix", "photo", "color", "blur", "jpeg", "geometry", "flip")
"""In the order in which they are applied, with the numbers of `fastcloak.ops.augment`.

symmetry: every second face, before it is cloaked, is one half of the photo's and the mirror image of that half: a face
    that the photos do not hold; and the gradient of each signed step is made symmetric, as then is ga's mask.
jitter: the face, before it is cloaked, shifted, scaled and rotated by up to half of what geometry does, as if its
    landmarks lay elsewhere; the mask stays.
mix: the face, not the mask, fades by up to `MIX` into one of `TEXTURES` random pictures with the spectrum of photos.
photo: the mask is resized into a photo and the aligned face cut out of it again, as `protect` and a recogniser do, at
    a face size of `FACE_PIXELS`; only the mask is resampled, not the face.
color: contrast and brightness.
blur: Gaussian, sigma up to `BLUR`.
jpeg: JPEG with 4:2:0 colour at a quality in `JPEG_QUALITY`; its rounding passes gradients through.
geometry: shift, scale and rotation, as between the alignments of two detectors.
flip: every second picture mirrored.

Source: input diversity, Xie et al., CVPR 2019; expectation over transformation, Athalye et al., ICML 2018; mix: Admix,
Wang et al., ICCV 2021, with noise in place of other pictures; JPEG: Shin and Song, NIPS workshop 2017. Symmetry and
jitter are ours.
"""
ENSEMBLES = ("loss", "gradient", "turns")
_BOOSTED: dict[str, Any] = {
    "objective": "fi_uap_plus",
    "augment": ("geometry", "flip", "color", "symmetry", "jitter"),
    "alpha": 2 / 255,
    "decay": 1.0,
    "inner_steps": 2,
    "inner_alpha": 2 / 255,
}
_LONG: dict[str, Any] = {**_BOOSTED, "decay": 0.9, "average": 0.5}
PRESETS: dict[str, dict[str, Any]] = {
    "plain": {},
    "fast": {**_BOOSTED, "steps": 80},
    "balanced": {**_LONG, "steps": 320},
    "strong": {**_LONG, "steps": 640, "ensemble": "turns"},
}
"""Options that a preset sets, the others have their own defaults: docs/results.md has what each gives and costs."""
MOST_STEPS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Option:
    """What there is to say about one option.

    Attributes:
        kind: "choice", "names", "whole", "real", "levels" (a real on the [0, 1] scale, grey levels on the command
            line) or "switch".
        help: one sentence, for people.
        choices: of a choice or of names.
        least, most: range of a number.
        useful: the least number with which anything is learnt; below, `fit` warns and the command line refuses.
        basic: whether most people need it.
        none: what None stands for, where that is not the default.
    """

    kind: str
    help: str
    choices: Sequence[str] = ()
    least: float = 0
    most: float = 1
    useful: float | None = None
    basic: bool = False
    none: str = ""

    def check(self, name: str, value: Any) -> Any:
        """The value as Python's own type; numbers of NumPy and 0-d tensors become plain ones.

        Raises:
            ValueError: out of range or of another kind.
        """
        if value is None and self.none:
            return None
        if self.kind == "whole":
            return whole(name, value, int(self.least), int(self.most))
        checked: Any = getattr(self, f"_{self.kind}")(value)
        if checked is None:
            raise ValueError(f"{name} must be {self.expected}, got {value!r}")
        return checked

    @property
    def expected(self) -> str:
        """What a value must be, in a few words."""
        ranged = f"in [{self.least:g}, {self.most:g}]"
        return {
            "choice": f"one of {', '.join(self.choices)}",
            "names": f"names out of {', '.join(self.choices)}, as a tuple or 'a,b'",
            "real": ranged,
            "levels": f"{ranged} on the scale of pictures in [0, 1]; divide grey levels by 255",
            "switch": "True or False",
        }[self.kind]

    # Each gives None for what cannot be taken.

    def _choice(self, value: Any) -> str | None:
        return value if isinstance(value, str) and value in self.choices else None

    def _names(self, value: Any) -> tuple[str, ...] | None:
        names = [one.strip() for one in value.split(",") if one.strip()] if isinstance(value, str) else value
        if not isinstance(names, (tuple, list)) or not all(name in self.choices for name in names):
            return None
        return tuple(choice for choice in self.choices if choice in names)

    def _real(self, value: Any) -> float | None:
        try:
            number = math.nan if is_switch(value) or isinstance(value, (str, bytes)) else float(value)
        except (TypeError, ValueError, RuntimeError):
            return None
        return number if self.least <= number <= self.most else None

    _levels = _real

    def _switch(self, value: Any) -> bool | None:
        return bool(value) if is_switch(value) else None


def option(default: Any, kind: str, help: str, **more: Any) -> Any:
    """A field of a dataclass of options: its default, and what `Option` takes."""
    return field(default=default, metadata={"option": Option(kind=kind, help=help, **more)})


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """What decides a cloak, besides the photos and the surrogate; `configure` makes one.

    Raises:
        ValueError: an option out of range or of another kind, or two that exclude each other.
    """

    preset: str = option(
        "plain",
        "choice",
        "how much work, with our best recipe for it; plain has no boosters, and is all that opom has",
        choices=tuple(PRESETS),
        basic=True,
    )
    eps: float = option(8 / 255, "levels", "largest change of a pixel", useful=0.5 / 255, basic=True)
    seed: int = option(
        0, "whole", "of the random start, the order of photos and the views", least=-(2**63), most=2**63 - 1, basic=True
    )
    grey: bool | None = option(
        None,
        "switch",
        "learn a mask of three equal channels: grey photos stay grey, and of another mask keep only the mean of its "
        "channels",
        none="ga does so if all photos are grey, opom (as published) does not",
        basic=True,
    )
    augment: tuple[str, ...] = option(
        (),
        "names",
        f"random views of each photo, names with commas out of {', '.join(AUGMENTATIONS)}; +photo adds that one to the "
        "preset's, for photos with small faces; costs no image-gradient, and a few milliseconds each",
        choices=AUGMENTATIONS,
        basic=True,
    )
    method: str = option(
        "ga",
        "choice",
        "ga (GA-OPOM) accumulates the gradients of small batches into one signed step, opom takes all photos in every "
        "step, as published",
        choices=METHODS,
    )
    objective: str = option(
        "convex_hull",
        "choice",
        "what cloaked photos are driven away from: fi_uap their own originals, fi_uap_plus all originals, class_center "
        "their mean, affine_hull and convex_hull the nearest point that they span",
        choices=OBJECTIVES,
    )
    alpha: float = option(1 / 255, "levels", "size of a step", useful=0.001 / 255)
    steps: int = option(16, "whole", "signed steps of the mask; 0 gives an empty one", most=MOST_STEPS, useful=1)
    batch_size: int = option(
        1, "whole", "ga: photos per inner step, at most all (our ablation)", least=1, most=MOST_STEPS
    )
    inner_steps: int = option(
        10, "whole", "ga: inner steps accumulated into one step (our ablation)", least=1, most=MOST_STEPS
    )
    inner_alpha: float = option(None, "levels", "ga: step of the look-ahead mask", none="half of eps (our ablation)")
    decay: float = option(
        0.0, "real", "momentum of the step on g / mean|g| (Dong et al., CVPR 2018); costs no image-gradient"
    )
    smoothing: float = option(
        0.0,
        "real",
        "sigma in pixels of a Gaussian over the gradient of each signed step (TI, Dong et al., CVPR 2019): smoother "
        "masks, which survive blur and denoising; costs no image-gradient",
        most=16,
    )
    color: float = option(
        1.0,
        "real",
        "share of the color in the gradient of each signed step that is kept; the rest becomes light and dark, which "
        "eyes see less in a mask, and which survives denoising better",
    )
    dropout: float = option(
        0.0,
        "real",
        "share of numbers dropped after each convolution (DFANet, Zhong and Deng, TIFS 2021, has 0.1); costs time",
        most=0.9,
    )
    ensemble: str = option(
        "loss",
        "choice",
        "several networks: mean of their losses with hull weights in common, mean of their gradients each divided by "
        "its own size, or one network each inner step in turns, which costs one image-gradient instead of one each",
        choices=ENSEMBLES,
    )
    average: float = option(
        0.0,
        "real",
        "share of the steps, the last ones, whose masks are averaged; the cloak is eps times the sign of that mean "
        "(the mean: Polyak and Juditsky, 1992; the sign is ours); 0: the last mask",
    )
    warmup: int = option(
        5, "whole", "convex_hull: first steps that use class_center, to leave the hull", most=MOST_STEPS
    )
    lower: float = option(
        0.0, "real", "convex_hull: least hull weight; below 0 is the extended hull; below 1/N", least=-1e3
    )
    upper: float = option(1.0, "real", "convex_hull: largest hull weight, above 1/N; below 1 is the reduced hull")
    random_start: bool = option(
        True, "switch", "start from uniform noise in +-eps, one per photo (ga: the mean of these), instead of zero"
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.method == "opom":  # one step on all photos, without a look-ahead
            object.__setattr__(self, "inner_steps", 1)
            object.__setattr__(self, "inner_alpha", 0.0)
            if self.preset != "plain":
                raise ValueError(
                    f"preset {self.preset!r} belongs to method 'ga': 'opom' is the published loop, 'plain'"
                )
        else:
            look_ahead = 0.5 * self.eps if self.inner_alpha is None else self.inner_alpha
            object.__setattr__(self, "inner_alpha", look_ahead)
        if not self.lower < self.upper:
            raise ValueError(f"upper must be above lower = {self.lower:g} and at most 1, got {self.upper!r}")
        if self.steps * self.inner_steps > MOST_STEPS:
            raise ValueError(f"steps * inner_steps must be at most {MOST_STEPS}, got {self.steps * self.inner_steps}")
        zero_start = ("fi_uap", "affine_hull") if self.warmup else ("fi_uap", "affine_hull", "convex_hull")
        if not self.random_start and self.objective in zero_start:
            raise ValueError(
                f"random_start must be True for {self.objective}: an uncloaked photo lies in its own hull, where the "
                "gradient is zero; or take class_center, or convex_hull with warmup of 1 or more"
            )

    def of(self, faces: torch.Tensor) -> FitConfig:
        """The same with `grey` decided: None is whether ga learns from grey photos only, and False for opom.

        Args:
            faces: [N, 3, 112, 112] float, of one person or of people who have it in common.
        """
        if self.grey is not None:
            return self
        return replace(self, grey=self.method == "ga" and bool((faces == faces[..., :1, :, :]).all()))

    def pictures(self, photos: int) -> int:
        """Faces that a person with this many photos is learnt from."""
        return 3 * photos if "symmetry" in self.augment else photos

    def batch(self, photos: int) -> int:
        """Photos per inner step for a person with this many; opom takes all."""
        return photos if self.method == "opom" else min(self.batch_size, photos)


class FitOptions(TypedDict, total=False):
    """Options of `fit` beyond those it names, as keywords. None: what the preset says, or else the default.

    docs/use.md and `fastcloak fit --help` list what each does.
    """

    grey: bool | None
    augment: Sequence[str] | str | None
    method: str | None
    objective: str | None
    alpha: float | None
    steps: int | None
    batch_size: int | None
    inner_steps: int | None
    inner_alpha: float | None
    decay: float | None
    smoothing: float | None
    color: float | None
    dropout: float | None
    ensemble: str | None
    average: float | None
    warmup: int | None
    lower: float | None
    upper: float | None
    random_start: bool | None


class FitterOptions(FitOptions, total=False):
    """Every keyword of `Fitter`, for functions that pass them on."""

    preset: str | None
    eps: float
    seed: int
    strict: bool
    device: str | torch.device
    backend: str
    engine: str
    dtype: str | torch.dtype
    memory_budget: int | None


LAUNCH_OPTIONS = frozenset({"strict", "device", "backend", "engine", "dtype", "memory_budget"})
"""Those of `FitterOptions` that say how a fit runs; the others decide the cloak."""


def declared(config: Any = FitConfig) -> dict[str, Option]:
    """Every option of a class of options by name, those that most people need first."""
    return {one.name: one.metadata["option"] for one in fields(config)}


def default(name: str, config: Any = FitConfig) -> Any:
    """What an option is where neither the caller nor the preset says it."""
    return next(one.default for one in fields(config) if one.name == name)


def check_options(config: Any) -> None:
    """Check every option of a frozen dataclass of options, and make it Python's own type.

    Raises:
        ValueError: one is out of range or of another kind.
    """
    for name, one in declared(type(config)).items():
        object.__setattr__(config, name, one.check(name, getattr(config, name)))


def refuse_unknown(options: Mapping[str, Any], config: Any = FitConfig) -> None:
    """Raise TypeError for names that are no options."""
    unknown = set(options) - set(declared(config))
    if unknown:
        raise TypeError(f"unknown option {', '.join(sorted(unknown))}; expected {', '.join(declared(config))}")


def warn_of_idle(config: Any) -> None:
    """Log a warning for each option with which nothing can be learnt."""
    for name, one in declared(type(config)).items():
        if one.useful is not None and getattr(config, name) < one.useful:
            log.warning("with %s = %g a mask protects nothing", name, getattr(config, name))


def configure(options: Mapping[str, Any]) -> FitConfig:
    """The options of a fit: what the caller gave, then what the preset says, then the default.

    Args:
        options: fields of `FitConfig`; those that are None are not given. The preset is "fast" for ga and "plain" for
            opom.

    Raises:
        TypeError: a name that is not an option.
        ValueError: as `FitConfig`.
    """
    refuse_unknown(options)
    given = {name: value for name, value in options.items() if value is not None}
    opom = given.get("method") == "opom"
    if opom and (ga_only := [name for name in ("batch_size", "inner_steps", "inner_alpha") if name in given]):
        raise ValueError(f"{', '.join(ga_only)} must be left out: 'opom' takes all photos in one step")
    preset = given.setdefault("preset", "plain" if opom else "fast")
    recipe = PRESETS.get(preset, {}) if isinstance(preset, str) else {}
    augment = given.get("augment")
    if isinstance(augment, str) and augment.startswith("+"):
        given["augment"] = ",".join((*recipe.get("augment", ()), augment[1:]))
    config = FitConfig(**{**recipe, **given})
    if config.objective != "convex_hull" and (idle := [name for name in ("lower", "upper") if name in given]):
        log.warning("objective %s does not read %s; convex_hull does", config.objective, ", ".join(idle))
    return config
