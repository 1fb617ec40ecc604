"""What a photo that is not upright costs: protect it turned, turn the result back, look for the face, compare.

    python -m bench.protection.turned PEOPLE_DIR CLOAKS_DIR --distractors DIR --learn 10 --targets ... -o CSV

CLOAKS_DIR holds NAME.safetensors for each person to judge, fitted to the first photos. Every other photo is turned
by `angle` degrees on a larger grey picture, protected there and turned back ("turned"); the control is protected
upright and then turned and turned back, so that both are resampled twice ("upright"). The face is then found and
aligned as a recogniser would. Photos in which no face is found to protect are refused, and left out of both.
The summary shows Top-1 protection of both, and the loss with its 95 % interval over people.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from bench.harness.command import command
from bench.harness.rows import Row, Rows, laid_out, read
from bench.protection.people import load_models, photos_of
from bench.protection.photos import crop_again, draws, pair_ranks
from fastcloak import load
from fastcloak.cloak import Cloak
from fastcloak.evaluation.postprocessing import Pixels
from fastcloak.evaluation.protocol import embed
from fastcloak.models import Surrogate
from fastcloak.photos.detection import detect
from fastcloak.photos.files import read_photo
from fastcloak.photos.inputs import photo_files, saved_faces
from fastcloak.protection.photo import protect

TURNED, UPRIGHT = "turned", "upright"


def turned(pixels: Pixels, angle: float) -> Pixels:
    """A photo turned counterclockwise on a larger grey picture."""
    picture = Image.fromarray(pixels).rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=(128,) * 3)
    return np.array(picture)


def turned_back(pixels: Pixels, angle: float, width: int, height: int) -> Pixels:
    """The middle of a photo, turned back."""
    picture = Image.fromarray(pixels).rotate(-angle, Image.Resampling.BICUBIC)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return np.array(picture.crop((left, top, left + width, top + height)))


def crops(path: Path, cloak: Cloak, angles: Sequence[float]) -> Iterator[tuple[dict[str, Tensor] | None, bool]]:
    """For each angle the face of both, None where none is found; and whether which way up it is was uncertain."""
    pixels = read_photo(path).pixels
    height, width = pixels.shape[:2]
    control = protect(pixels, cloak)
    for angle in angles:
        faces = detect(turned(pixels, angle))[:1]
        if not faces:
            yield None, False
            continue
        both = {TURNED: protect(turned(pixels, angle), cloak, faces=faces), UPRIGHT: turned(control, angle)}
        found = {how: crop_again(turned_back(photo, angle, width, height)) for how, photo in both.items()}
        seen = {how: crop for how, crop in found.items() if crop is not None}
        yield seen if len(seen) == len(found) else None, faces[0].uncertain


def measure(
    photos: Mapping[str, Sequence[Path]],
    cloaks: Mapping[str, Cloak],
    targets: Sequence[Surrogate],
    distractors: Tensor,
    angles: Sequence[float],
    probes: int | None,
) -> Iterator[dict[str, Any]]:
    """Rows of every target, angle and way to protect."""
    clean = {name: saved_faces(list(paths)) for name, paths in photos.items()}
    found: dict[float, dict[str, dict[int, dict[str, Tensor]]]] = {a: {name: {} for name in photos} for a in angles}
    refused: Counter[float] = Counter()
    uncertain: Counter[float] = Counter()
    for name, i in tqdm([(who, i) for who in photos for i in range(len(photos[who][:probes]))], unit="photo"):
        for angle, (seen, unsure) in zip(angles, crops(photos[name][i], cloaks[name], angles), strict=True):
            refused[angle] += seen is None
            uncertain[angle] += unsure
            if seen is not None:
                found[angle][name][i] = seen
    for target in targets:
        crowd = embed(target, distractors)
        own = {name: embed(target, faces) for name, faces in clean.items()}
        for angle in angles:
            for how in (TURNED, UPRIGHT):
                rates, cosines = {}, []
                for name, of in found[angle].items():
                    if of:
                        owners = list(of)
                        features = embed(target, torch.stack([one[how] for one in of.values()]))
                        rates[name] = (pair_ranks(features, own[name], owners, crowd) > 1).double().mean().item()
                        cosines.append((features * own[name][owners]).sum(1).mean().item())
                what = {"target": target.name, "angle": angle, "refused": refused[angle]}
                yield what | {
                    "uncertain": uncertain[angle],
                    "how": how,
                    "top1": float(np.mean(list(rates.values()))),
                    "cosine": float(np.mean(cosines)),
                    "per_person": json.dumps(rates),
                }


def summary(lines: Sequence[Row]) -> list[list[str]]:
    """A line per target and angle, and one over all angles: Top-1 of both and the loss in points."""
    rates: dict[str, dict[str, dict[str, dict[str, float]]]] = defaultdict(lambda: defaultdict(dict))
    for line in lines:
        rates[line["target"]][line["angle"]][line["how"]] = json.loads(line["per_person"])
    table = [["target", "angle", "turned", "upright", "loss", "interval"]]
    for target, angles in rates.items():
        both = {angle: (pair[TURNED], pair[UPRIGHT]) for angle, pair in angles.items()}
        names = sorted(set.intersection(*(set(one) for pair in both.values() for one in pair)))
        values = {angle: np.array([[one[name] for name in names] for one in pair]) for angle, pair in both.items()}
        values["all"] = np.mean(list(values.values()), 0)
        for angle, (of_turned, of_upright) in values.items():
            loss = 100 * (of_upright - of_turned)
            low, high = np.quantile(loss[draws(len(names))].mean(1), (0.025, 0.975))
            shown = [f"{100 * of_turned.mean():.1f}", f"{100 * of_upright.mean():.1f}", f"{loss.mean():.1f}"]
            table.append([target, angle, *shown, f"[{low:.1f}, {high:.1f}]"])
    return table


def main() -> None:
    parser = command(__doc__, "people", "distractors", "summary", "output", learn=10, targets=["dlib"])
    parser.add_argument("cloaks", type=Path, nargs="?", help="folder of NAME.safetensors")
    parser.add_argument("--probes", type=int, help="photos to turn of each person; the gallery holds all (all)")
    parser.add_argument("--step", type=int, default=15, help="degrees between angles (%(default)s)")
    given = parser.parse_args()
    if not given.summary:
        if not (given.people and given.cloaks and given.distractors):
            parser.error("PEOPLE_DIR, cloaks and --distractors are needed, but for --summary")
        cloaks = {file.stem: load(file) for file in sorted(given.cloaks.glob("*.safetensors"))}
        photos = {name: photos_of(given.people / name)[given.learn :] for name in cloaks}
        distractors = saved_faces(photo_files(given.distractors))
        about = {"data": given.people.resolve().parent.name, "people": len(photos)}
        about |= {"photos": sum(len(paths[: given.probes]) for paths in photos.values())}
        about |= {"distractors": len(distractors)}
        rows, angles = Rows(given.output), range(0, 360, given.step)
        for row in measure(photos, cloaks, load_models(given.targets, {}), distractors, angles, given.probes):
            rows.add({**about, **row})
    print(laid_out(summary(read(given.output))))


if __name__ == "__main__":
    main()
