"""What the loop starts from and what it has learnt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fastcloak.cloak import SHAPE
from fastcloak.fitting.options import FitConfig
from fastcloak.ops.augment import DRAWS


@dataclass(frozen=True)
class Learnt:
    """What one pass has learnt so far, on its device.

    Attributes:
        steps: how many are done.
        delta: [P, 3, 112, 112] float32.
        losses: [all steps, P], mean over the photos of the step; later rows are still to come.
        gap: [P], largest duality gap of any hull weights.
        moved: [P] bool, whether any gradient was other than zero.
    """

    steps: int
    delta: torch.Tensor
    losses: torch.Tensor
    gap: torch.Tensor
    moved: torch.Tensor


def draws(config: FitConfig, photos: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Start noise [N, 3, 112, 112], photo indices [steps, M, b] and numbers of views [steps, M, b, DRAWS].

    They are the same for every person.
    opom starts every photo from its own noise; ga starts from the mean of the same noise, which is the mask that this
    amounts to. Noise of full strength in the mask itself costs much of what 16 steps can reach (docs/method.md).
    ga draws photos without replacement until all were used, then reshuffles, on through all steps; a batch at the end
    of one pass takes its rest from the next, so that all photos are used equally often.
    """
    generator = torch.Generator().manual_seed(config.seed)
    b, inner_steps, opom = config.batch(photos), config.inner(), config.method == "opom"
    start = torch.zeros(photos, *SHAPE, dtype=torch.float32)
    if config.random_start and config.steps:
        start.uniform_(-1, 1, generator=generator).mul_(float32_at_most(config.eps))
    if config.grey:
        start = start[:, :1].repeat(1, 3, 1, 1)
    drawn = config.steps * inner_steps * b
    passes = -(-drawn // photos)
    shuffled = [torch.arange(photos) if opom else torch.randperm(photos, generator=generator) for _ in range(passes)]
    order = torch.cat(shuffled)[:drawn] if shuffled else torch.empty(0, dtype=torch.int64)
    order = order.view(config.steps, inner_steps, b)
    # In two goes: the first twelve stay the numbers that the rows without "mix" were measured with.
    goes = (12, DRAWS - 12) if config.augment else (0,)
    views = torch.cat(
        [torch.rand(*order.shape, numbers, generator=generator, dtype=torch.float32) for numbers in goes], -1
    )
    return start.to(device), order.to(device), views.to(device)


def float32_at_most(value: float) -> float:
    """The largest float32 number <= value, so that |delta| <= eps holds exactly: float32(8/255) is above 8/255."""
    nearest = np.float32(value)
    return float(nearest if float(nearest) <= value else np.nextafter(nearest, np.float32(0)))
