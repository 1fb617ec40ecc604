"""A person's cloak: the mask, its bound, where it came from, and its file."""

from __future__ import annotations

import hashlib
import json
import numbers
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors import torch as tensors

from fastcloak.system.device import check_fork
from fastcloak.system.errors import CloakFileError
from fastcloak.system.files import atomic_write

SHAPE = (3, 112, 112)
FORMAT = "fastcloak.cloak"
SCHEMA = 1
LEAST_CHANGE = 0.5
"""Grey levels: less is rounded away in every photo of 8 bits."""
LARGEST_FILE = 4 * 1024 * 1024
"""Bytes. A cloak is 150 KB; a larger file is not read at all."""

Images = TypeVar("Images", torch.Tensor, np.ndarray, Image.Image, list)  # type: ignore[type-arg]


@dataclass(frozen=True, eq=False)
class Cloak:
    """A class-universal mask for one person's 112x112 aligned faces.

    Attributes:
        delta: [3, 112, 112] float32 CPU tensor, RGB on the [0, 1] scale, |delta| <= eps.
        eps: largest |delta|, on the [0, 1] scale.
        info: what made it, JSON-able: method, objective, models, seed, losses per step, image_gradients, versions, the
            backend and engine that ran. Nothing of the photos.

    Raises:
        ValueError: delta of another shape or dtype, not finite, or beyond eps; eps that is not a number in [0, 1]; info
            that JSON cannot hold.
    """

    delta: torch.Tensor
    eps: float
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        eps: object = self.eps
        info: object = self.info
        got = f"{self.delta.dtype} {list(self.delta.shape)} on {self.delta.device}"
        if tuple(self.delta.shape) != SHAPE or self.delta.dtype != torch.float32 or self.delta.device.type != "cpu":
            raise ValueError(f"delta must be a float32 CPU tensor {list(SHAPE)}, got {got}")
        # A bool is a number to Python, and not to anyone who writes eps.
        if isinstance(eps, bool) or not isinstance(eps, numbers.Real):
            raise ValueError(f"eps must be a number in [0, 1], got {eps!r}; pass a float such as 8 / 255")
        # The file holds repr(eps), and NumPy's numbers have reprs of their own.
        object.__setattr__(self, "eps", float(eps))
        if not 0 <= self.eps <= 1:
            raise ValueError(f"eps must be in [0, 1], got {self.eps}; grey levels are divided by 255")
        check_fork()
        largest = self.delta.abs().max().item()
        if not largest <= self.eps:  # also true for NaN
            raise ValueError(f"|delta| must be at most eps = {self.eps}, got {largest}")
        if not isinstance(info, Mapping):
            raise ValueError(f"info must be a mapping, got {type(info).__name__}; pass a dict")
        try:
            json.dumps(dict(info))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"info must hold only what JSON can: {error}; turn arrays into lists, NumPy's numbers into float"
            ) from error

    @property
    def id(self) -> str:
        """16 hexadecimal digits that tell this mask and its eps from any other; `info` does not matter."""
        payload = self.delta.contiguous().numpy().tobytes() + repr(self.eps).encode()
        return hashlib.sha256(payload).hexdigest()[:16]

    @property
    def idle(self) -> str | None:
        """Why this cloak protects nothing: it changes no grey level, or nothing was learnt; None for any other."""
        largest = 255 * self.delta.abs().max().item()
        if largest < LEAST_CHANGE:
            return f"its largest change is {largest:g} grey levels, which 8 bits round to none"
        for name in ("steps", "alpha"):
            if self.info.get(name) == 0:
                return f"it was made with {name} 0, so that nothing was learnt"
        return None

    def apply(self, images: Images) -> Images:
        """Adds the mask to aligned crops: clip(x + delta, 0, 1).

        Args:
            images: a 112x112 RGB PIL image; a tensor or array [.., 3, 112, 112], or array [.., 112, 112, 3], uint8 or
                float of 16 to 64 bits in [0, 1], in any memory layout; or a list of these.

        Returns:
            The same type, shape and dtype, as a new object. uint8 is rounded to the nearest level, never truncated.

        Raises:
            ValueError: another size, dtype, range or PIL mode. For photos of any size use `fastcloak.protect`.
            TypeError: another type.
        """
        check_fork()
        if isinstance(images, list):
            return [self.apply(image) for image in images]
        if isinstance(images, Image.Image):
            if images.mode != "RGB":
                raise ValueError(
                    f"PIL images must be of mode RGB, got {images.mode}; image.convert('RGB') makes one, without alpha"
                )
            return Image.fromarray(self.apply(np.array(images)))
        if isinstance(images, np.ndarray):
            return self.apply(torch.from_numpy(_for_torch(images))).numpy().astype(images.dtype, copy=False)
        if not isinstance(images, torch.Tensor):
            raise TypeError(
                f"images must be a PIL image, an array, a tensor or a list of these, got {type(images).__name__}"
            )
        delta = self.delta.to(images.device)
        if tuple(images.shape[-3:]) != SHAPE:
            if tuple(images.shape[-3:]) != (112, 112, 3):
                raise ValueError(
                    f"images must be aligned crops [.., 3, 112, 112] or [.., 112, 112, 3], got {list(images.shape)}; "
                    "use fastcloak.protect for whole photos"
                )
            delta = delta.permute(1, 2, 0)
        if images.dtype == torch.uint8:
            return (images.float() / 255 + delta).clamp_(0, 1).mul_(255).round_().to(torch.uint8)
        if not images.is_floating_point():
            raise ValueError(f"images must be uint8 or float in [0, 1], got {images.dtype}")
        if images.numel() and not (images.min() >= 0 and images.max() <= 1):
            raise ValueError(
                f"float images must be in [0, 1], got {images.min().item():g} to {images.max().item():g}; divide by 255"
            )
        return (images.float() + delta).clamp_(0, 1).to(images.dtype)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the cloak to a safetensors file, atomically: a crash leaves the old file or the new one.

        The file holds one tensor, `delta`, and the metadata `format`, `schema`, `eps`, `info` (JSON) and `sha256` of
        all of these, which `load` checks.
        """
        metadata = {"format": FORMAT, "schema": str(SCHEMA), "eps": repr(self.eps), "info": json.dumps(dict(self.info))}
        metadata["sha256"] = digest(self.delta, metadata)
        atomic_write(Path(path), tensors.save({"delta": self.delta.contiguous()}, metadata))


def load(path: str | os.PathLike[str]) -> Cloak:
    """Reads a cloak file.

    Raises:
        CloakFileError: not a safetensors file, truncated, altered, of a newer schema, or with a mask beyond its eps.
        OSError: the file cannot be opened.
    """
    path = Path(path)
    kind = path.stat().st_mode
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(f"the cloak must be a file such as me.safetensors, got the folder {path}")
    if not stat.S_ISREG(kind):  # open would wait for a pipe without end
        raise CloakFileError(f"{path} is not a file but a pipe or device; copy the cloak to a file")
    # The bytes are read once and kept: a mapped file could change under the mask, or end the process when it shrinks.
    with open(path, "rb") as file:
        payload = file.read(LARGEST_FILE + 1)
    if len(payload) > LARGEST_FILE:
        raise CloakFileError(f"{path} is not a cloak: over {LARGEST_FILE} bytes, a cloak has about 150,000")
    try:
        content = tensors.load(payload)
        header = json.loads(payload[8 : 8 + int.from_bytes(payload[:8], "little")].decode())
    # The file is not to be trusted: whatever a parser trips over is a fault of the file.
    except Exception as error:
        raise CloakFileError(f"{path} is not a readable safetensors file: {error}") from error
    metadata, names = header.get("__metadata__") or {}, list(content)
    delta = content["delta"] if names == ["delta"] else None
    if metadata.get("format") != FORMAT or delta is None:
        raise CloakFileError(f"{path} is not a fastcloak cloak: format {metadata.get('format')!r}, tensors {names}")
    if metadata.get("schema") != str(SCHEMA):
        raise CloakFileError(
            f"{path} has schema {metadata.get('schema')!r}, this version reads {SCHEMA}; update fastcloak"
        )
    if delta.dtype != torch.float32 or tuple(delta.shape) != SHAPE:
        raise CloakFileError(f"{path} holds no mask of float32 {list(SHAPE)}, got {delta.dtype} {list(delta.shape)}")
    if metadata.get("sha256") != digest(delta, metadata):
        raise CloakFileError(
            f"{path} was altered or damaged: its hash does not match its content; fit or copy it again"
        )
    try:
        # RecursionError: lists within lists within lists.
        return Cloak(delta, float(metadata["eps"]), json.loads(metadata["info"]))
    except (ValueError, KeyError, RecursionError) as error:
        raise CloakFileError(f"{path} holds no valid cloak: {error}") from error


def _for_torch(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same array, or where PyTorch would refuse its strides, byte order or read-only memory, a copy."""
    native = images.dtype.newbyteorder("=")
    if native not in (np.uint8, np.float16, np.float32, np.float64):
        raise ValueError(f"images must be uint8 or float of 16 to 64 bits in [0, 1], got {images.dtype}; convert them")
    return np.require(images, native, ["C_CONTIGUOUS", "WRITEABLE"])


def digest(delta: torch.Tensor, metadata: Mapping[str, str]) -> str:
    """SHA-256 over the metadata other than the hash itself, then dtype, shape and values of the mask."""
    hashed = {name: value for name, value in metadata.items() if name != "sha256"}
    header = json.dumps([hashed, str(delta.dtype), list(delta.shape)], sort_keys=True)
    payload = delta.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(header.encode() + payload).hexdigest()
