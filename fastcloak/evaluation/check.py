"""What face networks make of one person's protected photos, also after saving and resizing, next to the originals.

Photo i is posted, as the original ("before") or protected ("after"), and something may happen to it on the way: see
`fastcloak.evaluation.postprocessing`. A network then looks for the face again and compares it by cosine with the clean
originals. It *recognises* photo i if at least one of the person's *other* originals is as similar as its threshold;
with a single photo, if the original itself is. One is enough, since whoever searches needs only one.

Two photos that are not the same picture (`fastcloak.evaluation.pairing`) are no pair: they are listed and not judged.
The rates are those of `fastcloak.evaluation.protocol` and `fastcloak.evaluation.adversary`, for this person alone.
Distractors that show the person would make them look better than they are, since being taken for them would count as
not being found: they are left out.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from fastcloak.cloak import Cloak
from fastcloak.evaluation.adversary import find_threshold, threshold_rates
from fastcloak.evaluation.pairing import COPY_SIDE, LEAST_LIKENESS, Floats, edges, likeness, paired, read
from fastcloak.evaluation.postprocessing import Pixels, available
from fastcloak.evaluation.protocol import embed, rank_rates
from fastcloak.evaluation.results import ModelCheck, PhotoCheck, PostProcessingCheck, Side
from fastcloak.evaluation.text import plain_name
from fastcloak.evaluation.verdict import Check
from fastcloak.evaluation.versions import Versions, compare
from fastcloak.models import Surrogate
from fastcloak.models.load import load_models
from fastcloak.photos.inputs import is_empty, photo_files, saved_faces
from fastcloak.protection.album import MANIFEST, read_manifest
from fastcloak.protection.enrolment import SAME_PERSON


def check_photos(
    originals: Any,
    protected: Any,
    models: Any,
    distractors: Any = None,
    *,
    protected_distractors: Any = None,
    cloak: Cloak | None = None,
    fitted_on: Collection[str] | None = None,
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
        protected_distractors: protected photos of other people, in the same ways: the mixed rates have them among the
            distractors.
        cloak: the one that protects, where all photos carry one: marks the networks that it was fitted on.
        fitted_on: names of the networks that the masks were fitted on, to mark them. None: those of the cloak, else
            those that the notes in the folder of protected photos name, else it is not known.
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
            without an original; protected distractors alone; two models of one name; or a batch size that is not a
            whole number.
        TypeError: `fitted_on` that is one name and no collection of them.
        FloatingPointError: an embedding that is not finite or has no direction.
        MissingExtraError: faces must be detected and the `faces` extra is not installed.
    """
    if isinstance(fitted_on, str):
        raise TypeError(f"fitted_on must be a list of names, got {fitted_on!r}; pass [{fitted_on!r}]")
    if is_empty(distractors) and not is_empty(protected_distractors):
        raise ValueError("protected_distractors join the distractors, got no distractors; pass photos for both")
    pairs, omitted = paired(originals, protected)
    networks = load_models(models, device)
    crowds: list[Tensor] = []
    names: list[str] = []
    failed: dict[str, str] = {}
    for what, given in (("distractors", distractors), ("protected distractors", protected_distractors)):
        faces, of_faces, unread = _read_distractors(what, given)
        crowds.append(faces)
        names += of_faces
        failed |= unread
    crowd = torch.cat(crowds)
    masked = torch.arange(len(crowd)) >= len(crowds[0])
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
        return Check((), len(crowds[0]), None, (), tuple(omitted), failed)

    ours = torch.zeros(len(crowd), dtype=torch.bool)
    strangers: list[Tensor | None] = [None] * len(networks)
    cloaked = strangers.copy()
    if len(crowd):
        edges_of = [_edges(face) for face in crowd.permute(0, 2, 3, 1).numpy()]
        alike = likeness(np.stack(edges_of), np.stack(shown))
        ours |= torch.from_numpy((alike >= LEAST_LIKENESS).any(1))
        theirs = [embed(one, crowd, batch_size=batch_size, owner="distractors").cpu() for one in networks]
        for network, kept, rows in zip(networks, features, theirs, strict=True):
            if network.name in SAME_PERSON:
                clean = torch.stack(kept)[:, 0, 0]
                ours |= (rows @ clean.T >= SAME_PERSON[network.name]).any(1)
        if not (ours | masked).all():
            strangers = [rows[~ours & ~masked] for rows in theirs]
        if not (ours | ~masked).all():
            cloaked = [rows[~ours & masked] for rows in theirs]
    if fitted_on is None:
        fitted_on = _models_in_notes(protected) if cloak is None else _strings(cloak.info.get("models"))
    return Check(
        tuple(photos),
        int((~ours & ~masked).sum()),
        None if fitted_on is None else tuple(fitted_on),
        tuple(
            _model_check(network, torch.stack(kept), rows, cloaked_rows, fitted_on)
            for network, kept, rows, cloaked_rows in zip(networks, features, strangers, cloaked, strict=True)
        ),
        tuple(omitted),
        failed,
        tuple(name for name, one in zip(names, ours.tolist(), strict=True) if one),
        protected_distractors=int((~ours & masked).sum()),
        one_mask=cloak is not None,
    )


