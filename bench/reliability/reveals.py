"""What a cloak file reveals of its owner."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

import fastcloak
from fastcloak.photos.inputs import load_faces
from fastcloak.system.packages import orl_folder


def reveals(people: int = 8, learn: int = 6) -> Iterator[dict[str, Any]]:
    """How well the owner of a cloak is found among 40 people of ORL, by someone who has photos of all of them.

    `people` cloaks are fitted on SFace (preset fast) to `learn` photos each. The finder has the other photos of these
    people, and all of the rest. Ways to look, each on SFace (fitted on it) and dlib: "mask k" is the similarity of the
    picture 0.5 + k delta to each person's mean feature; "least alike k" the same, lowest first, since a mask leads away
    from its person; "effect" is by how much the mask turns each person's photos, most turned first.

    Yields:
        Rows with the mean rank of the owner (chance: 20.5), how often it was first (chance: 1 in 40), and all ranks.
    """
    folders = sorted((folder for folder in orl_folder().iterdir() if folder.is_dir()), key=lambda f: int(f.name[1:]))
    faces = {folder.name: load_faces(folder) for folder in folders}
    owners = [folder.name for folder in folders[:: len(folders) // people]][:people]
    surrogate = fastcloak.load_model("sface")
    masks = {name: fastcloak.fit(faces[name][:learn], surrogate).delta for name in owners}
    for network in ("sface", "dlib"):
        model = fastcloak.load_model(network)

        def embed(pictures: Tensor, model: Any = model) -> Tensor:
            with torch.no_grad():
                return normalize(model(pictures.clamp(0, 1)))

        seen = {name: embed(photos) for name, photos in faces.items()}
        ranks: dict[str, list[int]] = {}
        for owner, delta in masks.items():
            clean = {name: features[learn:] if name in owners else features for name, features in seen.items()}
            centers = normalize(torch.stack([one.mean(0) for one in clean.values()]))
            scores: dict[str, Tensor] = {}
            for gain in (1, 4, 16, -4, -16):
                scores[f"mask {gain}"] = centers @ embed(0.5 + gain * delta[None])[0]
                scores[f"least alike {gain}"] = -scores[f"mask {gain}"]
            cloaked = {name: embed(photos[-len(clean[name]) :] + delta) for name, photos in faces.items()}
            scores["effect"] = torch.stack([1 - (clean[name] * z).sum(1).mean() for name, z in cloaked.items()])
            for way, of in scores.items():
                ranks.setdefault(way, []).append(1 + int((of > of[list(faces).index(owner)]).sum()))
        for way, found in ranks.items():
            mean, first = sum(found) / len(found), sum(rank == 1 for rank in found)
            yield {"network": network, "way": way, "mean_rank": mean, "first": first, "ranks": found}
