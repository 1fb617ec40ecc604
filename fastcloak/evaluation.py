"""How well cloaks protect: OPOM's protocol with its controls, and how well cloaked photos link to each other.

A person has N held-out photos. For each ordered pair i != j the probe is picture i as it would be posted, and the
gallery is the *clean* picture j among the distractors (photos of other people). A face network turns every picture into
a unit feature, pictures are compared by cosine, and the pair's rank is

    rank(i, j) = 1 + #{distractors more similar to the probe than clean j is}

Protection at k is the share of pairs with rank > k: the network's k best answers miss the person. Linkage is the share
of pairs with rank 1 when the gallery holds the *cloaked* picture j instead: a tracker that has seen the same cloak
before. A shared mask can make one person's cloaked photos match each other, so it is measured in every row.

Every picture a network sees here is rounded to 8 bits first, as a saved photo is.

Source: Zhong & Deng, "OPOM: Customized Invisible Cloak towards Face Privacy Protection", TPAMI 2022, for the
protection rate; linkage is not part of its protocol.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastcloak.cloak import Cloak
from fastcloak.faces import load_faces
from fastcloak.models import Surrogate, load_model, unit_features

__all__ = [
    "Check",
    "Evaluation",
    "ModelCheck",
    "PersonRates",
    "Row",
    "check_photos",
    "embed",
    "evaluate",
    "evaluate_photos",
    "person_rates",
    "protection_ranks",
    "random_mask",
]

# The names of the two control rows: no mask, and a random sign mask.
CLEAN = "clean"
RANDOM = "random"


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
    that a cloak in this row was learnt on this network, alone or among others: such rows show how well the learning
    went, not protection from strangers. `largest_change` is measured on the rounded pictures, in grey levels. In a
    clean row, linkage is simply the rate at which the network recognises the person.
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
        for field in ("people", "pairs", "distractors"):
            mine, theirs = getattr(self, field), getattr(other, field)
            if mine != theirs:
                raise ValueError(f"evaluations to add must agree on {field}, got {mine} and {theirs}")
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
        header = ("model", "mask", "change", "Top-1", "Top-5", "linkage", "cosine")
        lines = [
            (
                row.model + ("*" if row.white_box else ""),
                row.mask,
                str(row.largest_change),
                _percent(row.protection_top1),
                _percent(row.protection_top5),
                _percent(row.linkage_top1),
                f"{row.mean_similarity:.3f}",
            )
            for model in dict.fromkeys(row.model for row in self.rows)
            for row in self.rows
            if row.model == model
        ]
        return "\n".join(
            [
                *_aligned(header, lines, left=2),
                "",
                f"{len(self.people)} people, {self.pairs} pairs, each against {self.distractors} or more distractors; "
                "every person weighs the same.",
                "change: largest change of a pixel, grey levels.  * white box: learnt on this model.",
                "Top-1, Top-5: % of pairs whose clean photo is not among the 1 or 5 best matches; higher is better.",
                "linkage: % of pairs where the posted pictures of a person match each other first; lower is better.",
                "cosine: mean similarity of a posted picture to another, clean picture of the person.",
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """Turn into plain dicts, lists, strings and numbers, ready for `json.dumps`."""
        return {
            "people": list(self.people),
            "pairs": self.pairs,
            "distractors": self.distractors,
            "rows": [
                {**asdict(row), "per_person": {name: rates._asdict() for name, rates in row.per_person.items()}}
                for row in self.rows
            ],
        }


@dataclass(frozen=True)
class ModelCheck:
    """One network's view of one person's originals and their protected versions; cosines, one per photo.

    `to_own[i]` compares protected i with original i, `to_others[i]` with the other originals (their mean), and
    `originals[i]` is that last number before protection: original i with the other originals. With a single photo
    `to_others` and `originals` are empty. `rates` needs two photos or more and distractors, and is None otherwise.
    """

    model: str
    to_own: tuple[float, ...]
    to_others: tuple[float, ...]
    originals: tuple[float, ...]
    rates: PersonRates | None


@dataclass(frozen=True)
class Check:
    """What several networks make of one person's protected photos: see `check_photos`."""

    photos: int
    distractors: int
    models: tuple[ModelCheck, ...]

    def table(self) -> str:
        """Lay the networks out in aligned columns: mean cosines, and rates in percent where they are known."""
        header = ("model", "own original", "other originals", "before", "Top-1", "Top-5", "linkage")
        lines = [
            (
                check.model,
                *(_cosine(values) for values in (check.to_own, check.to_others, check.originals)),
                *(("-",) * 3 if check.rates is None else map(_percent, check.rates[:3])),
            )
            for check in self.models
        ]
        return "\n".join(
            [
                *_aligned(header, lines, left=1),
                "",
                f"{self.photos} photos, {self.distractors} distractors.",
                "own original, other originals: mean cosine of a protected photo to them; lower protects more.",
                "before: mean cosine of the originals to each other.",
                "Top-1, Top-5: % of pairs whose clean photo is not among the 1 or 5 best matches; higher is better.",
                "linkage: % of pairs where the protected photos match each other first; lower is better.",
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """Turn into plain dicts, lists, strings and numbers, ready for `json.dumps`."""
        return {
            "photos": self.photos,
            "distractors": self.distractors,
            "models": [
                {
                    "model": check.model,
                    "to_own": list(check.to_own),
                    "to_others": list(check.to_others),
                    "originals": list(check.originals),
                    "rates": None if check.rates is None else check.rates._asdict(),
                }
                for check in self.models
            ],
        }


def evaluate(
    cloaks: Mapping[str, Cloak],
    probes: Mapping[str, Any],
    models: Any,
    distractors: Any = None,
    *,
    label: str = "cloak",
    batch_size: int = 32,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Evaluation:
    """Judge cloaks on photos they were not learnt from, beside no mask and a random sign mask of the same strength.

    The rates are averaged over the pairs of a person first and over people second, so that every person weighs the
    same however many photos there are. With M distractors no rank exceeds M + 1: fewer than 5 make Top-5 protection 0.

    Args:
        cloaks: person -> cloak.
        probes: person -> held-out photos, two or more; whatever `load_faces` takes.
        models: one or a list of whatever `load_model` takes. The models of a list are judged one by one; an ensemble
            is a list within the list.
        distractors: photos of other people; or name -> photos, of which a person of the same name is not compared
            with their own; or None or empty: the other people's clean probes.
        label: the name of these cloaks in the rows; not "clean" or "random".
        batch_size: pictures per forward pass.
        seed: of the random masks, whose signs depend on it and on the person's name only.
        device: where models are loaded; whatever `load_model` takes.

    Returns:
        For each model, the rows "clean", "random" and `label`.

    Raises:
        ValueError: cloaks and probes name different people, fewer than two photos of a person, no distractors for a
            person, two models of one name, or a reserved label.
        FloatingPointError: an embedding that is not finite or has no direction.
    """
    if label == RANDOM:
        raise ValueError(f"label {label!r} is the name of a control row; give another")
    if set(cloaks) != set(probes):
        uncloaked, unphotographed = sorted(set(probes) - set(cloaks)), sorted(set(cloaks) - set(probes))
        raise ValueError(
            f"cloaks and probes must name the same people, got no cloak for {uncloaked} and no probes for "
            f"{unphotographed}; leave these out of both"
        )
    clean = {name: _pixels(images) for name, images in probes.items()}
    return evaluate_photos(
        clean,
        {
            RANDOM: {name: random_mask(cloaks[name], name, seed).apply(pixels) for name, pixels in clean.items()},
            label: {name: cloaks[name].apply(pixels) for name, pixels in clean.items()},
        },
        models,
        distractors,
        learnt_on={label: {model for cloak in cloaks.values() for model in cloak.info.get("models", ())}},
        batch_size=batch_size,
        device=device,
    )


def evaluate_photos(
    originals: Mapping[str, Any],
    protected: Mapping[str, Mapping[str, Any]],
    models: Any,
    distractors: Any = None,
    *,
    learnt_on: Mapping[str, Collection[str]] | None = None,
    batch_size: int = 32,
    device: torch.device | str | None = None,
) -> Evaluation:
    """Judge pictures that are already protected, by whatever means, beside their originals.

    Args:
        originals: person -> clean photos, two or more; whatever `load_faces` takes.
        protected: label -> person -> the same photos in the same order, protected. "clean" is reserved.
        models: as in `evaluate`.
        distractors: as in `evaluate`.
        learnt_on: label -> names of the models its masks were learnt on: its white-box rows. An ensemble is white
            box if any of its members is.
        batch_size: pictures per forward pass.
        device: where models are loaded; whatever `load_model` takes.

    Returns:
        For each model the row "clean" and one row per label.

    Raises:
        ValueError: as in `evaluate`; or no people; or a label that lacks or adds people or photos.
        FloatingPointError: as in `evaluate`.
    """
    if CLEAN in protected:
        raise ValueError(f"label {CLEAN!r} is the name of a control row; give another")
    if not originals:
        raise ValueError("originals must hold at least one person, got none")
    clean = {name: _pixels(images) for name, images in originals.items()}
    for name, pixels in clean.items():
        if len(pixels) < 2:
            raise ValueError(f"{name!r} must have 2 or more probe photos to form a pair, got {len(pixels)}")
    posted = {CLEAN: clean}
    for label, people in protected.items():
        if set(people) != set(clean):
            raise ValueError(
                f"{label!r} must hold the people of the originals, got differences {sorted(set(people) ^ set(clean))}"
            )
        posted[label] = {name: _pixels(people[name]) for name in clean}
        for name in clean:
            _check_paired(clean[name], posted[label][name], f"{label!r} pictures of {name!r}")
    strangers = clean if _is_empty(distractors) else _distractor_pixels(distractors)
    crowd = {name: sum(len(p) for other, p in strangers.items() if other != name) for name in clean}
    for name, count in crowd.items():
        if count == 0:
            raise ValueError(f"distractors must hold photos of people other than {name!r}, got none; pass some")

    rows = []
    for surrogate in _load_models(models, device):
        names = {surrogate.name, *(member.name for member in surrogate.members)}
        clean_features = _embed_people(surrogate, clean, CLEAN, batch_size)
        stranger_features = (
            clean_features if strangers is clean else _embed_people(surrogate, strangers, "distractor", batch_size)
        )
        for label, people in posted.items():
            features = clean_features if label == CLEAN else _embed_people(surrogate, people, label, batch_size)
            per_person = {
                name: person_rates(features[name], clean_features[name], _others(stranger_features, name))
                for name in clean
            }
            rows.append(
                Row(
                    model=surrogate.name,
                    mask=label,
                    white_box=not names.isdisjoint((learnt_on or {}).get(label, ())),
                    largest_change=max(_largest_change(clean[name], people[name]) for name in clean),
                    **_mean(per_person.values())._asdict(),
                    per_person=per_person,
                )
            )
    pairs = sum(len(pixels) * (len(pixels) - 1) for pixels in clean.values())
    return Evaluation(tuple(clean), pairs, min(crowd.values()), tuple(rows))


def check_photos(
    originals: Any,
    protected: Any,
    models: Any,
    distractors: Any = None,
    *,
    batch_size: int = 32,
    device: torch.device | str | None = None,
) -> Check:
    """Compare one person's protected photos with the originals they were made from.

    Args:
        originals: N photos of one person; whatever `load_faces` takes.
        protected: the same N photos in the same order, protected.
        models: as in `evaluate`.
        distractors: photos of other people, or name -> photos; None or empty: similarities only.
        batch_size: pictures per forward pass.
        device: where models are loaded; whatever `load_model` takes.

    Returns:
        One `ModelCheck` per model. The rates are those of `evaluate`, for this person alone.

    Raises:
        ValueError: no photos, different numbers of originals and protected photos, or two models of one name.
        FloatingPointError: an embedding that is not finite or has no direction.
    """
    clean, posted = _pixels(originals), _pixels(protected)
    _check_paired(clean, posted, "protected photos")
    n = len(clean)
    if n == 0:
        raise ValueError("originals must hold at least one photo, got none")
    strangers = {} if _is_empty(distractors) else _distractor_pixels(distractors)
    checks = []
    for surrogate in _load_models(models, device):
        clean_features = embed(surrogate, clean, batch_size=batch_size, owner="original")
        features = embed(surrogate, posted, batch_size=batch_size, owner="protected")
        to_clean, among = features @ clean_features.T, clean_features @ clean_features.T  # [N, N] each
        rates = None
        if n > 1 and strangers:
            crowd = _embed_people(surrogate, strangers, "distractor", batch_size)
            rates = person_rates(features, clean_features, torch.cat(list(crowd.values())))
        checks.append(
            ModelCheck(
                surrogate.name,
                tuple(to_clean.diagonal().tolist()),
                tuple(to_clean[_pairs(n)].view(n, n - 1).mean(1).tolist()) if n > 1 else (),
                tuple(among[_pairs(n)].view(n, n - 1).mean(1).tolist()) if n > 1 else (),
                rates,
            )
        )
    return Check(n, sum(map(len, strangers.values())), tuple(checks))


def random_mask(cloak: Cloak, name: str, seed: int = 0) -> Cloak:
    """Make the control of a cloak: a mask of random signs, +-eps.

    Args:
        cloak: whose eps it takes.
        name: of the person. The signs depend on it and on the seed only: a person's random mask stays the same whoever
            else is evaluated, so control rows can be merged.
        seed: of the signs.
    """
    generator = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
    signs = torch.randint(0, 2, cloak.delta.shape, generator=generator, dtype=torch.float32) * 2 - 1
    # The nearest float32 may lie above eps, and a cloak must not: this mask's bound is that float32.
    eps = torch.tensor(cloak.eps, dtype=torch.float32).item()
    return Cloak(signs * eps, eps)


def embed(surrogate: Surrogate, faces: Tensor, *, batch_size: int = 32, owner: str = "faces") -> Tensor:
    """Compute the unit features z = f(x) / |f(x)| of aligned faces, without a graph.

    Args:
        surrogate: the face network f.
        faces: [N, 3, 112, 112], uint8, or float in [0, 1].
        batch_size: pictures per forward pass.
        owner: what to call these pictures in an error, such as "photos of 'ann'".

    Returns:
        [N, D] float32 on the surrogate's device, rows of length 1.

    Raises:
        FloatingPointError: an embedding that is not finite, or is zero and so has no direction.
    """
    try:
        return unit_features(surrogate, faces / 255 if faces.dtype == torch.uint8 else faces, batch_size)
    except FloatingPointError as error:
        raise FloatingPointError(f"{owner}: {error}") from None


def protection_ranks(probe_features: Tensor, gallery_features: Tensor, distractor_features: Tensor) -> Tensor:
    """Rank of every gallery picture among the distractors, for every probe.

    rank[i, j] = 1 + #{m : <probe_i, distractor_m> > <probe_i, gallery_j>}. A distractor that ties does not push the
    target back, and gallery pictures do not compete with each other: each pair has a gallery of its own.

    Args:
        probe_features: [N, D] float, rows of length 1.
        gallery_features: [G, D] float, rows of length 1; G >= 1.
        distractor_features: [M, D] float, rows of length 1.

    Returns:
        [N, G] int64, 1 to M + 1.
    """
    similarity = probe_features @ torch.cat((gallery_features, distractor_features)).T  # [N, G + M]
    targets, distractors = similarity[:, : len(gallery_features)], similarity[:, len(gallery_features) :]
    # One target at a time: [N, M] comparisons in memory instead of [N, G, M].
    return torch.stack([1 + (distractors > target[:, None]).sum(1) for target in targets.T], dim=1)


def person_rates(features: Tensor, clean: Tensor, distractors: Tensor) -> PersonRates:
    """Rates of one person on one network, over the ordered pairs i != j.

    Args:
        features: [N, D] float, unit features of the posted pictures; N >= 2.
        clean: [N, D], of the clean pictures, in the same order.
        distractors: [M, D], of other people's pictures.
    """
    n = len(clean)
    both = protection_ranks(features, torch.cat((clean, features)), distractors)  # [N, 2 N]
    pairs = _pairs(n)
    ranks, links = both[:, :n][pairs], both[:, n:][pairs]
    return PersonRates(
        protection_top1=(ranks > 1).double().mean().item(),
        protection_top5=(ranks > 5).double().mean().item(),
        linkage_top1=(links == 1).double().mean().item(),
        mean_similarity=(features @ clean.T)[pairs].double().mean().item(),
    )


def _mean(people: Collection[PersonRates]) -> PersonRates:
    return PersonRates(*(sum(rate) / len(people) for rate in zip(*people, strict=True)))


def _pairs(n: int) -> Tensor:
    return ~torch.eye(n, dtype=torch.bool)  # [N, N], the ordered pairs i != j


def _load_models(models: Any, device: torch.device | str | None) -> list[Surrogate]:
    surrogates = [load_model(what, device) for what in (models if isinstance(models, list | tuple) else [models])]
    names = [surrogate.name for surrogate in surrogates]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"models must be one or more, each with a name of its own, got {names}; rename or drop some")
    return surrogates


def _pixels(images: Any) -> Tensor:
    # [N, 3, 112, 112], as saved photos hold them
    if _is_empty(images):
        return torch.empty(0, 3, 112, 112, dtype=torch.uint8)
    return load_faces(images).mul(255).round_().to(torch.uint8)


def _is_empty(images: Any) -> bool:
    if isinstance(images, Mapping):
        return all(_is_empty(group) for group in images.values())
    return images is None or (isinstance(images, Sized) and len(images) == 0)


def _distractor_pixels(distractors: Any) -> dict[str | None, Tensor]:
    if isinstance(distractors, Mapping):
        return {name: _pixels(images) for name, images in distractors.items() if not _is_empty(images)}
    return {None: _pixels(distractors)}


def _others(features: Mapping[Any, Tensor], name: str) -> Tensor:
    return torch.cat([group for other, group in features.items() if other != name])  # [M, D]


def _embed_people(surrogate: Surrogate, people: Mapping[Any, Tensor], label: str, batch_size: int) -> dict[Any, Tensor]:
    return {
        name: embed(
            surrogate, pixels, batch_size=batch_size, owner=f"{label} pictures" + (f" of {name!r}" * (name is not None))
        )
        for name, pixels in people.items()
    }


def _check_paired(clean: Tensor, posted: Tensor, what: str) -> None:
    if len(clean) != len(posted):
        raise ValueError(f"{what} must match the originals one to one, got {len(posted)} for {len(clean)} originals")


def _largest_change(clean: Tensor, posted: Tensor) -> int:
    return int((posted.short() - clean.short()).abs().max())


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f}"


def _cosine(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.3f}" if values else "-"


def _aligned(header: tuple[str, ...], lines: Sequence[tuple[str, ...]], left: int) -> list[str]:
    # The first `left` columns are words and lean left; the rest are numbers and lean right.
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (header, *lines)
    ]
