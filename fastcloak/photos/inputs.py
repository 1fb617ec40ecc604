"""Whatever photos a caller has -> aligned faces."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sized
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fastcloak.photos.alignment import SIZE, align
from fastcloak.photos.detection import UNCERTAIN, choose_faces, find_faces
from fastcloak.photos.files import photo_files, photo_from_pil, read_photo
from fastcloak.system.device import check_fork
from fastcloak.system.errors import PhotoError

logger = logging.getLogger("fastcloak")

Pixels = npt.NDArray[np.uint8]


def saved_faces(images: Any) -> Tensor:
    """Load aligned faces in 8 bits, as saved photos hold them.

    Args:
        images: whatever `load_faces` takes, or none.

    Returns:
        [N, 3, 112, 112], uint8.
    """
    if is_empty(images):
        return torch.empty(0, 3, 112, 112, dtype=torch.uint8)
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


def load_faces(images: Any, *, who: str = "largest") -> torch.Tensor:
    """Turn whatever photos come in into aligned faces.

    Pictures of 112x112 pixels count as aligned and pass exactly, as value / 255 where they are uint8. In others faces
    are detected and aligned, whichever way up they are; where that cannot be told, a warning that names the photo is
    logged. Grey pictures get three equal channels; alpha is left out.

    Args:
        images: a tensor or array [N, 3, H, W], [N, H, W, 3] or with one grey channel, uint8 or float in [0, 1]; a
            folder of photos; or a list of paths, PIL images and single pictures ([3, H, W], [H, W, 3] or [H, W]), of
            any sizes, or a mapping of names to these.
        who: "largest" takes the largest face of each photo, "all" takes all of them.

    Returns:
        [N, 3, 112, 112], float32, in [0, 1], RGB, on CPU. With "all" N counts faces, in the order of photos.

    Raises:
        ValueError: not pictures: another rank or layout, another dtype, values outside [0, 1], NaN or Inf, none at all.
        TypeError: another type.
        PhotoError: a photo that cannot be read.
        FaceNotFoundError: a photo without a face.
        MissingExtraError: faces must be detected and the `faces` extra is not installed.
    """
    return named_faces(images, who=who)[1]


def named_faces(images: Any, *, who: str = "largest") -> tuple[list[str], torch.Tensor]:
    """`load_faces`, and for each face the name of its photo."""
    check_fork()
    choose_faces([], who)
    named = [(name, face) for name, picture in pictures(images) for face in aligned(picture, name, who)]
    return [name for name, _ in named], torch.stack([face for _, face in named]).contiguous()


def aligned(picture: torch.Tensor, name: str, who: str) -> list[torch.Tensor]:  # [3, H, W], uint8 or float32 in [0, 1]
    """The aligned faces of one picture that are meant, [3, 112, 112] float32 each."""
    if picture.shape[1:] == (SIZE, SIZE):
        return [_to_float(picture)]
    if picture.is_floating_point():
        picture = (picture * 255).round().to(torch.uint8)
    pixels = np.ascontiguousarray(picture.permute(1, 2, 0).numpy())
    faces = find_faces(pixels, who=who, name=name)
    if any(face.uncertain for face in faces):
        logger.warning("%s: %s", name, UNCERTAIN)
    crops = (align(pixels, face)[0] for face in faces)
    return [_to_float(torch.from_numpy(crop).permute(2, 0, 1)) for crop in crops]


def _to_float(picture: torch.Tensor) -> torch.Tensor:
    return picture if picture.is_floating_point() else picture.float() / 255


def pictures(images: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Read whatever photos come in one by one: as `load_faces` does, without looking for faces.

    Returns:
        For each its name in errors, and [3, H, W], uint8 or float32 in [0, 1], RGB.
    """
    if isinstance(images, (torch.Tensor, np.ndarray)):
        stack = _tensor(images, "images")
        if stack.dim() != 4:
            raise ValueError(
                f"images must be [N, 3, H, W] or [N, H, W, 3], got {list(stack.shape)}; "
                + ("for one picture pass images[None]" if stack.dim() in (2, 3) else "one picture per first index")
            )
        if len(stack) == 0:
            raise ValueError(f"images must hold at least one picture, got {list(stack.shape)}; pass some photos")
        stack = _channels_first(stack, "images")
        for index, picture in enumerate(stack):
            yield f"images[{index}]", _checked(picture, f"images[{index}]")
    elif isinstance(images, (str, PathLike)):
        if Path(images).is_file():
            raise ValueError(f"images must be a folder or a list, got the single photo {images}; pass [path]")
        for path in photo_files(images):
            yield str(path), _channels_last_uint8(read_photo(path).pixels)
    elif isinstance(images, (list, tuple, Mapping)):
        if not images:
            raise ValueError("images must hold at least one picture, got an empty list; pass some photos")
        named = images.items() if isinstance(images, Mapping) else enumerate(images)
        for key, image in named:
            yield from _listed(image, str(key) if isinstance(images, Mapping) else f"images[{key}]")
    else:
        cure = "; for one picture pass [image]" if isinstance(images, Image.Image) else ""
        raise TypeError(
            "images must be a tensor or array, a folder, or a list of paths, PIL images or arrays, got "
            f"{type(images).__name__}{cure or '; collect them in a list'}"
        )


