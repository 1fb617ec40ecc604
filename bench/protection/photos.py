"""What is left of a cloak on whole photos: protect, save, load, detect, align; over the face's size and the file.

    python -m bench.protection.photos -o rows.csv [--recipes NAME ...] [--summary]
    python -m bench.protection.photos PEOPLE_DIR --distractors DIR --learn 10 --first 20 --count 20 --targets ... -o CSV

Every held-out photo of a person is resized so that the aligned square of its face has a side of `face` pixels (larger
than the photo holds means enlarged), protected there, changed as `file` says (`fastcloak.evaluation.postprocessing`),
and its face found and aligned again, as a recogniser would. "aligned" as face is the mask on the aligned crop itself,
as `bench.protection` measures it. The masks are "clean", "random" (random signs of 8 levels) and one per recipe; the
gallery is the clean aligned photos, without any of this. `kept` in the summary is the gain over the random mask
relative to that of "aligned"; the interval is over people. Photos in which no face is found again are left out
(`found` is the share of the others).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from bench.harness.command import command
from bench.harness.rows import Row, Rows, laid_out, read
from bench.protection.people import People, load_models, read_people
from bench.protection.recipes import RECIPES, options_of
from fastcloak import fit_many
from fastcloak.cloak import Cloak
from fastcloak.evaluation.postprocessing import AS_SAVED, POST_PROCESSING, Pixels, jpeg, resized
from fastcloak.evaluation.protocol import embed, protection_ranks, random_mask
from fastcloak.models import Surrogate
from fastcloak.photos.alignment import ALIGNED_FACE, SIZE, TEMPLATE_112, Face, align, similarity_transform
from fastcloak.photos.detection import detect, find_faces
from fastcloak.photos.files import read_photo
from fastcloak.protection.photo import protect

SIZES = (40, 60, 80, 112, 160, 224, 320)
ALIGNED = "aligned"
CLEAN, RANDOM = "clean", "random"
FILES: dict[str, Callable[[Pixels], Pixels]] = {
    **POST_PROCESSING,
    "JPEG 90": lambda pixels: jpeg(pixels, 90),
    "JPEG 85": lambda pixels: jpeg(pixels, 85),
    "JPEG 95, 4:4:4": lambda pixels: jpeg(pixels, 95, subsampling="4:4:4"),
}


def photo_at(path: Path, side: float) -> tuple[Pixels, Face]:
    """A photo resized so that the aligned square of its largest face is about `side` pixels wide, and that face."""
    pixels = read_photo(path).pixels
    (face,) = find_faces(pixels, name=str(path))
    own = SIZE / float(np.sqrt(np.linalg.det(similarity_transform(face.landmarks, TEMPLATE_112)[:, :2])))
    pixels = resized(pixels, *(max(1, round(side / own * length)) for length in pixels.shape[1::-1]))
    (face,) = find_faces(pixels, name=f"{path} at {side}")
    return pixels, face


def crop_again(pixels: Pixels) -> Tensor | None:
    """[3, 112, 112] uint8 of the largest face, found and aligned again; None if none is found.

    A photo of 112x112 pixels counts as aligned.
    """
    faces = [ALIGNED_FACE] if pixels.shape[:2] == (SIZE, SIZE) else detect(pixels)
    return torch.from_numpy(align(pixels, faces[0])[0]).permute(2, 0, 1) if faces else None


def pair_ranks(features: Tensor, clean: Tensor, owners: Sequence[int], crowd: Tensor) -> Tensor:
    """[n, N - 1] ranks of the other clean photos: row i is a probe made of photo owners[i]."""
    ranks = protection_ranks(features, clean, crowd)  # [n, N]
    others = torch.ones_like(ranks, dtype=torch.bool)
    others[torch.arange(len(owners)), torch.tensor(owners)] = False
    return ranks[others].view(len(owners), -1)


def measure(
    people: People,
    cloaks: Mapping[str, Mapping[str, Cloak]],
    targets: Sequence[Surrogate],
    sizes: Sequence[float],
    files: Sequence[str],
) -> Iterator[dict[str, Any]]:
    """Rows of every mask, size and file on every target."""
    clean = {target.name: {name: embed(target, faces) for name, faces in people.probes.items()} for target in targets}
    crowd = {target.name: embed(target, people.distractors) for target in targets}
    first = next(iter(cloaks.values()))
    masks: dict[str, dict[str, Cloak | None]] = {CLEAN: dict.fromkeys(people.probes)}
    masks[RANDOM] = {name: random_mask(cloak, name) for name, cloak in first.items()}
    masks |= {label: dict(of) for label, of in cloaks.items()}

    def rows(crops: dict[str, dict[int, Tensor]], mask: str, face: str, file: str) -> Iterator[dict[str, Any]]:
        for target in targets:
            rates, linked, cosines = {}, [], []
            for name, found in crops.items():
                if not found:
                    continue
                features, own = embed(target, torch.stack(list(found.values()))), clean[target.name][name]
                owners = list(found)
                rates[name] = (pair_ranks(features, own, owners, crowd[target.name]) > 1).double().mean().item()
                if len(owners) > 1:
                    among = pair_ranks(features, features, range(len(owners)), crowd[target.name])
                    linked.append((among == 1).double().mean().item())
                similarity = features @ own.T
                similarity[torch.arange(len(owners)), torch.tensor(owners)] = float("nan")
                cosines.append(similarity.nanmean().item())
            what = {"target": target.name, "mask": mask, "face": face, "file": file}
            yield what | {
                "found": sum(map(len, crops.values())) / sum(len(people.probes[name]) for name in crops),
                "top1": float(np.mean(list(rates.values()))),
                "linkage": float(np.mean(linked)),
                "cosine": float(np.mean(cosines)),
                "per_person": json.dumps(rates),
            }

    for mask, of in masks.items():
        probes = {name: (of[name], faces) for name, faces in people.probes.items()}
        crops = {name: dict(enumerate(cloak.apply(f) if cloak else f)) for name, (cloak, f) in probes.items()}
        yield from rows(crops, mask, ALIGNED, AS_SAVED)
    for side in sizes:
        ready = {name: [photo_at(path, side) for path in paths] for name, paths in people.judged.items()}
        for mask, of in masks.items():
            posted = {
                name: [
                    pixels if cloak is None else protect(pixels, cloak, faces=[face]) for pixels, face in ready[name]
                ]
                for name, cloak in of.items()
            }
            for file in files:
                found = {
                    name: {i: crop_again(FILES[file](pixels)) for i, pixels in enumerate(pictures)}
                    for name, pictures in posted.items()
                }
                crops = {name: {i: crop for i, crop in own.items() if crop is not None} for name, own in found.items()}
                yield from rows(crops, mask, f"{side:g}", file)


def draws(people: int) -> npt.NDArray[np.int64]:
    """Bootstrap over people, [2000, people]; the same for every row."""
    return np.random.default_rng(0).integers(0, people, (2000, people))


def kept(columns: Sequence[Mapping[str, float]]) -> tuple[float, float, float, float]:
    """Gain over random, share of the aligned gain, and the share's 95 % interval over people.

    Args:
        columns: rates by person of the mask, the random one, the mask aligned, and the random one aligned.
    """
    names = sorted(set.intersection(*(set(column) for column in columns)))
    values = np.array([[column[name] for name in names] for column in columns])
    many, means = values[:, draws(len(names))].mean(-1), values.mean(1)  # [4, 2000], [4]
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = (many[0] - many[1]) / (many[2] - many[3])
        share = (means[0] - means[1]) / (means[2] - means[3])
    low, high = np.nanquantile(shares, (0.025, 0.975))
    return float(means[0] - means[1]), float(share), float(low), float(high)


def summary(lines: Sequence[Row]) -> list[list[str]]:
    """A line per mask, target, face and file: Top-1 of clean, random and mask, gain and what is kept of it."""
    found = {(line["mask"], line["face"], line["file"], line["target"]): line for line in lines}
    aligned = {(line["mask"], line["target"]): line for line in lines if line["face"] == ALIGNED}
    table = [["mask", "target", "face", "file", "found", "clean", "random", "mask", "gain", "kept", "interval"]]
    for mask, face, file, target in found:
        if mask in (CLEAN, RANDOM):
            continue
        both = [found[which, face, file, target] for which in (mask, RANDOM)]
        both += [aligned[which, target] for which in (mask, RANDOM)]
        gain, share, low, high = kept([json.loads(line["per_person"]) for line in both])
        top1 = [f"{100 * float(found[which, face, file, target]['top1']):.1f}" for which in (CLEAN, RANDOM, mask)]
        seen = f"{100 * float(found[mask, face, file, target]['found']):.0f}"
        shares = [f"{100 * share:.0f}", f"[{100 * low:.0f}, {100 * high:.0f}]"]
        table.append([mask, target, face, file, seen, *top1, f"{100 * gain:.1f}", *shares])
    return table


def main() -> None:
    parser = command(
        __doc__, "people", "distractors", "first", "summary", "output", learn=6, count=6, targets=["sface", "dlib"]
    )
    parser.add_argument("--surrogate", default="sface", help="network to fit on (%(default)s)")
    parser.add_argument("--recipes", nargs="+", default=["preset fast"], help="of recipes.py (%(default)s)")
    parser.add_argument("--sizes", nargs="+", type=float, default=list(SIZES), help="(%(default)s)")
    parser.add_argument("--files", nargs="+", choices=FILES, default=list(FILES), help="(all)")
    given = parser.parse_args()
    if not given.summary:
        people = read_people(given.people, given.distractors, learn=given.learn, first=given.first, count=given.count)
        loaded: dict[str, Surrogate] = {}
        (surrogate,) = load_models([given.surrogate], loaded)
        cloaks = {
            recipe: fit_many(people.learnt_from, surrogate, **options_of(RECIPES[recipe], given.learn))
            for recipe in given.recipes
        }
        about = {"data": people.data, "people": len(people.probes), "photos": sum(map(len, people.probes.values()))}
        about |= {"distractors": len(people.distractors), "surrogate": surrogate.name}
        rows, targets = Rows(given.output), load_models(given.targets, loaded)
        for row in tqdm(measure(people, cloaks, targets, given.sizes, given.files), unit="row"):
            rows.add({**about, **row})
    print(laid_out(summary(read(given.output))))


if __name__ == "__main__":
    main()
