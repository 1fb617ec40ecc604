"""What is left of a cloak on whole photos: protect, save, load, detect, align; over the face's size and the file.

    python -m bench.protection.photos -o rows.csv [--recipes NAME ...] [--summary]
    python -m bench.protection.photos PEOPLE_DIR --distractors DIR --learn 10 --first 20 --count 20 --targets ... -o CSV

Every held-out photo of a person is resized so that the aligned square of its face has a side of `face` pixels (larger
than the photo holds means enlarged), protected there, changed as `file` says (`fastcloak.evaluation.postprocessing`),
and its face found and aligned anew, as a recogniser would. "aligned" as face is the mask on the aligned crop itself,
as `bench.protection` measures it. The masks are "clean", "random" (random signs of 8 levels) and one per recipe; the
gallery is the clean aligned photos, without any of this. `kept` in the summary is the gain over the random mask
relative to that of "aligned"; the interval is over people. Photos in which no face is found again are left out
(`found` is the share of the others).
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from bench.harness.machine import row_context
from bench.protection.__main__ import People, read_people
from bench.protection.recipes import RECIPES, options_of
from bench.protection.summary import laid_out
from fastcloak import fit_many
from fastcloak.cli.options import MODEL_HELP, parse_model
from fastcloak.cloak import Cloak
from fastcloak.evaluation.postprocessing import AS_SAVED, POST_PROCESSING, jpeg, resized
from fastcloak.evaluation.protocol import embed, random_mask
from fastcloak.models import Surrogate
from fastcloak.photos.alignment import SIZE, TEMPLATE_112, Face, align, similarity_transform
from fastcloak.photos.detection import detect, find_faces
from fastcloak.photos.files import read_photo
from fastcloak.photos.inputs import photo_files
from fastcloak.protection.photo import protect
from fastcloak.system.packages import orl_folder

Pixels = npt.NDArray[np.uint8]

SIZES = (40, 60, 80, 112, 160, 224, 320)
ALIGNED = "aligned"
CLEAN, RANDOM = "clean", "random"
ABOUT = ("data", "people", "photos", "distractors", "surrogate")
COLUMNS = (*ABOUT, "target", "mask", "face", "file", "found", "top1", "linkage", "cosine", "per_person")
BOOTSTRAPS = 2000


FILES: dict[str, Callable[[Pixels], Pixels]] = {
    **POST_PROCESSING,
    "JPEG 85": lambda pixels: jpeg(pixels, 85),
    "JPEG 95, 4:4:4": lambda pixels: jpeg(pixels, 95, subsampling="4:4:4"),
}


def square_side(face: Face) -> float:
    """Side of a face's aligned square in pixels of its photo."""
    return SIZE / float(np.sqrt(np.linalg.det(similarity_transform(face.landmarks, TEMPLATE_112)[:, :2])))


def photo_at(path: Path, side: float) -> tuple[Pixels, Face]:
    """A photo resized so that the aligned square of its largest face is about `side` pixels wide, and that face."""
    pixels = read_photo(path).pixels
    (face,) = find_faces(pixels, name=str(path))
    scale = side / square_side(face)
    pixels = resized(pixels, *(max(1, round(scale * length)) for length in pixels.shape[1::-1]))
    (face,) = find_faces(pixels, name=f"{path} at {side}")
    return pixels, face


def crop_again(pixels: Pixels) -> Tensor | None:
    """[3, 112, 112] uint8 of the largest face, found and aligned anew; None if none is found."""
    faces = detect(pixels)
    return torch.from_numpy(align(pixels, faces[0])[0]).permute(2, 0, 1) if faces else None


def pair_ranks(features: Tensor, clean: Tensor, owners: Sequence[int], crowd: Tensor) -> Tensor:
    """[n, N - 1] ranks of the other clean photos: row i is a probe made of photo owners[i]."""
    strangers = features @ crowd.T  # [n, M]
    ranks = 1 + (strangers[:, None] > (features @ clean.T)[..., None]).sum(-1)  # [n, N]
    others = torch.ones_like(ranks, dtype=torch.bool)
    others[torch.arange(len(owners)), torch.tensor(owners)] = False
    return ranks[others].view(len(owners), -1)


