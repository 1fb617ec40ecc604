"""Which backend runs: wishes are met or refused with a hint, "auto" falls back with a warning."""

import logging
import sys
from types import ModuleType

import pytest
import torch

from fastcloak import FitManyError, fit_many
from fastcloak.ops import reference
from fastcloak.ops.backend import holds, resolve_backend
from tests.conftest import smooth_faces

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def kernels(monkeypatch):
    """Stands for fastcloak.kernels; computes what the reference computes."""
    kernels = ModuleType("fastcloak.kernels")
    for name in reference.__all__:
        setattr(kernels, name, getattr(reference, name))
    monkeypatch.setitem(sys.modules, "fastcloak.kernels", kernels)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return kernels


def test_auto_is_the_reference_on_a_cpu():
    assert resolve_backend("auto", CPU) == ("reference", reference)
    assert resolve_backend("reference", CUDA) == ("reference", reference)


def test_triton_needs_a_gpu_or_its_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="'triton' needs a CUDA device, got cpu; use 'reference' or 'auto'"):
        resolve_backend("triton", CPU)


def test_an_explicit_wish_that_fails_its_trial_is_refused(kernels):
    assert resolve_backend("triton", CPU) == ("triton", kernels)
    kernels.outer_step_ = lambda acc, velocity, delta, delta_in, alpha, eps: delta.fill_(1)
    with pytest.raises(ValueError, match="'triton' does not work on cpu, use 'reference' or 'auto' .*wrong results"):
        resolve_backend("triton", CPU)


def test_auto_falls_back_with_one_warning(kernels, caplog):
    del kernels.cloak_batch_
    with caplog.at_level(logging.WARNING, "fastcloak"):
        assert resolve_backend("auto", CUDA) == ("reference", reference)
    (record,) = caplog.records
    assert "do not work on cuda" in record.getMessage()


def test_kernels_hold_hulls_of_a_limited_size():
    name, kernels = resolve_backend("triton", CUDA if torch.cuda.is_available() else CPU)
    assert name == "triton"
    assert holds(kernels, 64, 512)
    assert not holds(kernels, 65, 512)
    assert not holds(kernels, 10, 8193)
    assert holds(reference, 10_000, 10_000)


@pytest.mark.usefixtures("large_programs")
def test_too_many_photos_for_the_kernels_cost_nobody_else_their_cloak(tiny_net):
    people = {"many": smooth_faces(65), "few": smooth_faces(2)}
    with pytest.raises(FitManyError, match="many: backend 'triton' holds hulls of 64 .* use backend='auto'") as info:
        fit_many(people, tiny_net, backend="triton", engine="eager", steps=1, inner_steps=1)
    assert set(info.value.cloaks) == {"few"}
