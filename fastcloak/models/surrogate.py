"""A face-embedding network behind one contract: aligned faces in, raw embeddings out.

Everything that differs between networks (picture size, normalisation, channel order, mean embedding) belongs to the
Surrogate, so that the loop knows none of it.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcloak.system.checks import whole
from fastcloak.system.device import check_fork

__all__ = ["FACE_SIZE", "MAX_SIDE", "Ensemble", "Surrogate", "resample_matrix", "unit_features"]

FACE_SIZE = 112
"""Side in pixels of an aligned face, the size every surrogate takes."""
MAX_SIDE = 1024
"""Largest side in pixels that a network itself may take."""


class Surrogate(nn.Module):
    """A frozen face-embedding network.

    embedding = net(flip(resample(faces * scale + shift))) - mean_embedding

    Attributes:
        name: what to call it in tables and files.
        input_size: the side in pixels that the network itself takes; faces are resampled to it from 112.
        embedding_size: D, the length of an embedding.
        folded: whether `prepare` has folded its batch normalisations.
        notes: what `prepare` did and did not do.
    """

    scale: Tensor  # [1, 3, 1, 1]
    shift: Tensor  # [1, 3, 1, 1]
    rows: Tensor | None  # [S, 112]
    columns: Tensor | None  # [S, 112]
    mean_embedding: Tensor | None  # [D]

    def __init__(
        self,
        net: Callable[[Tensor], Tensor],
        *,
        name: str,
        embedding_size: int,
        input_size: int = FACE_SIZE,
        scale: float | Sequence[float] | Tensor = 1.0,
        shift: float | Sequence[float] | Tensor = 0.0,
        bgr: bool = False,
        mean_embedding: Sequence[float] | Tensor | None = None,
        chip: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Wrap a network; `load_model` is the usual way to make one, and explains the other arguments.

        Args:
            net: float [n, 3, input_size, input_size] -> [n, D]. A module is registered, not copied.
            embedding_size: D.
            chip: rows [S, 112] and columns [S, 112] of the resampling from 112; None resizes the whole crop.
        """
        super().__init__()
        self.net, self.name, self.bgr = net, name, bgr
        self.input_size, self.embedding_size = input_size, embedding_size
        self.folded = False
        self.notes: tuple[str, ...] = ()
        self._channels_last = False
        rows, columns = chip or (None, None)
        if chip is None and input_size != FACE_SIZE:
            rows = columns = resample_matrix(input_size)
        tensors = {"scale": _per_channel("scale", scale), "shift": _per_channel("shift", shift)}
        mean = None if mean_embedding is None else _numbers(mean_embedding)
        if mean is not None and (mean.shape != (embedding_size,) or not mean.isfinite().all()):
            raise ValueError(
                f"mean_embedding must be {embedding_size} finite numbers, the network's embedding size, got "
                f"{list(mean.shape)}"
            )
        for key, tensor in {**tensors, "rows": rows, "columns": columns, "mean_embedding": mean}.items():
            self.register_buffer(key, tensor, persistent=False)

    @property
    def memory_format(self) -> torch.memory_format:
        """How pictures lie in memory that go to the network; setting it lays out the network's weights too."""
        # A torch.memory_format cannot be kept: pickle looks for its module by name, and where Ray was imported before
        # torch takes the user's script, which other processes do not have.
        return torch.channels_last if self._channels_last else torch.contiguous_format

    @memory_format.setter
    def memory_format(self, memory_format: torch.memory_format) -> None:
        self._channels_last = memory_format == torch.channels_last
        if isinstance(self.net, nn.Module):
            self.net.to(memory_format=memory_format)

    @property
    def members(self) -> tuple[Surrogate, ...]:
        """The surrogates of an ensemble; of any other surrogate, itself alone."""
        return (self,)

    @property
    def device(self) -> torch.device:
        """Where faces are expected."""
        return self.scale.device

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in; faces and embeddings are float32 also where this is bfloat16."""
        if isinstance(self.net, nn.Module):
            for tensor in itertools.chain(self.net.parameters(), self.net.buffers()):
                if tensor.is_floating_point():
                    return tensor.dtype
        return self.scale.dtype

    @property
    def takes(self) -> tuple[torch.dtype, torch.memory_format]:
        """In which dtype and memory format normalised pictures go into the network without another copy."""
        direct = isinstance(self.net, nn.Module) and self.rows is None and not self.bgr
        return (self.dtype, self.memory_format) if direct else (self.scale.dtype, torch.contiguous_format)

    def forward(self, faces: Tensor) -> Tensor:
        """Raw embeddings of aligned faces.

        Args:
            faces: [n, 3, 112, 112], float in [0, 1], RGB, on the surrogate's device.

        Returns:
            [n, D], not normalised, float32 (float64 after `.double()`), differentiable with respect to `faces`.

        Raises:
            ValueError: another shape, or whole numbers. The range is not read: that would wait for the device.
        """
        if faces.ndim != 4 or faces.shape[1:] != (3, FACE_SIZE, FACE_SIZE) or not faces.is_floating_point():
            raise ValueError(
                f"faces must be [n, 3, {FACE_SIZE}, {FACE_SIZE}] float in [0, 1], got {list(faces.shape)} "
                f"{faces.dtype}; align the photos first, and divide whole numbers by 255"
            )
        return self.embed(self.normalise(faces)).to(self.scale.dtype)

    def normalise(self, faces: Tensor) -> Tensor:
        """Faces * scale + shift, [n, 3, 112, 112]: the part that a fused kernel may do itself."""
        return faces * self.scale + self.shift

    def embed(self, pictures: Tensor) -> Tensor:
        """Raw embeddings [n, D] of normalised pictures [n, 3, 112, 112]: all of `forward` after `normalise`.

        They have the dtype of the network, or float32 where a mean embedding was subtracted.
        """
        embeddings = self.net(self.net_input(pictures)).flatten(1)
        return embeddings if self.mean_embedding is None else embeddings - self.mean_embedding

    def net_input(self, pictures: Tensor) -> Tensor:
        """What the network itself takes: normalised pictures in its size, channel order, dtype and memory format."""
        if self.rows is not None and self.columns is not None:
            pictures = self.rows @ pictures @ self.columns.T
        if self.bgr:
            pictures = pictures.flip(1)
        return pictures.to(self.dtype, memory_format=self.memory_format)

    def copy(self) -> Surrogate:
        """Copy every tensor; a network that is not a torch module is shared."""
        memo: dict[int, Any] = {} if isinstance(self.net, nn.Module) else {id(self.net): self.net}
        return copy.deepcopy(self, memo)

    def extra_repr(self) -> str:
        """Name and sizes, for print."""
        return f"{self.name!r}, input_size={self.input_size}, embedding_size={self.embedding_size}"


class Ensemble(Surrogate):
    """Several surrogates as one: unit embeddings side by side, divided by sqrt(number of members).

    The result is a unit vector, and the cosine of two of them is the mean of the members' cosines: a loop that
    maximises a distance between embeddings needs no notion of members.
    """

    def __init__(self, members: Sequence[Surrogate], *, name: str | None = None) -> None:
        """Combine members, which are registered, not copied.

        Raises:
            ValueError: no members, or not all of them on one device.
        """
        devices = {member.device for member in members}
        if len(devices) != 1:
            raise ValueError(
                f"members must be one or more on one device, got {len(members)} on {sorted(map(str, devices))}"
            )
        size = sum(member.embedding_size for member in members)
        name = name or "+".join(member.name for member in members)
        super().__init__(nn.ModuleList(members), name=name, embedding_size=size)
        self.scale, self.shift = (tensor.to(members[0].device) for tensor in (self.scale, self.shift))

    @property
    def members(self) -> tuple[Surrogate, ...]:
        """The surrogates it is made of."""
        assert isinstance(self.net, nn.ModuleList)
        return tuple(member for member in self.net if isinstance(member, Surrogate))

    @property
    def takes(self) -> tuple[torch.dtype, torch.memory_format]:
        """Faces in [0, 1], float32: every member normalises for itself."""
        return self.scale.dtype, torch.contiguous_format

    def embed(self, pictures: Tensor) -> Tensor:
        """Return unit embeddings [n, sum of the members' D] of faces in [0, 1]."""
        members = self.members
        units = [F.normalize(member(pictures), dim=1) for member in members]
        return torch.cat(units, 1) / math.sqrt(len(members))

    def copy(self) -> Ensemble:
        """Copy every member."""
        return Ensemble([member.copy() for member in self.members], name=self.name)


def resample_matrix(size: int) -> Tensor:
    """Bilinear resize of one axis from 112 to `size` as a matrix [size, 112], with antialiasing when it shrinks.

    Both axes of an axis-aligned resampling are independent: rows @ picture @ columns.T. As matrix products its
    gradient is deterministic on every device, which that of grid_sample and interpolate is not.
    """
    identity, shrinks = torch.eye(FACE_SIZE, dtype=torch.float64)[None, None], size < FACE_SIZE
    made = F.interpolate(identity, (size, FACE_SIZE), mode="bilinear", align_corners=False, antialias=shrinks)
    return made[0, 0].float()


def _numbers(value: Any) -> Tensor:  # empty, which fits nowhere, where there are no numbers
    try:
        return torch.as_tensor(value, dtype=torch.float32).detach().clone()
    except (TypeError, ValueError, RuntimeError):
        return torch.empty(0)


def _per_channel(name: str, value: float | Sequence[float] | Tensor) -> Tensor:
    tensor = _numbers(value).flatten()
    if tensor.numel() not in (1, 3) or not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} must be one finite number or three in RGB order, got {value!r}")
    return tensor.expand(3).reshape(1, 3, 1, 1).clone()


