"""What face networks make of one person's protected photos, also after saving and resizing, beside the originals.

Photo i is posted, as the original ("before") or protected ("after"), and something may happen to it on the way: see
`fastcloak.evaluation.postprocessing`. A network then looks for the face anew and compares it by cosine with the clean
originals. It *recognises* photo i if at least one of the person's *other* originals is as similar as its threshold;
with a single photo, if the original itself is. One is enough, since whoever searches needs only one.

Two photos that are not the same picture (`fastcloak.evaluation.pairing`) are no pair: they are listed and not judged.
The rates with distractors are those of `fastcloak.evaluation.protocol`, for this person alone. Distractors that show
the person would make
them look better than they are, since being taken for them would count as not being found: they are left out.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from fastcloak.cloak import Cloak
from fastcloak.evaluation.pairing import (
    COPY_SIDE,
    LEAST_LIKENESS,
    check_same_face,
    check_same_picture,
    edges,
    likeness,
    paired,
    read_distractors,
)
from fastcloak.evaluation.postprocessing import SURVIVALS, resized
from fastcloak.evaluation.protocol import embed, person_rates
from fastcloak.evaluation.results import (
    LEAST_PAIRS,
    FacePictures,
    ModelCheck,
    PhotoCheck,
    Side,
    SurvivalCheck,
    Threshold,
)
from fastcloak.evaluation.text import plain_name
from fastcloak.evaluation.verdict import Check
from fastcloak.models import Surrogate
from fastcloak.models.load import load_models
from fastcloak.photos.alignment import SIZE, Face, align, iou
from fastcloak.photos.detection import UNCERTAIN, detect, find_faces
from fastcloak.protection.enrolment import FALSE_ACCEPT_RATE, SAME_PERSON, verification_threshold
from fastcloak.system.errors import MissingExtraError
from fastcloak.system.packages import require

Pixels = npt.NDArray[np.uint8]

__all__ = ["check_photos"]
Box = tuple[float, float, float, float]
# Of one photo, the face before and after protection, after every change; [3, 112, 112] uint8, None: not found.
Versions = list[list[Tensor | None]]

# A face that overlaps less is another one.
LEAST_OVERLAP = 0.3
# The pictures of a report: longest side in pixels, and how much of the photo around the face's box they show.
PICTURE_SIDE, PICTURE_MARGIN = 480, 0.4
# No change is drawn as this grey level, and changes so many times as large as they are.
MID_GREY, GAIN = 128, 10


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
    """Compare one person's protected photos with the originals, as they are and after saving and resizing.

    Photos are read and judged one by one: what is kept of each is small. Two folders are paired by the relative path of
    their photos, in subfolders too, without the suffix. In the original the face is taken that the protection changed
    most, in all other versions of the photo the one found in its place. Photos of 112x112 pixels count as aligned.

    Args:
        originals: N photos of one person; a folder or one photo, or whatever else `load_faces` takes.
        protected: the same, protected: a folder or one photo too, or N photos in the same order.
        models: as in `evaluate`.
        distractors: photos of other people, or name -> photos; None or empty: no rates.
        cloak: the one that protects, to mark the networks that it was learnt on.
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
    crowd, crowd_names, failed = read_distractors(distractors)
    photos: list[PhotoCheck] = []
    features: list[list[list[list[Tensor | None]]]] = [[] for _ in networks]  # model, photo, side, survival: [D]
    shown: list[npt.NDArray[np.float32]] = []  # edges of every face, original and protected
    disable = sys.stderr is None or (None if progress is None else not progress)
    for name, read in tqdm(pairs, desc="checking", unit="photo", disable=disable):
        try:
            photo, versions = _versions(name, *read(), keep_pictures)
        except (ValueError, OSError) as error:
            failed[name] = str(error)
            continue
        photos.append(photo)
        shown += [_edges(side[0]) for side in versions if side[0] is not None]
        for network, kept in zip(networks, features, strict=True):
            kept.append(_features(network, versions, batch_size, plain_name(name)))
    if not photos:
        return Check((), len(crowd), None, (), tuple(omitted), failed)
    strangers = [embed(one, crowd, batch_size=batch_size, owner="distractors").cpu() for one in networks if len(crowd)]
    ours = _copies(crowd, shown)
    for network, kept, theirs in zip(networks, features, strangers, strict=False):
        if network.name in SAME_PERSON:
            ours |= (theirs @ _clean(kept).T >= SAME_PERSON[network.name]).any(1)
    learnt_on = None if cloak is None else _names(cloak.info.get("models"))
    return Check(
        tuple(photos),
        int((~ours).sum()),
        learnt_on,
        tuple(
            _model_check(network, kept, None if ours.all() else strangers[i][~ours], learnt_on)
            for i, (network, kept) in enumerate(zip(networks, features, strict=True))
        ),
        tuple(omitted),
        failed,
        tuple(name for name, one in zip(crowd_names, ours.tolist(), strict=True) if one),
    )


