"""People in groups that share a pass: as many photos each, and together no more than memory holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from fastcloak.cloak import SHAPE
from fastcloak.fitting.options import FitConfig
from fastcloak.models import Surrogate


@dataclass(frozen=True)
class Photos:
    """A person's photos as they were read."""

    names: list[str]
    faces: torch.Tensor  # [N, 3, 112, 112] float32 in [0, 1]
    copied: list[str]  # which ones were copies of others and left out
    config: FitConfig


@dataclass(frozen=True)
class Person:
    """Whom a cloak is learnt for."""

    faces: torch.Tensor  # [N, 3, 112, 112] float32 in [0, 1]
    features: torch.Tensor  # [N, D] unit features of the clean faces
    config: FitConfig
    about: dict[str, int]  # how many photos are not as they should be, for the cloak's info


def grouped(
    people: Iterable[tuple[str, Photos]],
    persons_per_pass: Callable[[int], int],
    begun: Mapping[str, tuple[str, ...]],
) -> Iterator[dict[str, Photos]]:
    """Takes people in order and yields them as soon as a pass is full of people with the same number of photos.

    Those of a pass that was begun wait for each other, since they round together.
    """
    waiting: dict[tuple[int, FitConfig] | tuple[str, ...], dict[str, Photos]] = {}
    for name, photos in people:
        together, alike = begun.get(name), (len(photos.faces), photos.config)
        group = waiting.setdefault(together or alike, {})
        group[name] = photos
        if together:
            if len(group) == len(together):
                del waiting[together]
                yield {name: group[name] for name in together}
        elif len(group) >= persons_per_pass(len(photos.faces)):
            yield waiting.pop(alike)
    yield from waiting.values()


def persons_per_pass(surrogate: Surrogate, config: FitConfig, memory_budget: int | None) -> Callable[[int], int]:
    """How many people with N photos each one pass takes."""
    if memory_budget is None and surrogate.device.type == "cpu":
        return lambda photos: 1
    budget = torch.cuda.mem_get_info(surrogate.device)[0] // 4 if memory_budget is None else memory_budget
    per_photo, picture = _bytes_per_photo(surrogate), 4 * math.prod(SHAPE)

    def most(photos: int) -> int:
        # Besides the network's: faces, handed over and held, as many cloaked, and what a step changes.
        faces = 2 * photos + config.pictures(photos)
        return max(1, budget // (config.batch(photos) * per_photo + (faces + 7) * picture))

    return most


def _bytes_per_photo(surrogate: Surrogate) -> int:
    """Memory of one photo's forward and backward pass: what autograd keeps, and what is in hand besides.

    That is as much again, or four tensors of the largest size where little is kept: an operation's input and output, a
    shortcut around it, and the gradient of one of them.
    """
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {tensor.untyped_storage().data_ptr() for tensor in (*surrogate.parameters(), *surrogate.buffers())}
    x = torch.zeros(1, *SHAPE, device=surrogate.device, requires_grad=True)
    seen = _Largest()  # type: ignore[no-untyped-call]
    with saved_tensors_hooks(keep, lambda tensor: tensor), seen:
        embeddings = surrogate(x)  # held until the count is done, so that no address is used twice
    activations = sum(size for address, size in kept.items() if address not in weights)
    del embeddings
    in_hand: int = max(activations, 4 * seen.bytes)
    return activations + in_hand + 4 * x.numel() * x.element_size()


class _Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The size of the largest tensor that an operation gives, in bytes."""

    bytes: int = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = operation(*args, **(kwargs or {}))
        for result in results if isinstance(results, (tuple, list)) else [results]:
            if isinstance(result, torch.Tensor):
                self.bytes = max(self.bytes, result.numel() * result.element_size())
        return results
