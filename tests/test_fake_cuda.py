"""Whole steps on fake CUDA tensors: nothing waits for the device, and launches besides the network are counted."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bench.harness.fake_cuda import CUDA, Launches, fake_cuda, grad, launches_of_steps, of_lapack, on_fake_cuda
from fastcloak import kernels
from fastcloak.fitting.fitter import Fitter
from fastcloak.fitting.loop import Loop
from fastcloak.fitting.options import AUGMENTATIONS, OBJECTIVES, configure
from fastcloak.fitting.state import Album, Tailoring
from fastcloak.models import load_model, prepare, with_dropout
from fastcloak.models.surrogate import Ensemble
from fastcloak.ops import reference
from fastcloak.tailoring.canvas import SIDE
from fastcloak.tailoring.options import configure_tailor
from tests.conftest import TinyNet, smooth_faces

PERSONS, PHOTOS, SIZE = 2, 5, 16
BACKENDS = {"triton": kernels, "reference": reference}
# case -> options, how many networks, and how many launches besides them an inner step and the rest of a step have, on
# Triton's kernels and on the reference. They are today's: whoever lowers a count lowers its budget. opom's are in one.
CENTER = {"objective": "class_center"}
CASES = {
    "fast": ({"preset": "fast"}, 1, (4, 22), (110, 34)),
    "balanced": ({"preset": "balanced"}, 1, (4, 27), (110, 39)),
    "strong": ({"preset": "strong"}, 2, (4, 27), (115, 39)),
    "plain": ({}, 1, (3, 17), (1194, 23)),
    "opom": ({"method": "opom"}, 1, (25, 0), (1222, 0)),
    "fi_uap": ({"objective": "fi_uap"}, 1, (3, 17), (33, 23)),
    "fi_uap_plus": ({"objective": "fi_uap_plus"}, 1, (3, 17), (32, 23)),
    "class_center": ({"objective": "class_center"}, 1, (3, 17), (31, 23)),
    "affine_hull": ({"objective": "affine_hull"}, 1, (3, 17), (34, 23)),
    "symmetry": ({**CENTER, "augment": "symmetry"}, 1, (3, 21), (31, 27)),
    "mix": ({**CENTER, "augment": "mix"}, 1, (3, 18), (40, 24)),
    "photo": ({**CENTER, "augment": "photo"}, 1, (6, 18), (122, 24)),
    "color": ({**CENTER, "augment": "color"}, 1, (3, 18), (50, 24)),
    "blur": ({**CENTER, "augment": "blur"}, 1, (33, 18), (61, 24)),
    "jpeg": ({**CENTER, "augment": "jpeg"}, 1, (7, 18), (146, 24)),
    "geometry": ({**CENTER, "augment": "geometry"}, 1, (3, 18), (66, 24)),
    "flip": ({**CENTER, "augment": "flip"}, 1, (3, 18), (74, 24)),
    "every view": ({**CENTER, "augment": AUGMENTATIONS}, 1, (40, 22), (353, 28)),
    "fast and photo": ({"preset": "fast", "augment": "+photo"}, 1, (8, 22), (202, 34)),
    "three photos": ({**CENTER, "batch_size": 3}, 1, (3, 17), (31, 23)),
    "average": ({**CENTER, "average": 0.5, "decay": 0.9}, 1, (3, 22), (31, 34)),
    "smoothing": ({**CENTER, "smoothing": 2.0}, 1, (3, 21), (31, 27)),
    "grey": ({**CENTER, "grey": True}, 1, (3, 18), (33, 24)),
    "grey and fast": ({"preset": "fast", "grey": True}, 1, (4, 23), (112, 35)),
    "dropout": ({**CENTER, "dropout": 0.1}, 1, (3, 17), (31, 23)),
    "loss of two": ({**CENTER, "ensemble": "loss"}, 2, (53, 17), (79, 23)),
    "gradients of two": ({**CENTER, "ensemble": "gradient"}, 2, (28, 17), (68, 23)),
    "two in turns": ({**CENTER, "ensemble": "turns"}, 2, (3, 17), (36, 23)),
    "album": ({"tailored": True, "grey": False}, 1, (8, 29), (233, 41)),
    "grey album": ({"tailored": True, "grey": True}, 1, (8, 30), (235, 42)),
    "album of two": ({"tailored": True, "grey": False}, 2, (8, 29), (238, 41)),
}
BELOW = 2
"""How far below its budget a count may be."""


class ConvNet(nn.Module):
    """The layers of a MobileFaceNet, once each."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=4, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.PReLU(8),
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 4, 1),
            nn.Flatten(),
            nn.Linear(4 * 28 * 28, SIZE, bias=False),
            nn.BatchNorm1d(SIZE),
        )

    def forward(self, x):
        return self.body(x)


