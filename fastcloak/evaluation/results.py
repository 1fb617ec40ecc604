"""What an evaluation and a check found, as plain numbers.

A rate is a share of a person's ordered pairs of photos; `fastcloak.evaluation.protocol` says how it is counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any, NamedTuple

from fastcloak.evaluation.text import Table, as_text, percent
from fastcloak.protection.enrolment import FALSE_ACCEPT_RATE

# The names of the two control rows: no mask, and a random sign mask.
CLEAN, RANDOM = "clean", "random"
# Three strangers at the false accept rate: fewer pairs say nothing of a threshold.
LEAST_PAIRS = math.ceil(3 / FALSE_ACCEPT_RATE)


class PersonRates(NamedTuple):
    """What one network makes of one person's pictures: means over the ordered pairs i != j of that person.

    The three rates are in [0, 1], `mean_similarity` (cosine of probe i and clean j) in [-1, 1].
    """

    protection_top1: float
    protection_top5: float
    linkage_top1: float
    mean_similarity: float


@dataclass(frozen=True)
class Row:
    """One network (`model`) judging one kind of picture (`mask`); the four rates are the mean over people.

    `mask` is "clean" (no mask), "random" (a random sign mask) or the label given to the evaluation. `white_box` says
    that a cloak in this row was fitted on a network of this name, alone or among others: such rows show how well the
    fit went, not protection from strangers. It goes by name: the same network under another name is not marked.
    `largest_change` is measured on the rounded pictures, in grey levels. In a clean row, linkage is simply the rate at
    which the network recognises the person.
    """

    model: str
    mask: str
    white_box: bool
    largest_change: int
    protection_top1: float
    protection_top5: float
    linkage_top1: float
    mean_similarity: float
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
        rows = [
            (
                row.model + "*" * row.white_box,
                row.mask,
                str(row.largest_change),
                *map(percent, (row.protection_top1, row.protection_top5, row.linkage_top1)),
                f"{row.mean_similarity:.3f}",
            )
            for row in sorted(self.rows, key=lambda row: models.index(row.model))
        ]
        notes = (
            f"{len(self.people)} people, {self.pairs} pairs, each against {self.distractors} or more distractors; "
            "every person weighs the same.",
            "change: largest change of a pixel, grey levels.  * white box: fitted on this model.",
            "Top-1, Top-5: % of pairs whose clean photo is not among the 1 or 5 best matches; higher is better.",
            "linkage: % of pairs where the posted pictures of a person match each other first; lower is better.",
            "cosine: mean similarity of a posted picture to another, clean picture of the person.",
        )
        header = ("model", "mask", "change", "Top-1", "Top-5", "linkage", "cosine")
        return "\n".join(as_text(Table("", header, rows, notes, left=2)))

    def to_json(self) -> dict[str, Any]:
        """Turn into plain dicts, lists, strings and numbers, ready for `json.dumps`."""
        return {**plain(vars(self)), "people": list(map(str, self.people))}


@dataclass(frozen=True)
class Threshold:
    """The cosine from which on a network takes two photos for the same person, and where that number comes from."""

    value: float
    origin: str


@dataclass(frozen=True)
class Side:
    """One network's view of the photos before or after protection, one entry per photo; None where no face was found.

    Attributes:
        own: cosine with the photo's own original.
        others: mean cosine with the person's other originals; all None with a single photo.
        nearest: the largest of those cosines.
        recognised: whether the network recognises the person in the photo; None also where no threshold is known.
        accepted: share of the pairs of a photo and another original that reach the threshold.
        linked: share of the pairs of two posted photos, both of this side, that reach the threshold.
        rates: of these photos among the distractors; None with fewer than two photos or without distractors.
        no_face: in how many photos no face was found.
    """

    own: tuple[float | None, ...]
    others: tuple[float | None, ...]
    nearest: tuple[float | None, ...]
    recognised: tuple[bool | None, ...]
    accepted: float | None
    linked: float | None
    rates: PersonRates | None
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


def plain(value: Any) -> Any:
    """Results as dicts, lists, strings and numbers; without pictures, and None for what is infinite."""
    if is_dataclass(value):
        value = {name: one for name, one in vars(value).items() if name != "pictures"}
    elif isinstance(value, PersonRates):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(one) for one in value]
    return None if value == math.inf else value