def measure(
    people: People,
    photos: Mapping[str, Sequence[Path]],
    cloaks: Mapping[str, Mapping[str, Cloak]],
    targets: Sequence[Surrogate],
    sizes: Sequence[float],
    files: Sequence[str],
) -> Iterator[dict[str, object]]:
    """Rows of every mask, size and file on every target."""
    clean = {target.name: {name: embed(target, faces) for name, faces in people.probes.items()} for target in targets}
    crowd = {target.name: embed(target, people.distractors) for target in targets}
    masks: dict[str, dict[str, Cloak | None]] = {CLEAN: dict.fromkeys(photos)}
    first = next(iter(cloaks.values()))
    masks[RANDOM] = {name: random_mask(cloak, name) for name, cloak in first.items()}
    masks |= {label: dict(of) for label, of in cloaks.items()}

    def rows(crops: dict[str, dict[int, Tensor]], mask: str, face: str, file: str) -> Iterator[dict[str, object]]:
        for target in targets:
            rates, linked, cosines = {}, [], []
            for name, found in crops.items():
                if not found:
                    continue
                features, own = embed(target, torch.stack(list(found.values()))), clean[target.name][name]
                owners = list(found)
                ranks = pair_ranks(features, own, owners, crowd[target.name])
                rates[name] = (ranks > 1).double().mean().item()
                if len(owners) > 1:
                    among = pair_ranks(features, features, range(len(owners)), crowd[target.name])
                    linked.append((among == 1).double().mean().item())
                similarity = features @ own.T
                similarity[torch.arange(len(owners)), torch.tensor(owners)] = float("nan")
                cosines.append(similarity.nanmean().item())
            expected = sum(len(people.probes[name]) for name in crops)
            yield {
                "target": target.name,
                "mask": mask,
                "face": face,
                "file": file,
                "found": sum(map(len, crops.values())) / expected,
                "top1": float(np.mean(list(rates.values()))),
                "linkage": float(np.mean(linked)),
                "cosine": float(np.mean(cosines)),
                "per_person": json.dumps(rates),
            }

    for mask, of in masks.items():
        crops = {
            name: dict(enumerate(faces if of[name] is None else of[name].apply(faces)))  # type: ignore[union-attr]
            for name, faces in people.probes.items()
        }
        yield from rows(crops, mask, ALIGNED, AS_SAVED)
    for side in sizes:
        ready = {name: [photo_at(path, side) for path in paths] for name, paths in photos.items()}
        for mask, of in masks.items():
            posted = {
                name: [
                    pixels if cloak is None else protect(pixels, cloak, faces=[face]) for pixels, face in ready[name]
                ]
                for name, cloak in of.items()
            }
            for file in files:
                crops = {name: {} for name in posted}
                for name, pictures in posted.items():
                    for i, pixels in enumerate(pictures):
                        crop = crop_again(FILES[file](pixels))
                        if crop is not None:
                            crops[name][i] = crop
                yield from rows(crops, mask, f"{side:g}", file)