@pytest.fixture(scope="module")
def surrogates():
    """A network in float32, and one in bfloat16 and channels_last as GPUs take it."""
    tiny = prepare(load_model(TinyNet()), dtype=torch.float32)
    conv = prepare(load_model(ConvNet(), scale=2.0, shift=-1.0), dtype=torch.bfloat16, channels_last=True)
    assert tiny.folded
    assert conv.folded
    assert conv.takes == (torch.bfloat16, torch.channels_last)
    return {"float32": tiny, "bfloat16": conv}


def config_of(options, inner_steps, steps):
    """The last step is of the objective; with two, the first is a convex hull's warm-up."""
    if "tailored" in options:
        config = configure_tailor({"gradients": steps}).loop(options["grey"])
    else:
        config = configure({"preset": "plain"} | options | {"steps": steps, "warmup": steps - 1})
    return replace(config, inner_steps=inner_steps)  # opom goes on with one


def launched(surrogate, config, ops, tailored=False, photos=PHOTOS):
    """What the last step launches."""
    size = surrogate.embedding_size
    if not tailored:
        loop = Loop(surrogate, config, ops, "eager", PERSONS, photos)
        faces = torch.rand(PERSONS, photos, 3, 112, 112, device=CUDA)
        return launches_of_steps(loop, faces=faces, features=torch.rand(PERSONS, photos, size, device=CUDA))[-1]
    loop = Loop(surrogate, config, ops, "eager", PERSONS, 1, Tailoring(SIDE, apart=1.0))
    pictures = torch.rand(PERSONS, 1, 3, SIDE, SIDE, device=CUDA)
    album = Album(pictures[:, 0], torch.rand(PERSONS, 2, 3, device=CUDA), torch.ones(PERSONS, PERSONS, device=CUDA))
    features, earlier = torch.rand(PERSONS, 1, size, device=CUDA), torch.rand(7, size, device=CUDA)
    return launches_of_steps(loop, faces=pictures, features=features, album=album, earlier=earlier)[-1]


def of_network(surrogate, config):
    """What the networks launch in one inner step, forward and backward."""
    shown = with_dropout(surrogate, config.dropout) if config.dropout else surrogate
    asked = shown.members[:1] if config.ensemble == "turns" else shown.members
    with Launches() as seen:
        for one in asked:
            dtype, memory_format = one.dtype, one.memory_format
            pictures = torch.empty(PERSONS * config.batch(PHOTOS), 3, 112, 112, dtype=dtype, device=CUDA)
            pictures = pictures.to(memory_format=memory_format).requires_grad_()
            embeddings = one.net(pictures)
            torch.autograd.grad(embeddings, pictures, embeddings)
    return seen.counts


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_a_step_never_waits_and_launches_what_its_budget_says(surrogates, case, backend):
    options, networks, *budgets = CASES[case]
    ops, tailored = BACKENDS[backend], "tailored" in options
    with fake_cuda():
        members = [on_fake_cuda(surrogates["bfloat16"]) for _ in range(networks)]
        surrogate = members[0] if networks == 1 else Ensemble(members)
        config, longer = config_of(options, 1, steps=2), config_of(options, 2, steps=1)
        network = of_network(surrogate, config)
        one = launched(surrogate, config, ops, tailored) - network
        twice = one + one
        if longer.inner_steps == 2:  # opom has one
            twice = launched(surrogate, longer, ops, tailored) - network - network
    inner, rest = twice - one, one + one - twice
    budget = dict(zip(BACKENDS, budgets, strict=True))[backend]
    found = inner.total(), rest.total()
    assert all(most - BELOW <= count <= most for count, most in zip(found, budget, strict=True)), (
        f"{found} launches, budget {budget}: {dict(inner)} and {dict(rest)}"
    )