def _models_in_notes(protected: Any) -> Sequence[str] | None:
    """Names of networks in what `fastcloak tailor` noted in the folder of protected photos, or of this one."""
    if not isinstance(protected, (str, PathLike)):
        return None
    path = Path(protected)
    try:
        notes = read_manifest((path if path.is_dir() else path.parent) / MANIFEST)
    except OSError:
        return None
    names = [name for lines in notes.values() for line in lines for name in _strings(line.get("models"))]
    return list(dict.fromkeys(names)) or None


def _strings(value: Any) -> list[str]:
    # Cloak files and notes may come from anyone.
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _read_distractors(what: str, distractors: Any) -> tuple[Tensor, list[str], dict[str, str]]:
    """[M, 3, 112, 112] uint8, the name of each, and the files that could not be used."""
    failed: dict[str, str] = {}
    if isinstance(distractors, Mapping):
        groups = {str(name): saved_faces(images) for name, images in distractors.items()}
    elif is_empty(distractors) or not isinstance(distractors, (str, PathLike)):
        groups = {what: saved_faces(distractors)}
    else:
        groups = {}
        for file in photo_files(distractors, recursive=True):
            try:
                groups[str(file)] = saved_faces([file])
            except (ValueError, OSError) as error:
                failed[str(file)] = str(error)
        if not groups:
            raise ValueError(f"{what} must hold at least one photo with a face, got none in {distractors}; name others")
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
    network: Surrogate,
    features: Tensor,  # [N, 2, post-processing, D]
    strangers: Tensor | None,
    cloaked: Tensor | None,
    fitted_on: Collection[str] | None,
) -> ModelCheck:
    clean = features[:, 0, 0].contiguous()
    threshold = find_threshold(network.name, None if strangers is None else clean @ strangers.T)
    value = None if threshold is None else threshold.value
    names = {network.name, *(member.name for member in network.members)}
    checks = []
    for i, name in enumerate(available()):
        before, after = (_side(posted[:, i], clean, value, strangers, cloaked) for posted in features.unbind(1))
        checks.append(PostProcessingCheck(name, before, after))
    return ModelCheck(
        network.name, None if fitted_on is None else not names.isdisjoint(fitted_on), threshold, tuple(checks)
    )


def _side(
    posted: Tensor, clean: Tensor, threshold: float | None, strangers: Tensor | None, cloaked: Tensor | None
) -> Side:  # [N, D]
    n = len(clean)
    own: list[float | None] = [None] * n
    others, nearest = list(own), list(own)
    recognised: list[bool | None] = [None] * n
    there = posted.isfinite().all(1).nonzero().flatten()
    found = posted[there]
    for i, feature in zip(there.tolist(), found, strict=True):
        cosines = (clean @ feature).tolist()
        own[i] = cosines.pop(i)
        if cosines:
            others[i], nearest[i] = sum(cosines) / len(cosines), max(cosines)
        if threshold is not None:
            recognised[i] = max(cosines or [own[i]]) >= threshold
    ranked = None
    if strangers is not None and len(there) > 1:
        ranked = rank_rates(found, clean[there], strangers, cloaked)
    return Side(
        **vars(threshold_rates(found, clean, strangers, threshold, own=there)),
        own=tuple(own),
        others=tuple(others),
        nearest=tuple(nearest),
        recognised=tuple(recognised),
        rates=ranked,
        no_face=n - len(there),
    )
