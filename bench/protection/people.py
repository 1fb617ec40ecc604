"""Whose photos are cloaked and judged, and the networks: loaded here for all of `bench.protection`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastcloak import load_model
from fastcloak.cli.options import parse_model
from fastcloak.models import Surrogate
from fastcloak.photos.inputs import load_faces, photo_files, saved_faces
from fastcloak.system.packages import orl_folder

LEAST_PROBES = 2
PEOPLE_COLUMNS = ("data", "learn", "first", "count", "distractors")


@dataclass(frozen=True)
class People:
    """Whose cloaks are fitted and judged.

    Attributes:
        data: name of the collection.
        learn: the first so many photos of a person teach, the others judge.
        first: so many people were skipped.
        learnt_from: person -> [learn, 3, 112, 112] float in [0, 1].
        photos: person -> files of all photos.
        probes: person -> faces of the photos that judge, [N, 3, 112, 112] uint8.
        distractors: [M, 3, 112, 112] uint8.
    """

    data: str
    learn: int
    first: int
    learnt_from: dict[str, Tensor]
    photos: dict[str, list[Path]]
    probes: dict[str, Tensor]
    distractors: Tensor

    @property
    def judged(self) -> dict[str, list[Path]]:
        """Person -> files of the photos that judge."""
        return {name: files[self.learn :] for name, files in self.photos.items()}

    @property
    def albums(self) -> dict[str, Tensor]:
        """Person -> faces of all photos, [N, 3, 112, 112] uint8."""
        learnt = {name: (faces * 255).round().byte() for name, faces in self.learnt_from.items()}
        return {name: torch.cat((learnt[name], faces)) for name, faces in self.probes.items()}

    def columns(self) -> dict[str, str]:
        """What says in a row whom it is about."""
        values = (self.data, self.learn, self.first, len(self.probes), len(self.distractors))
        return dict(zip(PEOPLE_COLUMNS, map(str, values), strict=True))


def people_folders(folder: Path | None) -> list[Path]:
    if folder is None:
        return [orl_folder() / f"s{person}" for person in range(1, 41)]
    return sorted(person for person in folder.iterdir() if person.is_dir())


def photos_of(person: Path) -> list[Path]:
    """Photos of one person; the package that holds ORL adds a target.jpg to one of its people."""
    return [file for file in photo_files(person) if file.name != "target.jpg"]


def read_people(
    folder: Path | None, distractors: Path | None = None, *, learn: int = 6, first: int = 0, count: int = 12
) -> People:
    """Load the people of a folder of folders, or of ORL; without distractors, those who get no cloak are they."""
    folders = people_folders(folder)
    chosen = folders[first : first + count]
    photos = {person.name: photos_of(person) for person in chosen}
    for name, files in photos.items():
        if len(files) < learn + LEAST_PROBES:
            raise ValueError(f"{name} must have {learn + LEAST_PROBES} photos or more, got {len(files)}; learn fewer")
    others = [person for person in folders if person not in chosen]
    if not chosen or not (distractors or others):
        raise ValueError(f"people must leave some to cloak and some to distract, got {len(chosen)} of {len(folders)}")
    strangers = [photos_of(other) for other in others] if distractors is None else [photo_files(distractors)]
    return People(
        data="orl" if folder is None else folder.resolve().name,
        learn=learn,
        first=first,
        learnt_from={name: load_faces(files[:learn]) for name, files in photos.items()},
        photos=photos,
        probes={name: saved_faces(files[learn:]) for name, files in photos.items()},
        distractors=torch.cat([saved_faces(files) for files in strangers]),
    )


def load_models(specifications: Iterable[str], loaded: dict[str, Surrogate]) -> list[Surrogate]:
    """Networks, and ensembles of them written a&b; each is loaded once and kept in `loaded`.

    Raises:
        ValueError: two of one name.
    """
    models = []
    for specification in specifications:
        parts = specification.split("&")
        for part in parts:
            if part not in loaded:
                loaded[part] = load_model(parse_model(part), "auto")
        models.append(loaded[parts[0]] if len(parts) == 1 else load_model([loaded[part] for part in parts]))
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise ValueError(f"models must have names of their own, got {names}; rename a file")
    return models


def members(model: Surrogate) -> set[str]:
    return {member.name for member in model.members}
