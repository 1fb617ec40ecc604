"""Whatever photos a caller has -> files, pictures, aligned faces."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sized
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastcloak.photos.alignment import SIZE, align
from fastcloak.photos.detection import UNCERTAIN, find_faces
from fastcloak.photos.files import SUFFIXES, read_photo, upright
from fastcloak.system.device import check_fork
from fastcloak.system.errors import PhotoError

__all__ = ["each_face", "is_empty", "load_faces", "named_faces", "photo_files", "pictures", "saved_faces"]

logger = logging.getLogger("fastcloak")


def photo_files(paths: str | PathLike[str] | Iterable[str | PathLike[str]], *, recursive: bool = False) -> list[Path]:
    """Photo files, in the given order; a folder stands for the photos in it, sorted by name.

    Args:
        paths: files and folders. Of a folder only names with a suffix in `SUFFIXES` count, hidden files do not.
        recursive: take the photos of subfolders too, but not of hidden ones and not through links.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: there is no photo in a folder, or no path at all.
    """
    found: list[Path] = []
    for path in map(Path, [paths] if isinstance(paths, (str, PathLike)) else paths):
        if path.is_dir():
            inside = sorted(_photos_in(path, recursive))
            if not inside:
                raise ValueError(
                    f"{path} must be a folder with photos ({', '.join(SUFFIXES)}), got none in it; name another"
                )
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"{path} must be a photo or a folder of photos, got no such path; check its name")
    if not found:
        raise ValueError("paths must hold at least one photo or folder, got none; name some")
    return found


def _photos_in(folder: Path, recursive: bool) -> Iterator[Path]:
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if recursive and not entry.is_symlink():
                yield from _photos_in(entry, recursive)
        elif entry.suffix.lower() in SUFFIXES and entry.is_file():
            yield entry


def load_faces(images: Any) -> Tensor:
    """Turn whatever photos come in into aligned faces, the largest of each photo.

    Pictures of 112x112 pixels count as aligned and pass exactly, as value / 255 where they are uint8. In others the
    face is detected and aligned, whichever way up it is; where that cannot be told, a warning that names the photo is
    logged. Grey pictures get three equal channels; alpha is left out.

    Args:
        images: a tensor or array [N, 3, H, W], [N, H, W, 3] or with one grey channel, uint8 or float in [0, 1]; a
            folder of photos; or a list of paths, PIL images and single pictures ([3, H, W], [H, W, 3] or [H, W]), of
            any sizes, or a mapping of names to these.

    Returns:
        [N, 3, 112, 112], float32, in [0, 1], RGB, on CPU.

    Raises:
        ValueError: not pictures: another rank or layout, another dtype, values outside [0, 1], NaN or Inf, none at all.
        TypeError: another type.
        PhotoError: a photo that cannot be read.
        FaceNotFoundError: a photo without a face.
        MissingExtraError: faces must be detected and the `faces` extra is not installed.
    """
    return named_faces(images)[1]


def named_faces(images: Any) -> tuple[list[str], Tensor]:
    """`load_faces`, and for each face the name of its photo."""
    names, faces = zip(*each_face(images), strict=True)
    return list(names), torch.stack(faces).contiguous()


def each_face(images: Any) -> Iterator[tuple[str, Tensor]]:
    """`named_faces` one by one: the name of a photo and its face, [3, 112, 112], once it is asked for."""
    check_fork()
    for name, picture in pictures(images):
        if picture.shape[1:] != (SIZE, SIZE):
            if picture.is_floating_point():
                picture = (picture * 255).round().to(torch.uint8)
            pixels = np.ascontiguousarray(picture.permute(1, 2, 0).numpy())
            (face,) = find_faces(pixels, name=name)
            if face.uncertain:
                logger.warning("%s: %s", name, UNCERTAIN)
            picture = _channels_last(align(pixels, face)[0])
        yield name, picture if picture.is_floating_point() else picture.float() / 255


def saved_faces(images: Any) -> Tensor:
    """`load_faces` in 8 bits, as saved photos hold them, [N, 3, 112, 112] uint8; N is 0 where `is_empty(images)`."""
    if is_empty(images):
        return torch.empty(0, 3, SIZE, SIZE, dtype=torch.uint8)
    return load_faces(images).mul(255).round_().to(torch.uint8)


def is_empty(images: Any) -> bool:
    """Whether these are no photos at all: None, or an empty list, tensor or mapping.

    Raises:
        ValueError: the empty path, which would be the current folder.
    """
    if isinstance(images, str) and not images:
        raise ValueError(
            "photos and distractors must not be the empty path, got ''; name a folder, or pass None for none"
        )
    if isinstance(images, Mapping):
        return all(is_empty(group) for group in images.values())
    return images is None or (isinstance(images, Sized) and len(images) == 0)


def pictures(images: Any) -> Iterator[tuple[str, Tensor]]:
    """Read whatever photos come in one by one: as `load_faces` does, without looking for faces.

    Returns:
        For each its name in errors, and [3, H, W], uint8 or float32 in [0, 1], RGB.
    """
    if isinstance(images, (Tensor, np.ndarray)):
        stack = _tensor(images, "images")
        if stack.dim() != 4:
            raise ValueError(
                f"images must be [N, 3, H, W] or [N, H, W, 3], got {list(stack.shape)}; "
                + ("for one picture pass images[None]" if stack.dim() in (2, 3) else "one picture per first index")
            )
        if len(stack) == 0:
            raise ValueError(f"images must hold at least one picture, got {list(stack.shape)}; pass some photos")
        for index, picture in enumerate(_channels_first(stack, "images")):
            yield f"images[{index}]", _checked(picture, f"images[{index}]")
    elif isinstance(images, (str, PathLike)):
        if Path(images).is_file():
            raise ValueError(f"images must be a folder or a list, got the single photo {images}; pass [path]")
        for path in photo_files(images):
            yield str(path), _channels_last(read_photo(path).pixels)
    elif isinstance(images, (list, tuple, Mapping)):
        if not images:
            raise ValueError("images must hold at least one picture, got an empty list; pass some photos")
        named = images.items() if isinstance(images, Mapping) else enumerate(images)
        for key, image in named:
            name = str(key) if isinstance(images, Mapping) else f"images[{key}]"
            is_path = isinstance(image, (str, PathLike))
            yield f"{name} ({image})" if is_path else name, _one_picture(image, name)
    else:
        hint = "for one picture pass [image]" if isinstance(images, Image.Image) else "collect them in a list"
        raise TypeError(
            "images must be a tensor or array, a folder, or a list of paths, PIL images or arrays, got "
            f"{type(images).__name__}; {hint}"
        )


def _one_picture(image: Any, name: str) -> Tensor:
    if isinstance(image, (str, PathLike)):
        if Path(image).is_dir():
            raise ValueError(f"{name} must be a photo, got the folder {image}; pass the folder alone, not in a list")
        return _channels_last(read_photo(image).pixels)
    if isinstance(image, Image.Image):
        try:
            return _channels_last(np.array(upright(image, name=name).convert("RGB")))
        except OSError as error:
            raise PhotoError(
                f"{name} must be a whole picture, got a damaged one ({error}); copy the file again"
            ) from error
    if not isinstance(image, (Tensor, np.ndarray)):
        raise TypeError(
            f"{name} must be a path, a PIL image, an array or a tensor, got {type(image).__name__}; convert it"
        )
    picture = _tensor(image, name)
    if picture.dim() == 2:
        picture = picture[None]
    if picture.dim() != 3:
        raise ValueError(
            f"{name} must be one picture, [3, H, W], [H, W, 3] or [H, W], got {list(picture.shape)}; "
            "pass a stack of pictures alone, not in a list"
        )
    return _checked(_channels_first(picture[None], name)[0], name)


def _tensor(images: Any, name: str) -> Tensor:  # uint8 or float32
    if isinstance(images, np.ndarray):
        known = images.dtype == np.uint8 or images.dtype.kind == "f"
    else:
        known = images.dtype == torch.uint8 or images.is_floating_point()
    if not known:
        raise ValueError(
            f"{name} must be uint8 or float in [0, 1], got {images.dtype}; "
            "convert to uint8, or divide by the largest value"
        )
    if isinstance(images, np.ndarray):
        # A copy where torch would warn: read-only memory, foreign byte order, negative strides.
        with np.errstate(over="ignore"):
            dtype = np.uint8 if images.dtype == np.uint8 else np.float32
            return torch.from_numpy(np.array(images, dtype, order="C"))
    tensor: Tensor = images.detach().cpu()
    return tensor if tensor.dtype == torch.uint8 else tensor.float()


def _channels_first(stack: Tensor, name: str) -> Tensor:  # [N, C, H, W] or [N, H, W, C] -> [N, 3, H, W]
    shape = list(stack.shape)
    places = [place for place in (1, 3) if shape[place] == 3] or [place for place in (1, 3) if shape[place] == 1]
    if not places or 0 in shape:
        raise ValueError(
            f"{name} must have 3 colour channels or 1 grey one, [.., 3, H, W] or [.., H, W, 3], got {shape[1:]}; "
            "leave alpha out, and convert other colours to RGB"
        )
    if len(places) == 2:
        raise ValueError(
            f"{name} must show by its shape where the channels are, got {shape[1:]}, which reads both ways; "
            "pass PIL images"
        )
    first = stack if places[0] == 1 else stack.permute(0, 3, 1, 2)
    return first.expand(-1, 3, -1, -1).contiguous()


def _checked(picture: Tensor, name: str) -> Tensor:
    if picture.dtype == torch.uint8:
        return picture
    if not bool(torch.isfinite(picture).all()):
        raise ValueError(f"{name} must hold finite values in [0, 1], got NaN or Inf; read or compute the picture again")
    low, high = float(picture.min()), float(picture.max())
    if low < 0 or high > 1:
        hint = "divide by 255" if low >= 0 and high > 2 else "clip it, or undo a normalisation such as (x - 0.5) / 0.5"
        raise ValueError(f"{name} must be in [0, 1] where it is float, got {low:g} to {high:g}; {hint}")
    return picture


def _channels_last(pixels: Any) -> Tensor:  # [H, W, 3] -> [3, H, W]
    return torch.from_numpy(pixels).permute(2, 0, 1)
