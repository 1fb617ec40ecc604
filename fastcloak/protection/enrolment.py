"""Which face of a group photo is the person's: the one whose features are nearest to those of their own photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from fastcloak.models import Surrogate, load_model, unit_features
from fastcloak.photos.alignment import Face, Pixels, align
from fastcloak.photos.detection import detect
from fastcloak.photos.inputs import load_faces
from fastcloak.system.errors import FaceNotFoundError, PersonNotFoundError

__all__ = ["Enrolment", "enrol"]

FALSE_ACCEPT_RATE = 1e-3
"""How many pairs of different people the thresholds take for one person."""
VERIFICATION_THRESHOLDS = {"sface": 0.375, "dlib": 0.644}
"""Cosines of two photos, measured by bench.protection.thresholds."""
LENIENT_THRESHOLDS = {"sface": 0.303, "dlib": 0.499}
"""The same at a false accept rate of 1e-2, to compare one photo with several of a person."""
SAME_PERSON = {"sface": 0.52, "dlib": 0.78}
"""Cosines from which a photo among strangers' is taken to be the person's own."""


@dataclass(frozen=True, eq=False)
class Enrolment:
    """What tells a person's face from others'. It is biometric, lives in memory only, and is in no cloak file.

    Attributes:
        surrogate: the face network.
        center: [D] float32, unit length: direction of the mean of the unit features of the person's photos.
        threshold: cosine to `center` from which a face is the person's.
        faces: [N, 3, 112, 112] float32 in [0, 1], the person's photos.
    """

    surrogate: Surrogate
    center: torch.Tensor
    threshold: float
    faces: torch.Tensor

    def similarities(self, crops: torch.Tensor) -> torch.Tensor:
        """Cosine to the person, [n] on the CPU, of faces [n, 3, 112, 112], float32 in [0, 1]."""
        return (unit_features(self.surrogate, crops) @ self.center).cpu()

    def find(self, pixels: Pixels, *, name: str = "photo") -> Face:
        """The person's face in a photo: the most similar one, if it reaches the threshold.

        Args:
            pixels: [H, W, 3], uint8, RGB.
            name: what errors call the photo.

        Raises:
            PersonNotFoundError: none reaches it.
            FaceNotFoundError: there is no face at all.
        """
        faces = detect(pixels, thorough=True)
        if not faces:
            raise FaceNotFoundError(f"{name} must show the enrolled person, got no face at all; leave the photo out")
        crops = torch.stack([torch.from_numpy(align(pixels, face)[0]) for face in faces]).permute(0, 3, 1, 2)
        cosines = self.similarities(crops.float() / 255)
        best = int(cosines.argmax())
        self._check(cosines[best].item(), len(faces), name)
        return faces[best]

    def check_aligned(self, pixels: Pixels, *, name: str = "photo") -> None:
        """Refuse an aligned face, [112, 112, 3] uint8, that is not the person's, by PersonNotFoundError."""
        cosines = self.similarities(torch.tensor(pixels).permute(2, 0, 1)[None].float() / 255)
        self._check(cosines.item(), 1, name)

    def _check(self, cosine: float, faces: int, name: str) -> None:
        if not cosine >= self.threshold:  # also true for NaN
            raise PersonNotFoundError(
                f"{name} must show the enrolled person, got {faces} face{'s' * (faces > 1)}, the most similar with "
                f"cosine {cosine:.2f}, below {self.threshold:g}; if it is the person, use who='largest' or 'all'"
            )


def enrol(photos: Any, model: Any = "sface", *, threshold: float | None = None) -> Enrolment:
    """Learn what a person looks like to a face network, to find them in group photos.

    On LFW, with three to ten photos and a threshold for pairs, SFace finds 99 % of the person's other photos and takes
    0.2 % of strangers for them; dlib's network 93 to 96 % and 0.2 % (measured on 40 people and 400 strangers).

    Args:
        photos: of the person, one or more: whatever `load_faces` takes, such as the folder that `fit` learnt from.
        model: the network: whatever `load_model` takes.
        threshold: cosine from which a face is the person's. None: `verification_threshold` of the network.

    Raises:
        ValueError: no threshold is known for the network and none is given, or one outside [-1, 1].
        FaceNotFoundError: a photo without a face.
        PhotoError: a photo that cannot be read.
    """
    surrogate = load_model(model)
    least = verification_threshold(surrogate.name) if threshold is None else threshold
    if least is None:
        raise ValueError(
            f"threshold must be given for the network {surrogate.name!r}, got none, and none is known for it; pass the "
            "cosine that 1 in 1,000 pairs of different people exceed"
        )
    if not -1 <= least <= 1:
        raise ValueError(f"threshold must be a cosine in [-1, 1], got {least}")
    faces = load_faces(photos)
    features = unit_features(surrogate, faces)
    return Enrolment(surrogate, F.normalize(features.mean(0), dim=0), float(least), faces)


def recogniser(models: Sequence[Surrogate]) -> Surrogate:
    """The network that finds the person whom the others learn from: the first with a known threshold, else SFace."""
    known = [model for model in models if verification_threshold(model.name) is not None]
    return known[0] if known else load_model("sface")


def verification_threshold(name: str) -> float | None:
    """Threshold on cosines of the network of this name, or None where none is known."""
    return VERIFICATION_THRESHOLDS.get(name)
