"""The buffers of the loop, which never move, grouped by how often they change; and what is read from them.

Dimension letters: P persons, N photos of one person, M inner steps, b photos in a batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from fastcloak.cloak import SHAPE
from fastcloak.fitting.options import FitConfig
from fastcloak.models import Surrogate
from fastcloak.ops.augment import DRAWS, JITTERS, jittering, symmetric

Tensors = dict[str, torch.Tensor]


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


@dataclass(frozen=True)
class Tailoring:
    """How a loop learns a mask for each face of an album: each is a person of its own with one photo.

    Attributes:
        canvas: S, the side of the pictures, on which the aligned face has a place.
        apart: how strongly faces are driven away from each other; 1: as strongly as from the person.
    """

    canvas: int
    apart: float


@dataclass(frozen=True)
class Album:
    """What a pass of tailored faces has besides the pictures.

    Attributes:
        bound: [P, 3, S, S] float32, largest change on the [0, 1] scale; the mask that is learnt is a share of it.
        place: [P, 2, 3] float32, where on the canvas the aligned face lies, as `affine_grid` takes it.
        together: [P, P] float32, 1 for two faces that are kept apart from each other, else 0.
    """

    bound: torch.Tensor
    place: torch.Tensor
    together: torch.Tensor


class State:
    """Everything that a step reads and writes, on the surrogate's device."""

    def __init__(
        self,
        surrogate: Surrogate,
        config: FitConfig,
        persons: int,
        photos: int,
        memory_format: torch.memory_format,
        canvas: int | None = None,
    ) -> None:
        """Allocate the buffers.

        Args:
            memory_format: of pictures, masks and gradients.
            canvas: side of an album's pictures; every person then has noise and views of their own.
        """
        self.config = config
        self.steps = config.steps if config.eps else 0
        self.averaged = math.ceil(config.average * self.steps)
        self.eps = float32_at_most(config.eps)
        device, b, M = surrogate.device, config.batch(photos), config.inner_steps
        shape = SHAPE if canvas is None else (3, canvas, canvas)

        def pictures(*size: int) -> torch.Tensor:
            return zero_pictures(size, shape, (torch.float32, memory_format), device)

        def zeros(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        self.photos = photos
        # Once, from the seed, for all persons (1) or each (P): start noise [1 or P, N, 3, 112, 112], faces
        # [steps, M, 1 or P, b], and views and jitter, [steps, M, 1 or P, b, DRAWS], or 0 numbers where they are off.
        drawn = draws(config, photos) if canvas is None else draws_of_each(config, persons, shape)
        self.start, self.order, self.draws, self.jitters = (numbers.to(device) for numbers in drawn)
        # Once per pass: the photos' faces, and the symmetric ones of these.
        self.faces = pictures(persons, config.pictures(photos))
        self.album = None
        if canvas is not None:
            self.album = Album(pictures(persons), zeros(persons, 2, 3), zeros(persons, persons))
        # Each step: its number, the faces that it shows, of which photos these are, and the numbers of their views and
        # jitter, which it looks up itself; then what it leaves.
        self.t = zeros(1, dtype=torch.int64)
        self.shown = zeros(M, persons, b, dtype=torch.int64)
        self.index = self.shown
        if len(self.faces[0]) > photos:
            self.index = self.shown.clone()
        self.chance = zeros(M, persons, b, self.draws.shape[-1])
        self.jitter = zeros(M, persons, b, self.jitters.shape[-1])
        self.delta, self.velocity, self.total = (pictures(persons) for _ in range(3))
        self.loss, self.gap, self.moved = zeros(persons), zeros(persons), zeros(persons, dtype=torch.bool)
        self.losses = zeros(config.steps, persons)
        # Each inner step: the look-ahead mask and the accumulated gradient.
        self.delta_in, self.acc = pictures(persons), pictures(persons)

    def begin(self, faces: torch.Tensor, album: Album | None) -> None:
        """Start a pass: these faces, [P, N, 3, 112, 112], and the mean of the start noise."""
        self.faces[:, : self.photos] = faces
        if self.index is not self.shown:
            self.faces[:, self.photos :] = symmetric(faces)
        if self.album is not None and album is not None:
            for name, buffer in vars(self.album).items():
                buffer.copy_(getattr(album, name))
        self.delta.copy_(self.start.mean(1).clamp(-self.eps, self.eps))
        self.delta_in.copy_(self.delta)
        for buffer in (self.acc, self.velocity, self.total, self.gap, self.moved, self.losses, self.t):
            buffer.zero_()
        if self.config.dropout:
            torch.manual_seed(self.config.seed)

    def show(self) -> None:
        """Put the faces and views of the next step where it reads them."""
        for every, now in ((self.order, self.shown), (self.draws, self.chance), (self.jitters, self.jitter)):
            if now.numel():
                torch.index_select(every.expand(-1, *now.shape), 0, self.t, out=now[None])
        if self.index is not self.shown:
            torch.remainder(self.shown, self.photos, out=self.index)

    def keep(self) -> None:
        """Add what the step leaves to what was learnt, and go on to the next; after the last comes the first."""
        self.losses.index_copy_(0, self.t, self.loss[None])
        if self.averaged:
            self.total += self.delta
        self.t.add_(1).remainder_(self.steps)

    def learnt(self, done: int) -> Learnt:
        """What was learnt in the first `done` steps, in tensors of its own."""
        # The sign of NaN is 0: what is added keeps it NaN.
        averaging = done > self.steps - self.averaged
        delta = self.eps * (self.total.sign() + 0 * self.total) if averaging else self.delta.clone()
        if self.config.grey:  # equal but for rounding, where a network weighs its channels differently
            delta = delta[:, :1].repeat(1, 3, 1, 1)
        return Learnt(done, delta, self.losses.clone(), self.gap.clone(), self.moved.clone())

    def save(self, done: int) -> Tensors:
        """What decides the steps after the first `done`, in tensors of its own on the CPU. Waits for the device."""
        held = {**self._lasting(), "losses": self.losses[:done]}
        if self.config.dropout:
            held["random"] = torch.get_rng_state()
            if self.faces.is_cuda:
                held["random_cuda"] = torch.cuda.get_rng_state(self.faces.device)
        return {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in held.items()}

    def restore(self, saved: Tensors) -> int:
        """Go on from what `save` gave in a pass of the same faces and options; returns how many steps were done."""
        for name, buffer in self._lasting().items():
            buffer.copy_(saved[name])
        self.delta_in.copy_(self.delta)
        if self.config.dropout:
            torch.set_rng_state(saved["random"])
            if self.faces.is_cuda:
                torch.cuda.set_rng_state(saved["random_cuda"], self.faces.device)
        done = len(saved["losses"])
        self.losses[:done].copy_(saved["losses"])
        self.t.fill_(done)
        return done

    def _lasting(self) -> Tensors:
        """The buffers that go from one step to the next; a step leaves delta_in = delta and acc = 0."""
        lasting = {"delta": self.delta, "gap": self.gap, "moved": self.moved}
        if self.config.decay:
            lasting["velocity"] = self.velocity
        if self.averaged:
            lasting["total"] = self.total
        return lasting


def zero_pictures(
    size: tuple[int, ...],
    shape: tuple[int, ...],
    takes: tuple[torch.dtype, torch.memory_format],
    device: torch.device,
) -> torch.Tensor:
    """Pictures of zeros, [*size, *shape], in a dtype and memory format."""
    dtype, memory_format = takes
    flat = torch.empty(math.prod(size), *shape, dtype=dtype, device=device, memory_format=memory_format)
    return flat.zero_().view(*size, *shape)


Draws = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def draws_of_each(config: FitConfig, persons: int, shape: tuple[int, int, int]) -> Draws:
    """As `draws`, but each of P persons, who have one photo, has start noise, of this shape, and views of their own."""
    generator = torch.Generator().manual_seed(config.seed)
    noise, views = [], []
    for _ in range(persons):  # one after the other: those of the first do not depend on how many there are
        start = torch.zeros(1, *shape, dtype=torch.float32)
        if config.random_start and config.steps:
            start.uniform_(-1, 1, generator=generator).mul_(float32_at_most(config.eps))
        noise.append(start[:, :1].repeat(1, 3, 1, 1) if config.grey else start)
        views.append(torch.rand(config.steps, config.inner_steps, 1, DRAWS, generator=generator, dtype=torch.float32))
    order = torch.zeros(config.steps, config.inner_steps, persons, 1, dtype=torch.int64)
    shown = torch.stack(views, 2)
    return torch.stack(noise), order, shown, shown[..., :0]


def draws(config: FitConfig, photos: int) -> Draws:
    """Start noise [1, N, 3, 112, 112], faces [steps, M, 1, b], views and jitter [steps, M, 1, b, DRAWS].

    Faces n + N and n + 2 N are the symmetric ones of photo n. Views and jitter have 0 numbers where they are off.

    They are the same for every person.
    opom starts every photo from its own noise; ga starts from the mean of the same noise, which is the mask that this
    amounts to. Noise of full strength in the mask itself costs much of what 16 steps can reach (docs/notebook.md).
    ga draws photos without replacement until all were used, then reshuffles, on through all steps; a batch at the end
    of one pass over the photos takes its rest from the next, so that all photos are used equally often.
    """
    generator = torch.Generator().manual_seed(config.seed)
    b, M = config.batch(photos), config.inner_steps
    start = torch.zeros(photos, *SHAPE, dtype=torch.float32)
    if config.random_start and config.steps:
        start.uniform_(-1, 1, generator=generator).mul_(float32_at_most(config.eps))
    if config.grey:
        start = start[:, :1].repeat(1, 3, 1, 1)
    drawn = config.steps * M * b
    shuffled = [
        torch.arange(photos) if config.method == "opom" else torch.randperm(photos, generator=generator)
        for _ in range(-(-drawn // photos))
    ]
    order = torch.cat(shuffled)[:drawn] if shuffled else torch.empty(0, dtype=torch.int64)
    order = order.view(config.steps, M, b)
    # In two goes: the first twelve stay the numbers that the rows without "mix" were measured with.
    goes = (12, DRAWS - 12) if config.augment else (0,)
    views = torch.cat(
        [torch.rand(*order.shape, numbers, generator=generator, dtype=torch.float32) for numbers in goes], -1
    )
    if "symmetry" in config.augment:
        which = torch.rand(order.shape, generator=generator, dtype=torch.float32)
        order = order + photos * (4 * which - 1).clamp_min(0).long()  # 1/2, 1/4, 1/4
        left = start[..., : SHAPE[-1] // 2]
        start = torch.cat((left, left.flip(-1)), -1)
    jitter = views[..., :0]
    if "jitter" in config.augment:
        jitter = jittering(torch.rand(*order.shape, JITTERS, generator=generator, dtype=torch.float32))
    return start[None], order.unsqueeze(2), views.unsqueeze(2), jitter.unsqueeze(2)


def float32_at_most(value: float) -> float:
    """The largest float32 number <= value, so that |delta| <= eps holds exactly: float32(8/255) is above 8/255."""
    nearest = np.float32(value)
    return float(nearest if float(nearest) <= value else np.nextafter(nearest, np.float32(0)))