def unit_features(surrogate: Surrogate, faces: torch.Tensor, batch_size: int = 32) -> torch.Tensor:
    """Embeds faces and divides each embedding by its length.

    Args:
        surrogate: what `load_model` returns.
        faces: [n, 3, 112, 112] float in [0, 1], on any device.
        batch_size: faces per forward pass, at least 1.

    Returns:
        [n, D] float32 on the surrogate's device, rows of length 1, without a graph.

    Raises:
        ValueError: another batch size, or a network that does not give one embedding a face.
        FloatingPointError: an embedding is NaN, Inf or zero; names the surrogate and the face.
    """
    check_fork()
    batch_size = whole("batch_size", batch_size, 1)
    with torch.no_grad():
        batches = torch.split(faces, batch_size)
        embeddings = torch.cat([surrogate(batch.to(surrogate.device)) for batch in batches])
    if len(embeddings) != len(faces):
        raise ValueError(
            f"{surrogate.name} must give every picture its own embedding, whatever else is in the batch, got "
            f"{len(embeddings)} for {len(faces)} faces in batches of {batch_size}; check what its function does with "
            "the first dimension"
        )
    length = torch.linalg.vector_norm(embeddings, dim=1)
    bad = ~(length.isfinite() & (length > 0))
    if bad.any():
        raise FloatingPointError(
            f"{surrogate.name} must give finite embeddings other than zero, got {embeddings[bad][0].tolist()[:4]} ... "
            f"for face {int(bad.nonzero()[0])}; check the network, its scale and shift"
        )
    return F.normalize(embeddings, dim=1)