def _listed(image: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(image, (str, PathLike)):
        if Path(image).is_dir():
            raise ValueError(f"{name} must be a photo, got the folder {image}; pass the folder alone, not in a list")
        yield f"{name} ({image})", _channels_last_uint8(read_photo(image).pixels)
    elif isinstance(image, Image.Image):
        try:
            pixels = photo_from_pil(image, name=name).pixels
        except OSError as error:
            raise PhotoError(
                f"{name} must be a whole picture, got a damaged one ({error}); copy the file anew"
            ) from error
        yield name, _channels_last_uint8(pixels)
    elif isinstance(image, (torch.Tensor, np.ndarray)):
        picture = _tensor(image, name)
        if picture.dim() == 2:
            picture = picture[None]
        if picture.dim() != 3:
            raise ValueError(
                f"{name} must be one picture, [3, H, W], [H, W, 3] or [H, W], got {list(picture.shape)}; "
                "pass a stack of pictures alone, not in a list"
            )
        yield name, _checked(_channels_first(picture[None], name)[0], name)
    else:
        raise TypeError(
            f"{name} must be a path, a PIL image, an array or a tensor, got {type(image).__name__}; convert it"
        )


def _tensor(images: Any, name: str) -> torch.Tensor:
    if isinstance(images, np.ndarray):
        if images.dtype.kind not in "uf" or (images.dtype.kind == "u" and images.dtype != np.uint8):
            raise _wrong_dtype(name, images.dtype)
        # A copy where torch would warn: read-only memory, foreign byte order, negative strides.
        with np.errstate(over="ignore"):
            return torch.from_numpy(np.array(images, np.uint8 if images.dtype == np.uint8 else np.float32, order="C"))
    tensor: torch.Tensor = images.detach().cpu()
    if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
        raise _wrong_dtype(name, tensor.dtype)
    return tensor if tensor.dtype == torch.uint8 else tensor.float()


def _wrong_dtype(name: str, dtype: Any) -> ValueError:
    return ValueError(
        f"{name} must be uint8 or float in [0, 1], got {dtype}; convert to uint8, or divide by the largest value"
    )


def _channels_first(stack: torch.Tensor, name: str) -> torch.Tensor:  # [N, C, H, W] or [N, H, W, C] -> [N, 3, H, W]
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


def _checked(picture: torch.Tensor, name: str) -> torch.Tensor:
    if picture.dtype == torch.uint8:
        return picture
    if not bool(torch.isfinite(picture).all()):
        raise ValueError(f"{name} must hold finite values in [0, 1], got NaN or Inf; read or compute the picture anew")
    low, high = float(picture.min()), float(picture.max())
    if low < 0 or high > 1:
        cure = "divide by 255" if low >= 0 and high > 2 else "clip it, or undo a normalisation such as (x - 0.5) / 0.5"
        raise ValueError(f"{name} must be in [0, 1] where it is float, got {low:g} to {high:g}; {cure}")
    return picture


def _channels_last_uint8(pixels: Pixels) -> torch.Tensor:  # [H, W, 3] -> [3, H, W]
    return torch.from_numpy(pixels).permute(2, 0, 1)