class Decided(Exception):
    """Raised in place of a loop: what it would launch, and how."""


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(("backend", "photos"), [("auto", 3), ("auto", 65), ("reference", 3)])
def test_a_step_is_captured_unless_it_needs_lapack(surrogates, monkeypatch, objective, backend, photos):
    def resolved(name, device):  # as on a GPU
        return ("reference", reference) if name == "reference" else ("triton", kernels)

    def loop(surrogate, config, ops, engine, *rest):
        raise Decided(ops, engine)

    monkeypatch.setattr("fastcloak.fitting.learner.resolve_backend", resolved)
    monkeypatch.setattr("fastcloak.fitting.learner.resolve_engine", lambda name, device: "cudagraph")
    monkeypatch.setattr("fastcloak.fitting.learner.Loop", loop)
    surrogate = surrogates["float32"]
    fitter = Fitter(surrogate, preset="plain", objective=objective, steps=1, warmup=0, device="cpu", backend=backend)
    config = fitter.config.of(smooth_faces(1))
    with pytest.raises(Decided) as decided:
        fitter.run(config, 1, photos, most=1)
    ops, engine = decided.value.args
    with fake_cuda():
        counts = launched(on_fake_cuda(surrogate), config, ops, photos=photos)
    assert engine == ("eager" if of_lapack(counts) else "cudagraph")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["fast", "plain", "opom", "grey"])
def test_a_step_of_a_network_in_float32_never_waits(surrogates, case, backend):
    with fake_cuda():
        surrogate = on_fake_cuda(surrogates["float32"])
        assert launched(surrogate, config_of(CASES[case][0], 1, steps=1), BACKENDS[backend]).total() > 0


FAULTS = {
    "reads a number": lambda x: x.sum().item(),
    "decides": lambda x: bool(x.any()),
    "counts": lambda x: x.nonzero(),
    "picks by a mask": lambda x: x[x > 0],
    "goes to the host": lambda x: x.cpu(),
    "comes from the host": lambda x: torch.ones(3).to(CUDA),
    "makes a list a tensor": lambda x: torch.tensor([1.0, 2.0], device=CUDA),
    "makes a number a tensor": lambda x: torch.tensor(1.0, device=CUDA),
    "copies a number": lambda x: x.copy_(torch.tensor(1.0)),
    "mixes devices": lambda x: x + torch.ones(3),
    "has an index on the host": lambda x: x[torch.tensor([0, 1])],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_gpu_would_wait_for_is_an_error(fault):
    with fake_cuda(), Launches():
        x = torch.ones(3, 3, device=CUDA)
        with pytest.raises((AssertionError, RuntimeError)):
            FAULTS[fault](x)


def test_views_and_empty_memory_are_free_and_kernels_are_one_launch_each():
    with fake_cuda(), Launches() as seen:
        x = torch.empty(2, 3, 3, 8, 8, device=CUDA)
        mask = torch.empty_like(x[:, 0])
        x.flatten(0, 1).transpose(0, 1)[1:].unsqueeze(0).expand(2, -1, -1, -1, -1).detach()
        mask[:, :2] = 1.0
        kernels.accumulate_step_(x, mask, mask.clone(), 0.1, 0.2)
        x + torch.tensor(1.0)  # a number of the host goes along with the launch
    assert seen.counts == {"fill_": 1, "clone": 1, "fastcloak::accumulate_step_": 1, "add": 1}


def test_the_walk_backward_gives_the_gradient_of_the_engine(surrogates):
    leaf = smooth_faces(2).requires_grad_()
    at = F.affine_grid(
        torch.tensor([[[0.9, 0.1, 0.0], [-0.1, 0.9, 0.1]]]).expand(2, 2, 3), leaf.shape, align_corners=False
    )
    embeddings = surrogates["float32"](F.grid_sample(leaf * leaf, at, padding_mode="border", align_corners=False))
    (expected,) = torch.autograd.grad(embeddings, leaf, embeddings.detach(), retain_graph=True)
    (found,) = grad(embeddings, leaf, embeddings.detach())
    assert torch.equal(found, expected)