def _copies(crowd: Tensor, shown: Sequence[npt.NDArray[np.float32]]) -> Tensor:
    """Which distractors are the same picture as one of these faces, by their edges, [M] bool."""
    if not len(crowd):
        return torch.zeros(0, dtype=torch.bool)
    alike = likeness(np.stack([_edges(face) for face in crowd]), np.stack(shown))
    return torch.from_numpy((alike >= LEAST_LIKENESS).any(1))


def _edges(face: Tensor) -> npt.NDArray[np.float32]:  # [3, 112, 112] uint8
    picture = Image.fromarray(np.ascontiguousarray(face.permute(1, 2, 0).numpy())).convert("L")
    return edges(picture, COPY_SIDE, COPY_SIDE)


def _versions(name: str, original: Pixels, protected: Pixels, keep_pictures: bool) -> tuple[PhotoCheck, Versions]:
    """The face of the photo before and after protection, after every change."""
    check_same_picture(original, protected)
    height, width = original.shape[:2]
    same_size = original.shape == protected.shape
    if (height, width) == (SIZE, SIZE):
        faces, box, turn = 1, None, 0
    else:
        found = find_faces(original, who="all", name=name)
        face = _touched(found, original, protected) if same_size else found[0]
        faces, box = len(found), np.array(face.box) / [width, height, width, height]
        check_same_face(original, protected, box)
        turn = 90 * round(face.turn / 90)  # in no version is the face taken to be another way up
        if face.uncertain:
            logging.getLogger("fastcloak").warning("%s: %s", name, UNCERTAIN)
    versions = [[_crop(survive(side), box, turn) for survive in SURVIVALS.values()] for side in (original, protected)]
    inside = _region(box, original)
    change: int | None = None
    face_change: int | None = None
    whole: tuple[float | None, float | None] = (None, None)
    part = whole
    if same_size:
        change, face_change = (
            int(np.abs(original[where].astype(np.int16) - protected[where]).max()) for where in (..., inside)
        )
        whole, part = _quality(original, protected), _quality(original[inside], protected[inside])
    shown = _face_pictures(original, protected, box) if keep_pictures else None
    return PhotoCheck(name, width, height, faces, change, *whole, *part, shown, face_change), versions


def _touched(faces: Sequence[Face], original: Pixels, protected: Pixels) -> Face:
    """The face whose box changed most; the first, which is the largest, where nothing did."""

    def change(face: Face) -> float:
        height, width = original.shape[:2]
        inside = _region(np.array(face.box) / [width, height, width, height], original)
        return float(np.abs(original[inside].astype(np.int16) - protected[inside]).mean())

    return max(faces, key=change)


def _region(box: npt.NDArray[np.float64] | None, pixels: Pixels, margin: float = 0.0) -> tuple[slice, slice]:
    """Rows and columns of a box (left, top, width, height), in shares of the photo, at least one pixel of each."""
    height, width = pixels.shape[:2]
    if box is None:
        return slice(0, height), slice(0, width)
    left, top = (box[:2] - margin * box[2:]) * [width, height]
    right, bottom = (box[:2] + (1 + margin) * box[2:]) * [width, height]
    left, right = sorted((int(np.clip(round(left), 0, width - 1)), int(np.clip(round(right), 1, width))))
    top, bottom = sorted((int(np.clip(round(top), 0, height - 1)), int(np.clip(round(bottom), 1, height))))
    return slice(top, max(bottom, top + 1)), slice(left, max(right, left + 1))


def _crop(pixels: Pixels, box: npt.NDArray[np.float64] | None, turn: int) -> Tensor | None:
    """The face as a recogniser would see it, [3, 112, 112] uint8: found anew, in its place; None: not found."""
    height, width = pixels.shape[:2]
    if box is None:
        crop = pixels if (height, width) == (SIZE, SIZE) else resized(pixels, SIZE, SIZE)
    else:
        left, top, across, down = (box * [width, height, width, height]).tolist()
        place = left, top, across, down
        # Small faces are looked for, which takes longer, only where the one that is meant was not found.
        found = (_in_place(detect(pixels, thorough=thorough, turn=turn), place) for thorough in (False, True))
        face = next((face for face in found if face is not None), None)
        if face is None:
            return None
        crop = align(pixels, face)[0]
    return torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1)


def _in_place(faces: Sequence[Face], place: Box) -> Face | None:
    best = max(faces, key=lambda face: iou(face.box, place), default=None)
    return best if best is not None and iou(best.box, place) >= LEAST_OVERLAP else None


