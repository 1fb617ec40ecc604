"""How well cloaks protect: OPOM's protocol with its controls, and how well cloaked photos link to each other.

A person has N held-out photos. For each ordered pair i != j the probe is picture i as it would be posted, and the
gallery is the *clean* picture j among the distractors (photos of other people). A face network turns every picture into
a unit feature, pictures are compared by cosine, and the pair's rank is

    rank(i, j) = 1 + #{distractors more similar to the probe than clean j is}

Protection at k is the share of pairs with rank > k: the network's k best answers miss the person. Linkage is the share
of pairs with rank 1 when the gallery holds the *cloaked* picture j instead: a tracker that has seen the same cloak
before. A shared mask can make one person's cloaked photos match each other, so it is measured in every row. The mixed
rates have the other people's photos of the same row among the distractors too: all protected photos may be alike, and
far from a crowd of clean ones. What a network accepts at its threshold is in `fastcloak.evaluation.adversary`.

Every picture a network sees here is rounded to 8 bits first, as a saved photo is.

Source: Zhong & Deng, "OPOM: Customized Invisible Cloak towards Face Privacy Protection", TPAMI 2022, for the
protection rate; linkage is not part of its protocol.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from fastcloak.cloak import Cloak
from fastcloak.evaluation.adversary import find_threshold, threshold_rates
from fastcloak.evaluation.results import CLEAN, RANDOM, Evaluation, PersonRates, RankRates, Row
from fastcloak.models import Surrogate, unit_features
from fastcloak.models.load import load_models
from fastcloak.photos.inputs import is_empty, saved_faces
from fastcloak.system.checks import whole

# A random generator takes seeds from here to beyond the end by more than a checksum of 32 bits adds to them.
LEAST_SEED, LARGEST_SEED = -(2**63), 2**63 - 1


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
    """Judge cloaks on photos they were not fitted on, next to no mask and a random sign mask of the same strength.

    The rates are averaged over the pairs of a person first and over people second, so that every person weighs the
    same however many photos there are. With M distractors no rank exceeds M + 1: fewer than 5 make Top-5 protection 0.
    Rates at a threshold need one: sface and dlib have it, and of others it is estimated from 3,000 pairs of a clean
    photo and a distractor, or the rates are None.

    Args:
        cloaks: person -> cloak.
        probes: person -> held-out photos, two or more; whatever `load_faces` takes.
        models: one or a list of whatever `load_model` takes. The models of a list are judged one by one; an ensemble
            is a list within the list.
        distractors: photos of other people; or name -> photos, of which a person of the same name is not compared
            with their own; or None or empty: the other people's clean probes.
        label: the name of these cloaks in the rows; not "clean" or "random". They are white box on the models whose
            names stand in the `info["models"]` of any of them: it goes by name.
        batch_size: pictures per forward pass.
        seed: of the random masks, whose signs depend on it and on the person's name only.
        device: where models are loaded; whatever `load_model` takes.

    Returns:
        For each model, the rows "clean", "random" and `label`.

    Raises:
        ValueError: cloaks and probes name different people, fewer than two photos of a person, no distractors for a
            person, two models of one name, a reserved label, or a batch size or seed that is no whole number.
        TypeError: cloaks or probes that are not name -> cloak and name -> photos.
        FloatingPointError: an embedding that is not finite or has no direction.
    """
    batch_size, seed = whole("batch_size", batch_size, 1), whole("seed", seed, LEAST_SEED, LARGEST_SEED)
    _check_named("cloaks", "Cloak", cloaks)
    _check_named("probes", "photos", probes)
    for name, cloak in cloaks.items():
        if not isinstance(cloak, Cloak):
            raise TypeError(
                f"cloaks[{name!r}] must be a Cloak, got {type(cloak).__name__}; fastcloak.load reads a cloak file"
            )
    if label == RANDOM:
        raise ValueError(f"label {label!r} is the name of a control row; give another")
    if set(cloaks) != set(probes):
        uncloaked, unphotographed = _sorted(set(probes) - set(cloaks)), _sorted(set(cloaks) - set(probes))
        raise ValueError(
            f"cloaks and probes must name the same people, got no cloak for {uncloaked} and no probes for "
            f"{unphotographed}; leave these out of both"
        )
    clean = {name: saved_faces(images) for name, images in probes.items()}
    return evaluate_photos(
        clean,
        {
            RANDOM: {name: random_mask(cloaks[name], name, seed).apply(faces) for name, faces in clean.items()},
            label: {name: cloaks[name].apply(faces) for name, faces in clean.items()},
        },
        models,
        distractors,
        fitted_on={label: {model for cloak in cloaks.values() for model in cloak.info.get("models", ())}},
        batch_size=batch_size,
        device=device,
    )


def evaluate_photos(
    originals: Mapping[str, Any],
    protected: Mapping[str, Mapping[str, Any]],
    models: Any,
    distractors: Any = None,
    *,
    fitted_on: Mapping[str, Collection[str]] | None = None,
    batch_size: int = 32,
    device: torch.device | str | None = None,
) -> Evaluation:
    """Judge pictures that are already protected, by whatever means, next to their originals, as `evaluate` does.

    Args:
        originals: person -> clean photos, two or more; whatever `load_faces` takes.
        protected: label -> person -> the same photos in the same order, protected. "clean" is reserved.
        models, distractors, batch_size, device: as in `evaluate`.
        fitted_on: label -> names of the models its masks were fitted on: its white-box rows. It goes by name: the same
            network under another name is not recognised. An ensemble is white box if any of its members is.
    """
    batch_size = whole("batch_size", batch_size, 1)
    _check_named("originals", "photos", originals)
    for label, people in protected.items():
        _check_named(f"protected[{label!r}]", "photos", people)
    if CLEAN in protected:
        raise ValueError(f"label {CLEAN!r} is the name of a control row; give another")
    if not originals:
        raise ValueError("originals must hold at least one person, got none")
    clean = {name: saved_faces(images) for name, images in originals.items()}
    for name, faces in clean.items():
        if len(faces) < 2:
            raise ValueError(f"{name!r} must have 2 or more probe photos to form a pair, got {len(faces)}")
    posted = {CLEAN: clean}
    for label, people in protected.items():
        if set(people) != set(clean):
            differences = _sorted(set(people) ^ set(clean))
            raise ValueError(f"{label!r} must hold the people of the originals, got differences {differences}")
        posted[label] = {name: saved_faces(people[name]) for name in clean}
        for name, faces in posted[label].items():
            if len(faces) != len(clean[name]):
                raise ValueError(
                    f"{label!r} pictures of {name!r} must match the originals one to one, got {len(faces)} for "
                    f"{len(clean[name])} originals"
                )
    strangers: Mapping[Any, Tensor] = clean
    if not is_empty(distractors):
        groups = distractors if isinstance(distractors, Mapping) else {None: distractors}
        strangers = {name: saved_faces(images) for name, images in groups.items() if not is_empty(images)}
    crowd = {name: sum(len(faces) for other, faces in strangers.items() if other != name) for name in clean}
    for name, count in crowd.items():
        if count == 0:
            raise ValueError(f"distractors must hold photos of people other than {name!r}, got none; pass some")

    rows = []
    for surrogate in load_models(models, device):
        names = {surrogate.name, *(member.name for member in surrogate.members)}
        gallery = _embed_people(surrogate, clean, CLEAN, batch_size)
        others = gallery if strangers is clean else _embed_people(surrogate, strangers, "distractor", batch_size)
        impostors = [(features @ _of_others(others, name).T).flatten() for name, features in gallery.items()]
        threshold = find_threshold(surrogate.name, torch.cat(impostors))
        for label, people in posted.items():
            probes = gallery if label == CLEAN else _embed_people(surrogate, people, label, batch_size)
            per_person = {
                name: person_rates(
                    probes[name],
                    gallery[name],
                    _of_others(others, name),
                    threshold=None if threshold is None else threshold.value,
                    protected=_of_others(probes, name) if len(probes) > 1 else None,
                )
                for name in clean
            }
            rows.append(
                Row(
                    model=surrogate.name,
                    mask=label,
                    white_box=not names.isdisjoint((fitted_on or {}).get(label, ())),
                    largest_change=max(int((people[name].short() - clean[name]).abs().max()) for name in clean),
                    threshold=threshold,
                    **_means(list(per_person.values())),
                    per_person=per_person,
                )
            )
    pairs = sum(len(faces) * (len(faces) - 1) for faces in clean.values())
    return Evaluation(tuple(clean), pairs, min(crowd.values()), tuple(rows))


def random_mask(cloak: Cloak, name: str, seed: int = 0) -> Cloak:
    """Make the control of a cloak: a mask of random signs, +-eps.

    The signs depend on the person's name and the seed only. So a person's random mask stays the same whoever else is
    evaluated, and control rows can be merged.
    """
    seed = whole("seed", seed, LEAST_SEED, LARGEST_SEED)
    # Names may be numbers, or file names that are no proper Unicode.
    own = zlib.crc32(str(name).encode(errors="backslashreplace"))
    generator = torch.Generator().manual_seed(seed + own)
    signs = torch.randint(0, 2, cloak.delta.shape, generator=generator, dtype=torch.float32) * 2 - 1
    # The nearest float32 may lie above eps, and a cloak must not: this mask's bound is that float32.
    eps = torch.tensor(cloak.eps, dtype=torch.float32).item()
    return Cloak(signs * eps, eps)


def embed(surrogate: Surrogate, faces: Tensor, *, batch_size: int = 32, owner: str = "faces") -> Tensor:
    """Compute the unit features [N, D] of aligned faces, [N, 3, 112, 112] uint8, or float in [0, 1].

    Raises:
        FloatingPointError: an embedding that is not finite, or is zero and so has no direction; `owner` says of whom.
    """
    batch_size = whole("batch_size", batch_size, 1)
    try:
        return unit_features(surrogate, faces / 255 if faces.dtype == torch.uint8 else faces, batch_size)
    except FloatingPointError as error:
        raise FloatingPointError(f"{owner}: {error}") from None


def protection_ranks(probes: Tensor, gallery: Tensor, distractors: Tensor) -> Tensor:
    """Rank of every gallery picture among the distractors, for every probe.

    rank[i, j] = 1 + #{m : <probe_i, distractor_m> > <probe_i, gallery_j>}. A distractor that ties does not push the
    target back, and gallery pictures do not compete with each other: each pair has a gallery of its own.
    Features are [N, D], [G, D] and [M, D] with rows of length 1; ranks are [N, G], 1 to M + 1.
    """
    similarity = probes @ torch.cat((gallery, distractors)).T  # [N, G + M]
    targets, others = similarity[:, : len(gallery)], similarity[:, len(gallery) :]
    # One target at a time: [N, M] comparisons in memory instead of [N, G, M].
    return torch.stack([1 + (others > target[:, None]).sum(1) for target in targets.T], dim=1)


def person_rates(
    features: Tensor,
    clean: Tensor,
    distractors: Tensor,
    *,
    threshold: float | None = None,
    protected: Tensor | None = None,
) -> PersonRates:
    """Every rate of one person on one network, of unit features.

    Args:
        features: [N, D], of the photos as posted.
        clean: [N, D], of their originals, in the same order.
        distractors: [M, D], of photos of other people.
        threshold: cosine from which on the network takes two photos for one person; None: no rates at it.
        protected: [K, D], of protected photos of other people; None: no mixed rates.
    """
    ranked = rank_rates(features, clean, distractors, protected)
    return PersonRates(**vars(ranked), **vars(threshold_rates(features, clean, distractors, threshold)))


def rank_rates(features: Tensor, clean: Tensor, distractors: Tensor, protected: Tensor | None = None) -> RankRates:
    """The rates of `person_rates` that come from ranks."""
    n, photos = len(clean), torch.cat((clean, features))
    pairs = ~torch.eye(n, dtype=torch.bool)  # [N, N], the ordered pairs i != j

    def share(hits: Tensor) -> float:
        return hits[pairs].double().mean().item()

    ranks = protection_ranks(features, photos, distractors)  # [N, 2 N]
    mixed = {}
    if protected is not None:
        # A rank is 1 and the distractors that are nearer, of either kind.
        among_both = ranks + protection_ranks(features, photos, protected) - 1
        mixed = {"mixed_top1": share(among_both[:, :n] > 1), "mixed_linkage": share(among_both[:, n:] == 1)}
    return RankRates(
        protection_top1=share(ranks[:, :n] > 1),
        protection_top5=share(ranks[:, :n] > 5),
        linkage_top1=share(ranks[:, n:] == 1),
        mean_similarity=share(features @ clean.T),
        **mixed,
    )


def _means(people: Sequence[PersonRates]) -> dict[str, Any]:
    """Mean of every rate over people; None where it is not known of one."""
    rates = {field.name: [getattr(person, field.name) for person in people] for field in fields(PersonRates)}
    return {name: None if None in values else sum(values) / len(values) for name, values in rates.items()}


def _of_others(features: Mapping[Any, Tensor], name: Any) -> Tensor:  # [M, D]
    return torch.cat([group for other, group in features.items() if other != name])


def _check_named(name: str, what: str, people: Any) -> None:
    if not isinstance(people, Mapping):
        raise TypeError(
            f"{name} must be a mapping of a person's name -> {what}, got {type(people).__name__}; for one person pass "
            "{'me': ...}"
        )


def _sorted(names: Collection[Any]) -> list[Any]:
    # Names of different types have no order of their own.
    return sorted(names, key=str)


def _embed_people(surrogate: Surrogate, people: Mapping[Any, Tensor], label: str, batch_size: int) -> dict[Any, Tensor]:
    features = {}
    for name, faces in people.items():
        owner = f"{label} pictures" if name is None else f"{label} pictures of {name!r}"
        features[name] = embed(surrogate, faces, batch_size=batch_size, owner=owner)
    return features
