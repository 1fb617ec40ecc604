"""The options that decide the masks of an album, each declared once, as in `fastcloak.fitting.options`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from fastcloak.fitting.options import MOST_STEPS, FitConfig, check_options, option, refuse_unknown

LOOKS = {"even": (1.0, 1.0), "textured": (0.4, 1.75)}
"""Smallest and largest bound of a pixel, as shares of the mean bound."""
STRENGTHS = {"light": (5 / 255, 1.0), "medium": (7.25 / 255, 1.0), "strong": (9 / 255, 2.0)}
"""Mean bounds by name, and how strongly photos are kept apart under them: strong masks drive all of them far off in one
direction, in which they would be linked."""


@dataclass(frozen=True, kw_only=True)
class TailorConfig:
    """What decides the masks of an album, besides the photos, the person and the networks.

    Raises:
        ValueError: an option out of range or of another kind.
    """

    strength: str = option(
        "medium", "choice", "how far pixels may change on average, by name", choices=tuple(STRENGTHS), basic=True
    )
    look: str = option(
        "textured",
        "choice",
        "where they may change: textured, less on skin and sky and more in hair, eyes, edges; even, everywhere alike",
        choices=tuple(LOOKS),
        basic=True,
    )
    gradients: int = option(40, "whole", "forward and backward passes per photo", most=MOST_STEPS, useful=1, basic=True)
    apart: float | None = option(
        None,
        "real",
        "how strongly the photos are kept from being linked to each other; 1: as strongly as from being recognised",
        most=10,
        basic=True,
        none="1, with strength strong 2",
    )
    smoothing: float = option(
        1.25,
        "real",
        "sigma in pixels of a Gaussian over each gradient: smoother masks, which survive blur and denoising",
        most=16,
    )
    color: float = option(
        0.5,
        "real",
        "share of the color in each gradient that is kept; the rest becomes light and dark, which eyes see less",
    )
    seed: int = option(0, "whole", "of the start noise and the views", least=-(2**63), most=2**63 - 1, basic=True)
    eps: float | None = option(
        None, "levels", "mean bound of a pixel, instead of a strength", useful=0.5 / 255, none="that of the strength"
    )

    def __post_init__(self) -> None:
        check_options(self)
        for name, value in zip(("eps", "apart"), STRENGTHS[self.strength], strict=True):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    @property
    def largest(self) -> float:
        """Largest bound of a pixel, on the [0, 1] scale."""
        assert self.eps is not None
        return min(1.0, LOOKS[self.look][1] * self.eps)

    def loop(self, grey: bool) -> FitConfig:
        """The loop that learns the masks, as shares of their bounds: one network a step, in turns."""
        return FitConfig(
            eps=1.0,
            alpha=1 / 4,
            steps=self.gradients,
            inner_steps=1,
            inner_alpha=0.0,
            decay=0.9,
            average=0.5,
            smoothing=self.smoothing,
            color=self.color,
            objective="fi_uap_plus",
            ensemble="turns",
            augment=("color", "jpeg", "geometry", "flip"),
            seed=self.seed,
            grey=grey,
        )


class TailorOptions(TypedDict, total=False):
    """The options as keywords. None: the default. docs/use.md and `fastcloak tailor --help` list what each does."""

    strength: str | None
    look: str | None
    gradients: int | None
    apart: float | None
    smoothing: float | None
    color: float | None
    seed: int | None
    eps: float | None


def configure_tailor(options: Mapping[str, Any]) -> TailorConfig:
    """The options of an album: what the caller gave that is not None, else the default.

    Raises:
        TypeError: a name that is not an option.
        ValueError: as `TailorConfig`.
    """
    refuse_unknown(options, TailorConfig)
    return TailorConfig(**{name: value for name, value in options.items() if value is not None})