def _features(network: Surrogate, versions: Versions, batch_size: int, name: str) -> list[list[Tensor | None]]:
    """Unit features of every version in which there is a face."""
    crops = [crop for side in versions for crop in side if crop is not None]
    rows: Iterator[Tensor] = iter(embed(network, torch.stack(crops), batch_size=batch_size, owner=name).cpu())
    return [[None if crop is None else next(rows) for crop in side] for side in versions]


def _quality(original: Pixels, protected: Pixels) -> tuple[float | None, float | None]:
    """PSNR in dB and SSIM; None without scikit-image, or where a side is too short for SSIM's window of 7 pixels."""
    try:
        metrics = require("skimage.metrics", extra="report")
    except MissingExtraError:
        return None, None
    if (original == protected).all():
        return math.inf, 1.0
    # float32 halves the memory of float64, in which scikit-image would compute on uint8.
    a, b = original.astype(np.float32), protected.astype(np.float32)
    psnr = float(metrics.peak_signal_noise_ratio(a, b, data_range=255))
    if min(original.shape[:2]) < 7:
        return psnr, None
    return psnr, float(metrics.structural_similarity(a, b, data_range=255, channel_axis=2))


def _face_pictures(original: Pixels, protected: Pixels, box: npt.NDArray[np.float64] | None) -> FacePictures:
    before = original[_region(box, original, PICTURE_MARGIN)]
    after = protected[_region(box, protected, PICTURE_MARGIN)]
    height, width = before.shape[:2]
    if after.shape != before.shape:
        after = resized(after, width, height)
    difference = MID_GREY + GAIN * (after.astype(np.int16) - before)
    drawn = [before, after, difference.clip(0, 255).astype(np.uint8)]
    scale = min(1.0, PICTURE_SIDE / max(height, width))
    if scale < 1:
        width, height = max(1, round(scale * width)), max(1, round(scale * height))
        drawn = [resized(picture, width, height) for picture in drawn]
    return FacePictures(_png(drawn[0]), _png(drawn[1]), _png(drawn[2]), width, height, scale)


def _png(pixels: Pixels) -> bytes:
    file = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", optimize=True)
    return file.getvalue()


def _model_check(
    network: Surrogate,
    features: list[list[list[Tensor | None]]],
    strangers: Tensor | None,
    learnt_on: Sequence[str] | None,
) -> ModelCheck:
    clean = _clean(features)
    threshold = _threshold(network.name, clean, strangers)
    value = None if threshold is None else threshold.value
    names = {network.name, *(member.name for member in network.members)}
    return ModelCheck(
        network.name,
        None if learnt_on is None else not names.isdisjoint(learnt_on),
        threshold,
        tuple(
            SurvivalCheck(
                survival,
                *(_side([photo[side][i] for photo in features], clean, value, strangers) for side in (0, 1)),
            )
            for i, survival in enumerate(SURVIVALS)
        ),
    )


def _clean(features: list[list[list[Tensor | None]]]) -> Tensor:  # [N, D]
    # The face of every original as it is was found: else the photo would have failed.
    return torch.stack([found for photo in features if (found := photo[0][0]) is not None])


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


def _side(posted: list[Tensor | None], clean: Tensor, threshold: float | None, strangers: Tensor | None) -> Side:
    n = len(clean)
    own: list[float | None] = [None] * n
    others, nearest = list(own), list(own)
    recognised: list[bool | None] = [None] * n
    accepted: list[bool] = []
    for i, feature in enumerate(posted):
        if feature is None:
            continue
        cosines = (clean @ feature).tolist()
        own[i] = cosines.pop(i)
        if cosines:
            others[i], nearest[i] = sum(cosines) / len(cosines), max(cosines)
        if threshold is not None:
            recognised[i] = max(cosines or [own[i]]) >= threshold
            accepted += [cosine >= threshold for cosine in cosines]
    there = [i for i, feature in enumerate(posted) if feature is not None]
    rates, linked = None, None
    if len(there) > 1:
        found = torch.stack([feature for feature in posted if feature is not None])
        if strangers is not None:
            rates = person_rates(found, clean[there], strangers)
        if threshold is not None:
            pairs = ~torch.eye(len(there), dtype=torch.bool)
            linked = (found @ found.T >= threshold)[pairs].double().mean().item()
    return Side(
        tuple(own),
        tuple(others),
        tuple(nearest),
        tuple(recognised),
        sum(accepted) / len(accepted) if accepted else None,
        linked,
        rates,
    )


def _names(models: Any) -> tuple[str, ...]:
    # The cloak's file may come from anyone.
    return tuple(model for model in models if isinstance(model, str)) if isinstance(models, list) else ()
