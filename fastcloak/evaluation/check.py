"""What face networks make of one person's protected photos, also after saving and resizing, next to the originals.

Photo i is posted, as the original ("before") or protected ("after"), and something may happen to it on the way: see
`fastcloak.evaluation.postprocessing`. A network then looks for the face again and compares it by cosine with the clean
originals. It *recognises* photo i if at least one of the person's *other* originals is as similar as its threshold;
with a single photo, if the original itself is. One is enough, since whoever searches needs only one.

Two photos that are not the same picture (`fastcloak.evaluation.pairing`) are no pair: they are listed and not judged.
The rates with distractors are those of `fastcloak.evaluation.protocol`, for this person alone. Distractors that show
the person would make them look better than they are, since being taken for them would count as not being found: they
are left out.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from fastcloak.cloak import Cloak
from fastcloak.evaluation.pairing import COPY_SIDE, LEAST_LIKENESS, Floats, edges, likeness, paired, read
from fastcloak.evaluation.postprocessing import Pixels, available
from fastcloak.evaluation.protocol import embed, person_rates
from fastcloak.evaluation.results import LEAST_PAIRS, ModelCheck, PhotoCheck, PostProcessingCheck, Side, Threshold
from fastcloak.evaluation.text import plain_name
from fastcloak.evaluation.verdict import Check
from fastcloak.evaluation.versions import Versions, compare
from fastcloak.models import Surrogate
from fastcloak.models.load import load_models
from fastcloak.photos.inputs import is_empty, photo_files, saved_faces
from fastcloak.protection.enrolment import FALSE_ACCEPT_RATE, SAME_PERSON, verification_threshold


def check_photos(
    originals: Any,
    protected: Any,
    models: Any,
    distractors: Any = None,
    *,
    cloak: Cloak | None = None,
    keep_pictures: bool = False,
    batch_size: int = 32,
    device: torch.device | str | None = None,
    progress: bool | None = False,
) -> Check:
    """Compare one person's protected photos with the originals, as saved and after post-processing.

    Photos are read and judged one by one: what is kept of each is small. Two folders are paired by the relative path of
    their photos, in subfolders too, without the suffix. In the original the face is taken that the protection changed
    most, in all other versions of the photo the one found near it. Photos of 112x112 pixels count as aligned.

    Args:
        originals: N photos of one person; a folder or one photo, or whatever else `load_faces` takes.
        protected: the same, protected: a folder or one photo too, or N photos in the same order.
        models: as in `evaluate`.
        distractors: photos of other people, or name -> photos; None or empty: no rates.
        cloak: the one that protects, to mark the networks that it was fitted on.
        keep_pictures: keep small pictures of every face, for `write_page`.
        batch_size: pictures per forward pass.
        device: where models are loaded; whatever `load_model` takes.
        progress: None: a bar if the terminal shows one; True or False: always, never.

    Returns:
        One `ModelCheck` per network, none if no photo could be checked. Photos that cannot be checked (unreadable, no
        face in the original, not the same picture as their original) and distractors that cannot be read are in
        `failed`, distractors that show the person in `left_out`.

    Raises:
        ValueError: no photos; different numbers of originals and protected photos; a protected photo in the folder
            without an original; two models of one name; or a batch size that is not a whole number.
        FloatingPointError: an embedding that is not finite or has no direction.
        MissingExtraError: faces must be detected and the `faces` extra is not installed.
    """
    pairs, omitted = paired(originals, protected)
    networks = load_models(models, device)
    crowd, crowd_names, failed = _read_distractors(distractors)
    photos: list[PhotoCheck] = []
    features: list[list[Tensor]] = [[] for _ in networks]  # of each photo [2, post-processing, D], NaN: no face
    shown: list[Floats] = []  # edges of every face, original and protected
    disable = sys.stderr is None or (None if progress is None else not progress)
    for name, original, posted in tqdm(pairs, desc="checking", unit="photo", disable=disable):
        try:
            photo, versions = compare(name, read(original), read(posted), keep_pictures)
        except (ValueError, OSError) as error:
            failed[name] = str(error)
            continue
        photos.append(photo)
        shown += [_edges(as_saved) for as_saved, *_ in versions if as_saved is not None]
        for network, kept in zip(networks, features, strict=True):
            kept.append(_features(network, versions, batch_size, plain_name(name)))
    if not photos:
        return Check((), len(crowd), None, (), tuple(omitted), failed)

    ours = torch.zeros(len(crowd), dtype=torch.bool)
    strangers: list[Tensor | None] = [None] * len(networks)
    if len(crowd):
        given = [_edges(face) for face in crowd.permute(0, 2, 3, 1).numpy()]
        alike = likeness(np.stack(given), np.stack(shown))
        ours |= torch.from_numpy((alike >= LEAST_LIKENESS).any(1))
        theirs = [embed(one, crowd, batch_size=batch_size, owner="distractors").cpu() for one in networks]
        for network, kept, rows in zip(networks, features, theirs, strict=True):
            if network.name in SAME_PERSON:
                clean = torch.stack(kept)[:, 0, 0]
                ours |= (rows @ clean.T >= SAME_PERSON[network.name]).any(1)
        if not ours.all():
            strangers = [rows[~ours] for rows in theirs]
    fitted_on: tuple[str, ...] | None = None
    if cloak is not None:
        # The cloak's file may come from anyone.
        names = cloak.info.get("models")
        fitted_on = tuple(name for name in names if isinstance(name, str)) if isinstance(names, list) else ()
    return Check(
        tuple(photos),
        int((~ours).sum()),
        fitted_on,
        tuple(
            _model_check(network, torch.stack(kept), rows, fitted_on)
            for network, kept, rows in zip(networks, features, strangers, strict=True)
        ),
        tuple(omitted),
        failed,
        tuple(name for name, one in zip(crowd_names, ours.tolist(), strict=True) if one),
    )


def _read_distractors(distractors: Any) -> tuple[Tensor, list[str], dict[str, str]]:
    """[M, 3, 112, 112] uint8, the name of each, and the files that could not be used."""
    failed: dict[str, str] = {}
    if isinstance(distractors, Mapping):
        groups = {str(name): saved_faces(images) for name, images in distractors.items()}
    elif is_empty(distractors) or not isinstance(distractors, (str, PathLike)):
        groups = {"distractors": saved_faces(distractors)}
    else:
        groups = {}
        for file in photo_files(distractors, recursive=True):
            try:
                groups[str(file)] = saved_faces([file])
            except (ValueError, OSError) as error:
                failed[str(file)] = str(error)
        if not groups:
            raise ValueError(
                f"distractors must hold at least one photo with a face, got none in {distractors}; name others"
            )
        return torch.cat(list(groups.values())), list(groups), failed
    names = [f"{name}[{i}]" for name, faces in groups.items() for i in range(len(faces))]
    return torch.cat(list(groups.values())) if groups else saved_faces(None), names, failed


def _edges(face: Pixels) -> Floats:  # [112, 112, 3]
    return edges(Image.fromarray(np.ascontiguousarray(face)).convert("L"), COPY_SIDE, COPY_SIDE)


def _features(network: Surrogate, versions: Versions, batch_size: int, name: str) -> Tensor:
    crops = [crop for side in versions for crop in side if crop is not None]
    found = torch.tensor([[crop is not None for crop in side] for side in versions])
    faces = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()
    rows = embed(network, faces, batch_size=batch_size, owner=name).cpu()
    features = torch.full((*found.shape, rows.shape[1]), torch.nan)
    features[found] = rows
    return features


def _model_check(
    network: Surrogate, features: Tensor, strangers: Tensor | None, fitted_on: Sequence[str] | None
) -> ModelCheck:  # features [N, 2, post-processing, D]
    clean = features[:, 0, 0].contiguous()
    threshold = _threshold(network.name, clean, strangers)
    value = None if threshold is None else threshold.value
    names = {network.name, *(member.name for member in network.members)}
    return ModelCheck(
        network.name,
        None if fitted_on is None else not names.isdisjoint(fitted_on),
        threshold,
        tuple(
            PostProcessingCheck(name, *(_side(posted[:, i], clean, value, strangers) for posted in features.unbind(1)))
            for i, name in enumerate(available())
        ),
    )


def _threshold(name: str, clean: Tensor, strangers: Tensor | None) -> Threshold | None:
    known = verification_threshold(name)
    if known is not None:
        return Threshold(known, f"which 1 in {round(1 / FALSE_ACCEPT_RATE):,} pairs of different people of LFW reach")
    pairs = 0 if strangers is None else len(clean) * len(strangers)
    if strangers is None or pairs < LEAST_PAIRS:
        return None
    accepted = int(pairs * FALSE_ACCEPT_RATE)
    value = (clean @ strangers.T).flatten().topk(accepted).values[-1].item()
    return Threshold(value, f"estimated here: {accepted} of {pairs} pairs of an original and a distractor reach it")


def _side(posted: Tensor, clean: Tensor, threshold: float | None, strangers: Tensor | None) -> Side:  # [N, D]
    n = len(clean)
    own: list[float | None] = [None] * n
    others, nearest = list(own), list(own)
    recognised: list[bool | None] = [None] * n
    accepted: list[bool] = []
    there = posted.isfinite().all(1).nonzero().flatten().tolist()
    found = posted[there]
    for i, feature in zip(there, found, strict=True):
        cosines = (clean @ feature).tolist()
        own[i] = cosines.pop(i)
        if cosines:
            others[i], nearest[i] = sum(cosines) / len(cosines), max(cosines)
        if threshold is not None:
            recognised[i] = max(cosines or [own[i]]) >= threshold
            accepted += [cosine >= threshold for cosine in cosines]
    rates, linked = None, None
    if len(there) > 1:
        if strangers is not None:
            rates = person_rates(found, clean[there], strangers)
        if threshold is not None:
            pairs = ~torch.eye(len(there), dtype=torch.bool)
            linked = (found @ found.T >= threshold)[pairs].double().mean().item()
    share = sum(accepted) / len(accepted) if accepted else None
    listed = tuple(own), tuple(others), tuple(nearest), tuple(recognised)
    return Side(*listed, share, linked, rates, no_face=n - len(there))
