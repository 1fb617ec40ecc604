"""Which backend runs: wishes are met or refused with words, "auto" falls back with a warning."""

import logging
import sys
from types import ModuleType

import pytest
import torch

from fastcloak import FitManyError, fit_many
from fastcloak.ops import backend as ops
from fastcloak.ops import reference
from tests.conftest import smooth_faces

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_auto_is_the_reference_on_a_cpu():
    assert ops.resolve_backend("auto", CPU) == ("reference", reference)
    assert ops.resolve_backend("reference", CUDA) == ("reference", reference)


def test_triton_is_tried_before_it_is_promised():
    name, kernels = ops.resolve_backend("triton", torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    assert name == "triton"
    assert {"hull_loss", "accumulate_step_", "outer_step_", "cloak_batch_"} <= set(dir(kernels))


def test_triton_needs_a_gpu_or_its_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="'triton' needs a CUDA device, got cpu; use 'reference' or 'auto'"):
        ops.resolve_backend("triton", CPU)


@pytest.fixture
def wrong_kernels(monkeypatch):
    """Kernels that compute something else."""
    kernels = ModuleType("fastcloak.kernels")
    for name in reference.__all__:
        setattr(kernels, name, getattr(reference, name))
    kernels.outer_step_ = lambda acc, velocity, delta, delta_in, alpha, eps: delta.fill_(1)
    monkeypatch.setitem(sys.modules, "fastcloak.kernels", kernels)
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def test_an_explicit_wish_that_fails_its_trial_is_refused(wrong_kernels):
    with pytest.raises(ValueError, match="'triton' does not work on cpu, use 'reference' or 'auto' .*wrong results"):
        ops.resolve_backend("triton", CPU)


def test_auto_falls_back_with_one_warning(monkeypatch, caplog):
    def fails(kernels, device):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(ops, "_try", fails)
    with caplog.at_level(logging.WARNING, "fastcloak"):
        assert ops.resolve_backend("auto", CUDA) == ("reference", reference)
    (record,) = caplog.records
    assert "do not work on cuda" in record.getMessage()
    assert "no compiler" in record.getMessage()


def test_kernels_hold_hulls_of_a_limited_size():
    _, kernels = ops.resolve_backend("triton", torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    assert ops.holds(kernels, 64, 512)
    assert not ops.holds(kernels, 65, 512)
    assert not ops.holds(kernels, 10, 8193)
    assert ops.holds(reference, 10_000, 10_000)


def test_too_many_photos_for_the_kernels_cost_nobody_else_their_cloak(tiny_net):
    people = {"many": smooth_faces(65), "few": smooth_faces(2)}
    with pytest.raises(
        FitManyError, match="many: backend 'triton' holds hulls of 64 photos .* use backend='auto'"
    ) as info:
        fit_many(people, tiny_net, backend="triton", engine="eager", steps=1, inner_steps=1)
    assert set(info.value.cloaks) == {"few"}
