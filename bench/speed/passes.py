"""One pass of a fit, to be timed: the loop of `fastcloak.fit` and its inputs, on any backend and engine."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from bench.harness import nets
from fastcloak.fitting.loop import Loop
from fastcloak.fitting.options import FitConfig
from fastcloak.fitting.state import Learnt
from fastcloak.models import Surrogate, unit_features
from fastcloak.ops.backend import resolve_backend
from fastcloak.ops.engine import resolve_engine


class Pass:
    """The loop for P people with N photos each; a call fits `config.steps` steps of all their masks.

    Attributes:
        backend: the one in use.
        images: image-gradients of a step.
        learnt: what the last call fitted.
        setup: seconds of the first call, where it was timed.
        memory: bytes allocated and reserved that the first call took, where they were measured.
    """

    learnt: Learnt
    setup = 0.0
    memory = (0, 0)

    def __init__(
        self,
        surrogate: Surrogate,
        config: FitConfig,
        backend: str = "reference",
        engine: str = "eager",
        persons: int = 1,
        photos: int = 10,
    ) -> None:
        device = surrogate.device
        self.config, self.persons = config, persons
        self.backend, operations = resolve_backend(backend, device)
        self.faces = people_of(persons, photos, device)
        self.features = unit_features(surrogate, self.faces.flatten(0, 1), 256).view(persons, photos, -1)
        self.loop = Loop(surrogate, config, operations, resolve_engine(engine, device), persons, photos)
        self.images = persons * config.batch(photos) * config.inner_steps

    def __call__(self) -> Learnt:
        self.learnt = self.loop.learn(self.faces, self.features, lambda: None)
        return self.learnt


def people_of(persons: int, photos: int, device: torch.device) -> Tensor:
    """[P, N, 3, 112, 112]; the first person is that of `nets.faces`."""
    one = nets.faces(photos).to(device)
    if persons == 1:
        return one[None]
    generator = torch.Generator(device).manual_seed(0)
    own = interpolate(torch.rand(persons, 3, 14, 14, device=device, generator=generator), (112, 112))
    people = 0.6 * one[None] + 0.4 * own[:, None]
    people[0] = one
    return people


def network_gradient(surrogate: Surrogate, pictures: Tensor) -> None:
    """The network's forward and backward pass alone; pictures are normalised, [n, 3, 112, 112]."""
    x = pictures.detach().requires_grad_()
    embeddings = surrogate.embed(x)
    torch.autograd.grad(embeddings, x, torch.ones_like(embeddings))