def kept(
    lines: Sequence[Mapping[str, str]], mask: str, face: str, file: str, target: str
) -> tuple[float, float, float, float]:
    """Gain over random, share of the aligned gain, and the share's 95 % interval over people."""

    def rates(mask: str, face: str, file: str) -> dict[str, float]:
        (line,) = (
            line
            for line in lines
            if (line["mask"], line["face"], line["file"], line["target"]) == (mask, face, file, target)
        )
        found: dict[str, float] = json.loads(line["per_person"])
        return found

    columns = [
        rates(mask, face, file),
        rates(RANDOM, face, file),
        rates(mask, ALIGNED, AS_SAVED),
        rates(RANDOM, ALIGNED, AS_SAVED),
    ]
    names = sorted(set.intersection(*(set(column) for column in columns)))
    values = np.array([[column[name] for name in names] for column in columns])
    draws = np.random.default_rng(0).integers(0, len(names), (BOOTSTRAPS, len(names)))
    many = values[:, draws].mean(-1)  # [4, BOOTSTRAPS]
    means = values.mean(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = (many[0] - many[1]) / (many[2] - many[3])
        share = (means[0] - means[1]) / (means[2] - means[3])
    low, high = np.nanquantile(shares, (0.025, 0.975))
    return float(means[0] - means[1]), float(share), float(low), float(high)


def summary(lines: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """A line per mask, target, face and file: Top-1 of clean, random and mask, gain and what is kept of it."""
    top1 = {(line["mask"], line["face"], line["file"], line["target"]): line for line in lines}
    table = [["mask", "target", "face", "file", "found", "clean", "random", "mask", "gain", "kept", "interval"]]
    for line in lines:
        mask, face, file, target = line["mask"], line["face"], line["file"], line["target"]
        if mask in (CLEAN, RANDOM):
            continue
        gain, share, low, high = kept(lines, mask, face, file, target)
        rates = [f"{100 * float(top1[(which, face, file, target)]['top1']):.1f}" for which in (CLEAN, RANDOM, mask)]
        found = f"{100 * float(line['found']):.0f}"
        shares = [f"{100 * share:.0f}", f"[{100 * low:.0f}, {100 * high:.0f}]"]
        table.append([mask, target, face, file, found, *rates, f"{100 * gain:.1f}", *shares])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("people", nargs="?", type=Path, help="folder of a folder of photos per person (ORL)")
    parser.add_argument("--distractors", type=Path, help="photos of others (ORL: the people without a cloak)")
    parser.add_argument("--learn", type=int, default=6, help="photos to learn from (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="people to leave out first (%(default)s)")
    parser.add_argument("--count", type=int, default=6, help="people to cloak (%(default)s)")
    parser.add_argument("--surrogate", default="sface", help=f"{MODEL_HELP} (%(default)s)")
    parser.add_argument("--targets", nargs="+", default=["sface", "dlib"], help="(%(default)s)")
    parser.add_argument(
        "--recipes", nargs="+", default=["preset fast"], help="names of bench/protection/recipes.py (%(default)s)"
    )
    parser.add_argument("--sizes", nargs="+", type=float, default=list(SIZES), help="(%(default)s)")
    parser.add_argument("--files", nargs="+", choices=FILES, default=list(FILES), help="(all)")
    parser.add_argument("--summary", action="store_true", help="show what the file holds and measure nothing")
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    if not given.summary:
        people = read_people(given.people, given.distractors, learn=given.learn, first=given.first, count=given.count)
        folder = orl_folder() if given.people is None else given.people
        photos = {
            name: [file for file in photo_files(folder / name) if file.name != "target.jpg"][given.learn :]
            for name in people.probes
        }
        surrogate = parse_model(given.surrogate)
        cloaks = {
            recipe: fit_many(people.learnt_from, surrogate, **options_of(RECIPES[recipe], given.learn))
            for recipe in given.recipes
        }
        about = {
            "data": people.data,
            "people": len(photos),
            "photos": sum(map(len, photos.values())),
            "distractors": len(people.distractors),
            "surrogate": surrogate.name,
        }
        context = row_context()
        lines = measure(people, photos, cloaks, list(map(parse_model, given.targets)), given.sizes, given.files)
        with open(given.output, "w", newline="") as file:
            writer = csv.DictWriter(file, [*COLUMNS, *context])
            writer.writeheader()
            for line in tqdm(lines, unit="row"):
                writer.writerow({**about, **line, **context})
                file.flush()
    with open(given.output, newline="") as file:
        print(laid_out(summary(list(csv.DictReader(file)))))


if __name__ == "__main__":
    main()
