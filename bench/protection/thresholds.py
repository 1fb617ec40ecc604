"""Thresholds of `fastcloak.protection.enrolment` and rates of `fastcloak.enrol`.

    python -m bench.protection.thresholds PEOPLE_DIR --distractors DIR -o bench/results/verification_lfw.csv

Rows "pairs": the cosine that a share `far` of the pairs of different people exceeds, and the share of pairs of one
person that do. Rows "enrol": with the threshold in use, the share of a person's photos from the eleventh on, and of
strangers' photos (distractors and other people's), that are taken for a person enrolled with `photos` photos.
PEOPLE_DIR needs more than ten photos of everyone, the distractors are one photo each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench.harness.command import command
from bench.harness.rows import Rows
from bench.protection.people import people_folders, photos_of
from fastcloak import load_model
from fastcloak.evaluation.protocol import embed
from fastcloak.photos.inputs import load_faces, photo_files
from fastcloak.protection.enrolment import VERIFICATION_THRESHOLDS

LEARN = 10


def measure(model: str, people: list[Tensor], strangers: Tensor) -> Iterator[dict[str, Any]]:
    """Rows of one network; people and strangers are aligned faces."""
    surrogate = load_model(model)
    own, others = [embed(surrogate, faces) for faces in people], embed(surrogate, strangers)
    z = torch.cat([*own, others])
    owner = torch.cat([torch.full((len(faces),), i) for i, faces in enumerate(own)])
    owner = torch.cat((owner, torch.arange(len(others)) + len(own)))  # strangers have one photo each
    pair, same, cosines = torch.ones(len(z), len(z), dtype=torch.bool).triu(1), owner[:, None] == owner, z @ z.T
    genuine, impostor = cosines[pair & same], cosines[pair & ~same].sort(descending=True).values
    sizes = {"pairs": len(genuine), "impostor_pairs": len(impostor)}
    for far in (1e-2, 1e-3, 1e-4):
        threshold = impostor[int(far * len(impostor))].item()
        accepted = (genuine > threshold).double().mean().item()
        row = {"what": "pairs", "model": model, "photos": "", "far": far, "threshold": threshold, "accepted": accepted}
        yield {**row, "impostors_accepted": "", **sizes}
    for photos in (3, 5, LEARN):
        mine, theirs = [], []
        for i, features in enumerate(own):
            center = normalize(features[:photos].mean(0), dim=0)
            mine.append(features[LEARN:] @ center)
            theirs.append(torch.cat([others, *(person[LEARN:] for j, person in enumerate(own) if j != i)]) @ center)
        least, both = VERIFICATION_THRESHOLDS[model], (torch.cat(mine), torch.cat(theirs))
        rates = [(one >= least).double().mean().item() for one in both]
        row = {"what": "enrol", "model": model, "photos": photos, "threshold": least, "accepted": rates[0]}
        yield {**row, "impostors_accepted": rates[1], "pairs": len(both[0]), "impostor_pairs": len(both[1])}


def main() -> None:
    given = command(__doc__, "people", "distractors", "output", required=("people", "distractors")).parse_args()
    people = [load_faces(photos_of(folder)) for folder in people_folders(given.people)]
    strangers, rows = load_faces(photo_files(given.distractors)), Rows(given.output)
    for model in VERIFICATION_THRESHOLDS:
        for row in measure(model, people, strangers):
            rows.add(row)
            print(row)


if __name__ == "__main__":
    main()
