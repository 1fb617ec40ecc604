"""What an evaluation and a check found, as plain numbers.

A rate is a share of one person's photos or pairs of photos: `fastcloak.evaluation.protocol` says how those of ranks are
counted, `fastcloak.evaluation.adversary` those of thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any, NamedTuple

from fastcloak.evaluation.text import Table, as_text, percent
from fastcloak.protection.enrolment import FALSE_ACCEPT_RATE

# The names of the two control rows: no mask, and a random sign mask.
CLEAN, RANDOM = "clean", "random"
# Three strangers at the false accept rate: fewer pairs say nothing of a threshold.
LEAST_PAIRS = math.ceil(3 / FALSE_ACCEPT_RATE)


def share_of_strangers(share: float | None) -> str:
    """Write a share that is about the false accept rate: two decimals, in percent."""
    return "-" if share is None else f"{100 * share:.2f}"


class Attack(NamedTuple):
    """What someone may try: the name of its rate, what it is, and how it is written."""

    rate: str
    words: str
    written: Callable[[float | None], str] = percent


# The columns of a table of attacks, of which `Check` and `Evaluation` have one each.
ATTACKS: Mapping[str, Attack] = {
    "tracked": Attack(
        "tracked",
        "% of an album that someone finds who starts with one clean photo and adds each photo that is recognised.",
    ),
    "template": Attack(
        "template",
        "% of posted photos recognised by the mean of up to ten other clean photos, which services keep.",
    ),
    "Top-1 mixed": Attack(
        "mixed_top1",
        "Top-1 where protected photos of other people are among the distractors.",
    ),
    "linkage mixed": Attack(
        "mixed_linkage",
        "linkage where protected photos of other people are among the distractors.",
    ),
    "somebody else": Attack(
        "impersonation",
        "% of pairs of a posted photo and a distractor taken for one person; right is no more than with clean photos.",
        share_of_strangers,
    ),
}


@dataclass(frozen=True)
class Threshold:
    """The cosine from which on a network takes two photos for the same person, and where that number comes from."""

    value: float
    origin: str


@dataclass(frozen=True)
class RankRates:
    """What a network finds that ranks one person's posted photos among distractors; over the ordered pairs i != j.

    Attributes:
        protection_top1: share of pairs whose clean photo is not the best match.
        protection_top5: share of pairs whose clean photo is not among the 5 best matches.
        linkage_top1: share of pairs whose two posted photos match each other first.
        mean_similarity: cosine of posted photo i and clean photo j, in [-1, 1].
        mixed_top1: `protection_top1` where protected photos of other people are among the distractors; None: there are
            none. With more distractors it is never less.
        mixed_linkage: `linkage_top1` in the same way.
    """

    protection_top1: float
    protection_top5: float
    linkage_top1: float
    mean_similarity: float
    mixed_top1: float | None = None
    mixed_linkage: float | None = None


@dataclass(frozen=True)
class ThresholdRates:
    """What a network finds that compares one person's posted photos by its threshold; None: not known.

    Attributes:
        accepted: share of pairs of posted photo i and clean photo j != i that reach the threshold.
        linked: share of pairs of two posted photos that reach it.
        tracked: share of the album that a gallery gets in the end that grows with each photo it recognises.
        template: share of posted photos that reach it with the mean of up to ten other clean photos.
        impersonation: share of pairs of a posted photo and a distractor that reach it: taken for somebody else.
    """

    accepted: float | None = None
    linked: float | None = None
    tracked: float | None = None
    template: float | None = None
    impersonation: float | None = None


@dataclass(frozen=True)
class PersonRates(ThresholdRates, RankRates):
    """What one network makes of one person's pictures."""


