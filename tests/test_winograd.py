"""Winograd convolutions: the same numbers as the direct ones, and only where they are faster."""

import copy

import pytest
import torch
from torch import nn

from fastcloak.models import load_model, prepare
from fastcloak.models.rewrites import winograd as module
from fastcloak.models.rewrites.winograd import WinogradConv2d, use_winograd


def worst(got, exact):
    return ((got - exact).abs().max() / exact.abs().max()).item()


# The last have outputs that fill their tiles badly, or channels that are not a round number.
@pytest.mark.parametrize("shape", [(2, 128, 14, 28), (4, 130, 7, 7), (16, 3, 4, 4), (9, 5, 9, 13), (16, 4, 1, 2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [True, False])
def test_it_equals_the_direct_convolution_and_its_gradient(shape, layout, bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(shape[1], 6, 3, padding=1, bias=bias).requires_grad_(False)
    x = torch.randn(shape).to(memory_format=layout)
    upstream = torch.randn(shape[0], 6, *shape[2:])
    exactly = copy.deepcopy(conv).double()
    leaf = x.double().requires_grad_()
    exact = exactly(leaf)
    (exact_grad,) = torch.autograd.grad(exact, leaf, upstream.double())
    leaf = x.clone().requires_grad_()
    got = WinogradConv2d(conv)(leaf)
    assert type(got.grad_fn).__name__ != "ConvolutionBackward0", "too few tiles: the direct convolution was tested"
    (grad,) = torch.autograd.grad(got, leaf, upstream)
    # A direct float32 convolution is at about 2e-6.
    assert worst(got, exact) < 2e-5
    assert worst(grad, exact_grad) < 2e-5


def test_small_batches_take_the_direct_convolution():
    conv = nn.Conv2d(4, 4, 3, padding=1).requires_grad_(False)
    x = torch.rand(3, 4, 8, 8)
    assert torch.equal(WinogradConv2d(conv)(x), conv(x))
    assert not torch.equal(WinogradConv2d(conv)(x.repeat(2, 1, 1, 1))[:3], conv(x))


def net_of(*convs):
    """Convolutions one after the other on [n, C, 16, 16]."""
    first = convs[0].in_channels
    return nn.Sequential(nn.Conv2d(3, first, 7, 7), *convs, nn.Flatten(), nn.LazyLinear(8))


@pytest.mark.parametrize(
    ("conv", "replaced"),
    [
        (nn.Conv2d(128, 128, 3, padding=1), True),
        (nn.Conv2d(128, 128, 3, padding="same", bias=False), True),
        (nn.Conv2d(64, 128, 3, padding=1), False),
        (nn.Conv2d(128, 128, 3), False),
        (nn.Conv2d(128, 128, 3, stride=2, padding=1), False),
        (nn.Conv2d(128, 128, 3, dilation=2, padding=2), False),
        (nn.Conv2d(128, 128, 3, padding=1, groups=2), False),
        (nn.Conv2d(128, 128, 3, padding=1, padding_mode="reflect"), False),
        (nn.Conv2d(128, 128, 1), False),
    ],
)
def test_prepare_replaces_what_gets_faster(conv, replaced):
    net = net_of(conv)
    net(torch.zeros(1, 3, 112, 112))
    prepared = prepare(load_model(net), device="cpu")
    assert any(isinstance(part, WinogradConv2d) for part in prepared.modules()) == replaced
    assert any("Winograd" in note for note in prepared.notes) == replaced
    faces = torch.rand(3, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert worst(prepared(faces), net(faces)) < 2e-5
    again = prepare(prepared)
    assert torch.equal(again(faces), prepared(faces))


def test_badly_filled_tiles_stay_direct():
    conv = nn.Conv2d(128, 128, 3, padding=1)
    assert use_winograd(nn.Sequential(conv), torch.rand(1, 128, 5, 5)) == []
    assert len(use_winograd(nn.Sequential(conv), torch.rand(1, 128, 7, 7))) == 1


def test_a_network_that_it_would_change_keeps_its_convolutions(monkeypatch):
    net = net_of(nn.Conv2d(128, 128, 3, padding=1))
    net(torch.zeros(1, 3, 112, 112))
    monkeypatch.setattr(module, "_A", [[2 * number for number in row] for row in module._A])
    prepared = prepare(load_model(net), device="cpu")
    assert not any(isinstance(part, WinogradConv2d) for part in prepared.modules())
    assert any("no Winograd convolutions" in note for note in prepared.notes)


def test_bfloat16_stays_direct():
    net = net_of(nn.Conv2d(128, 128, 3, padding=1))
    net(torch.zeros(1, 3, 112, 112))
    prepared = prepare(load_model(net), device="cpu", dtype=torch.bfloat16)
    assert not any(isinstance(part, WinogradConv2d) for part in prepared.modules())
