"""Winograd convolutions: the same numbers as the direct ones, and only where they are faster."""

import copy

import pytest
import torch
from torch import nn

from fastcloak.models import load_model, prepare
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
    x, upstream = torch.randn(shape).to(memory_format=layout), torch.randn(shape[0], 6, *shape[2:])
    results = []
    for module, dtype in ((copy.deepcopy(conv).double(), torch.float64), (WinogradConv2d(conv), torch.float32)):
        leaf = x.to(dtype).requires_grad_()
        made = module(leaf)
        results.append((made.detach(), *torch.autograd.grad(made, leaf, upstream.to(dtype))))
    assert type(made.grad_fn).__name__ != "ConvolutionBackward0", "too few tiles: the direct convolution was tested"
    # A direct float32 convolution is at about 2e-6.
    assert all(worst(got, exact) < 2e-5 for exact, got in zip(*results, strict=True))


def test_small_batches_take_the_direct_convolution():
    conv = nn.Conv2d(4, 4, 3, padding=1).requires_grad_(False)
    x = torch.rand(3, 4, 8, 8)
    assert torch.equal(WinogradConv2d(conv)(x), conv(x))
    assert not torch.equal(WinogradConv2d(conv)(x.repeat(2, 1, 1, 1))[:3], conv(x))


def test_badly_filled_tiles_stay_direct():
    conv = nn.Conv2d(128, 128, 3, padding=1)
    assert use_winograd(nn.Sequential(conv), torch.rand(1, 128, 5, 5)) == []
    assert len(use_winograd(nn.Sequential(conv), torch.rand(1, 128, 7, 7))) == 1


def net_of(conv):
    """A convolution on [n, C, 16, 16]."""
    net = nn.Sequential(nn.Conv2d(3, conv.in_channels, 7, 7), conv, nn.Flatten(), nn.LazyLinear(8))
    net(torch.zeros(1, 3, 112, 112))
    return net


def has_winograd(prepared):
    return any(isinstance(part, WinogradConv2d) for part in prepared.modules())


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
    prepared = prepare(load_model(net), device="cpu")
    assert has_winograd(prepared) == replaced
    assert any("Winograd" in note for note in prepared.notes) == replaced
    faces = torch.rand(3, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert worst(prepared(faces), net(faces)) < 2e-5
    assert torch.equal(prepare(prepared)(faces), prepared(faces))
    assert not has_winograd(prepare(load_model(net), device="cpu", dtype=torch.bfloat16))


def test_a_network_that_it_would_change_keeps_its_convolutions():
    net = net_of(nn.Conv2d(128, 128, 3, padding=1, bias=False))
    with torch.no_grad():
        # What the filters see is nearly one number, which they cancel inside the border: mostly rounding is left.
        net[0].bias.fill_(1e4)
        net[1].weight -= net[1].weight.mean((1, 2, 3), keepdim=True)
        inside = nn.functional.pad(torch.ones(14, 14), (1, 1, 1, 1))
        net[3].weight *= inside.expand(128, 16, 16).flatten()
    prepared = prepare(load_model(net), device="cpu")
    assert not has_winograd(prepared)
    assert any("no Winograd convolutions: they would change" in note for note in prepared.notes)
