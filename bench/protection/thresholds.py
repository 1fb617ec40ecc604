"""Thresholds of `fastcloak.protection.enrolment` and rates of `fastcloak.enrol`.

    python -m bench.protection.thresholds PEOPLE_DIR --distractors DIR -o bench/results/verification_lfw.csv

Rows "pairs": the cosine that a share `far` of the pairs of different people exceeds, and the share of pairs of one
person that do. Rows "enrol": with the threshold in use, the share of a person's photos from the eleventh on, and of
strangers' photos (distractors and other people's), that are taken for a person enrolled with `photos` photos.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch
from torch.nn.functional import normalize

from bench.harness.machine import row_context
from fastcloak import load_model
from fastcloak.evaluation.protocol import embed
from fastcloak.photos.inputs import load_faces, photo_files
from fastcloak.protection.enrolment import VERIFICATION_THRESHOLDS

LEARN = 10
COLUMNS = ("what", "model", "photos", "far", "threshold", "accepted", "impostors_accepted", "pairs", "impostor_pairs")


def rows(model: str, people: list[torch.Tensor], strangers: torch.Tensor) -> list[dict[str, object]]:
    """Rows of one network; people and strangers are aligned faces."""
    surrogate = load_model(model)
    own, others = [embed(surrogate, faces) for faces in people], embed(surrogate, strangers)
    z = torch.cat([*own, others])
    owner = torch.cat([torch.full((len(faces),), i) for i, faces in enumerate(own)])
    owner = torch.cat((owner, torch.arange(len(others)) + len(own)))  # strangers have one photo each
    pair = torch.ones(len(z), len(z), dtype=torch.bool).triu(1)
    same = owner[:, None] == owner
    cosines = z @ z.T
    genuine, impostor = cosines[pair & same], cosines[pair & ~same].sort(descending=True).values
    found: list[dict[str, object]] = []
    for far in (1e-2, 1e-3, 1e-4):
        threshold = impostor[int(far * len(impostor))].item()
        accepted = (genuine > threshold).double().mean().item()
        sizes = {"pairs": len(genuine), "impostor_pairs": len(impostor)}
        found.append({"what": "pairs", "far": far, "threshold": threshold, "accepted": accepted, **sizes})
    for photos in (3, 5, LEARN):
        mine, theirs = [], []
        for i, features in enumerate(own):
            center = normalize(features[:photos].mean(0), dim=0)
            mine.append(features[LEARN:] @ center)
            theirs.append(torch.cat([others, *(person[LEARN:] for j, person in enumerate(own) if j != i)]) @ center)
        least = VERIFICATION_THRESHOLDS[model]
        rates = [(torch.cat(one) >= least).double().mean().item() for one in (mine, theirs)]
        sizes = {"pairs": len(torch.cat(mine)), "impostor_pairs": len(torch.cat(theirs))}
        line = {"threshold": least, "accepted": rates[0], "impostors_accepted": rates[1]}
        found.append({"what": "enrol", "photos": photos, **line, **sizes})
    return [{"model": model, **row} for row in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("people", type=Path, help="folder of a folder of photos per person, more than ten each")
    parser.add_argument("--distractors", type=Path, required=True, help="photos of others, one each")
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    people = [load_faces(photo_files(folder)) for folder in sorted(given.people.iterdir()) if folder.is_dir()]
    strangers = load_faces(photo_files(given.distractors))
    context = row_context()
    with open(given.output, "w", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *context], lineterminator="\n")
        writer.writeheader()
        for model in VERIFICATION_THRESHOLDS:
            for row in rows(model, people, strangers):
                writer.writerow({**row, **context})
                print(row)


if __name__ == "__main__":
    main()