@dataclass(frozen=True, kw_only=True)
class Row(PersonRates):
    """One network (`model`) judging one kind of picture (`mask`); every rate is the mean over people.

    `mask` is "clean" (no mask), "random" (a random sign mask) or the label given to the evaluation. `white_box` says
    that a cloak in this row was fitted on a network of this name, alone or among others: such rows show how well the
    fit went, not protection from strangers. It goes by name: the same network under another name is not marked.
    `largest_change` is measured on the rounded pictures, in grey levels. `threshold` is the network's, None where it is
    not known. In a clean row, linkage is simply the rate at which the network recognises the person.
    """

    model: str
    mask: str
    white_box: bool
    largest_change: int
    threshold: Threshold | None
    per_person: Mapping[str, PersonRates]


@dataclass(frozen=True)
class Evaluation:
    """Rows of one or several masks on the same people: `pairs` in all, each against at least `distractors` photos.

    Evaluations of different labels or models add up: `evaluate(opom, ...) + evaluate(ga, ...)`.
    """

    people: tuple[str, ...]
    pairs: int
    distractors: int
    rows: tuple[Row, ...]

    def __add__(self, other: Evaluation) -> Evaluation:
        """Join the rows of both; a control row that both hold appears once.

        Raises:
            ValueError: they are not about the same people, pairs and distractors, or both hold a label on a model.
        """
        for name in ("people", "pairs", "distractors"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(f"evaluations to add must agree on {name}, got {mine} and {theirs}")
        # A random mask of another strength is another control.
        controls = {(row.model, row.mask, row.largest_change) for row in self.rows if row.mask in (CLEAN, RANDOM)}
        added = [row for row in other.rows if (row.model, row.mask, row.largest_change) not in controls]
        labels = {(row.model, row.mask) for row in self.rows if row.mask not in (CLEAN, RANDOM)}
        for row in added:
            if (row.model, row.mask) in labels:
                raise ValueError(
                    f"both evaluations hold mask {row.mask!r} on {row.model!r}; give them different labels"
                )
        return Evaluation(self.people, self.pairs, self.distractors, (*self.rows, *added))

    def table(self) -> str:
        """Lay the rows out in aligned columns, rates in percent, the rows of a model together."""
        models = list(dict.fromkeys(row.model for row in self.rows))
        rows = sorted(self.rows, key=lambda row: models.index(row.model))
        names = [(row.model + "*" * row.white_box, row.mask) for row in rows]
        numbers = [
            (
                str(row.largest_change),
                *map(percent, (row.accepted, row.protection_top1, row.protection_top5, row.linkage_top1, row.linked)),
                f"{row.mean_similarity:.3f}",
            )
            for row in rows
        ]
        notes = (
            f"{len(self.people)} people, {self.pairs} pairs, each against {self.distractors} or more distractors; "
            "every person weighs the same.",
            "change: largest change of a pixel, grey levels.  * white box: fitted on this model.",
            "accepted: % of pairs of a posted and another, clean picture that reach the threshold; lower is better.",
            "Top-1, Top-5: % of pairs whose clean photo is not among the 1 or 5 best matches; higher is better.",
            "linkage: % of pairs where the posted pictures of a person match each other first; lower is better.",
            "linked: % of pairs of two posted pictures that reach the threshold; lower is better.",
            "cosine: mean similarity of a posted picture to another, clean picture of the person.",
            *(threshold_words(row.model, row.threshold) for row in {row.model: row for row in rows}.values()),
        )
        header = ("model", "mask", "change", "accepted", "Top-1", "Top-5", "linkage", "linked", "cosine")
        lines = as_text(Table("", header, [(*a, *b) for a, b in zip(names, numbers, strict=True)], notes, left=2))
        columns = {
            name: cells
            for name, attack in ATTACKS.items()
            if set(cells := [attack.written(getattr(row, attack.rate)) for row in rows]) != {"-"}
        }
        if columns:
            attacks = [(*name, *cells) for name, *cells in zip(names, *columns.values(), strict=True)]
            words = [f"{name}: {ATTACKS[name].words}" for name in columns]
            lines += ["", *as_text(Table("What someone may try", ("model", "mask", *columns), attacks, words, left=2))]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Turn into plain dicts, lists, strings and numbers, ready for `json.dumps`."""
        return {**plain(vars(self)), "people": list(map(str, self.people))}


@dataclass(frozen=True, kw_only=True)
class Side(ThresholdRates):
    """One network's view of the photos before or after protection, one entry per photo; None where no face was found.

    Attributes:
        own: cosine with the photo's own original.
        others: mean cosine with the person's other originals; all None with a single photo.
        nearest: the largest of those cosines.
        recognised: whether the network recognises the person in the photo; None also where no threshold is known.
        rates: of these photos among the distractors; None with fewer than two photos or without distractors.
        no_face: in how many photos no face was found.
    """

    own: tuple[float | None, ...]
    others: tuple[float | None, ...]
    nearest: tuple[float | None, ...]
    recognised: tuple[bool | None, ...]
    rates: RankRates | None
    no_face: int


@dataclass(frozen=True)
class PostProcessingCheck:
    """One network after one post-processing, called `name`: the originals and the protected photos."""

    name: str
    before: Side
    after: Side


@dataclass(frozen=True)
class ModelCheck:
    """One network; `white_box` says that the cloak was fitted on a network of this name, None that it is not known."""

    model: str
    white_box: bool | None
    threshold: Threshold | None
    post_processing: tuple[PostProcessingCheck, ...]

    @property
    def as_saved(self) -> PostProcessingCheck:
        """The photos without post-processing."""
        return self.post_processing[0]


@dataclass(frozen=True, eq=False)
class PicturePair:
    """An original and its protected version as PNG files of one size; `scale` is 1 at the photo's own pixels."""

    original: bytes = field(repr=False)
    protected: bytes = field(repr=False)
    width: int
    height: int
    scale: float


@dataclass(frozen=True, eq=False)
class PhotoPictures:
    """A photo as in an album, the same at reading size, and its face close up with what changed there, a PNG file."""

    thumbnail: PicturePair
    photo: PicturePair
    face: PicturePair
    difference: bytes = field(repr=False)


@dataclass(frozen=True)
class PhotoCheck:
    """How far a protected photo is from its original; None where that was not measured.

    Attributes:
        name: of the original, relative to its folder.
        width: of the original, in pixels.
        height: of the original.
        faces: how many faces were found in the original; the one that changed most is checked.
        largest_change: of a pixel, in grey levels.
        psnr: peak signal to noise ratio of the whole photo, in dB; infinite where nothing changed.
        ssim: structural similarity of the whole photo, 1 where nothing changed.
        face_change, face_psnr, face_ssim: the same within the face's box.
        face_ciede2000: mean colour difference there, 0 where nothing changed.
        face_ssimulacra2: SSIMULACRA2 there, 100 where nothing changed; may be below 0.
        pictures: for a report.
    """

    name: str
    width: int
    height: int
    faces: int
    largest_change: int | None
    psnr: float | None
    ssim: float | None
    face_change: int | None
    face_psnr: float | None
    face_ssim: float | None
    face_ciede2000: float | None
    face_ssimulacra2: float | None
    pictures: PhotoPictures | None

    @property
    def unchanged(self) -> bool:
        """Whether the face is that of the original, pixel by pixel: it was not protected."""
        return self.face_change == 0


def threshold_words(model: str, threshold: Threshold | None) -> str:
    """Say which threshold a network has, and where it comes from."""
    if threshold is None:
        return (
            f"{model}: no threshold is known, and {LEAST_PAIRS} pairs of a clean photo and a distractor are needed to "
            "estimate one: verification is left out."
        )
    return f"{model}: threshold {threshold.value:.3f}, {threshold.origin}."


def plain(value: Any) -> Any:
    """Results as dicts, lists, strings and numbers; without pictures, and None for what is infinite."""
    if is_dataclass(value):
        value = {name: one for name, one in vars(value).items() if name != "pictures"}
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(one) for one in value]
    return None if value == math.inf else value
