"""Networks of the sizes that face recognition uses, with random weights, for timing; no weights are shipped.

    iresnet50      43.6 M parameters, 12.6 GFLOP a face: the layout of arcface_torch (deepinsight/insightface)
    mobilefacenet   1.2 M parameters, 0.44 GFLOP a face: Chen et al. 2018, with 512 numbers instead of 128

Speed does not depend on the values of weights as long as nothing overflows or dies out; results are compared too, so
that photos must stay apart and gradients must arrive: batch normalisations get the statistics of their inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from fastcloak import load_model
from fastcloak.models import Surrogate

SIDE = 112
EMBEDDING_SIZE = 512
Net = TypeVar("Net", bound=nn.Module)


class IResNet(nn.Module):
    """ArcFace's residual network: [n, 3, 112, 112] normalised pictures -> [n, 512].

    Source: deepinsight/insightface recognition/arcface_torch/backbones/iresnet.py (layout), He et al. 2016.
    """

    def __init__(self, layers: tuple[int, ...] = (3, 4, 14, 3)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.prelu = nn.PReLU(64)
        self.body, channels = nn.Sequential(), 64
        for stage, depth in enumerate(layers):
            for block in range(depth):
                self.body.append(_ResidualBlock(channels, 64 * 2**stage, 2 if block == 0 else 1))
                channels = 64 * 2**stage
        self.bn2 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels * 7 * 7, EMBEDDING_SIZE)
        self.features = nn.BatchNorm1d(EMBEDDING_SIZE)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.bn2(self.body(x))
        embeddings: Tensor = self.features(self.fc(x.flatten(1)))
        return embeddings


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        # The first normalisation stands before a zero-padded convolution: folding it needs care at the border.
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != width:
            self.downsample = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        return y + (x if self.downsample is None else self.downsample(x))


class MobileFaceNet(nn.Module):
    """[n, 3, 112, 112] normalised pictures -> [n, 512], inverted residuals with PReLU and a global depthwise layer.

    Source: Chen et al., MobileFaceNets (arXiv 1804.07573), table 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(3, 64, 3, 2, 1),
            _conv(64, 64, 3, 1, 1, groups=64),
            _Bottleneck(64, 64, 2, 128),
            *(_Bottleneck(64, 64, 1, 128) for _ in range(4)),
            _Bottleneck(64, 128, 2, 256),
            *(_Bottleneck(128, 128, 1, 256) for _ in range(6)),
            _Bottleneck(128, 128, 2, 512),
            *(_Bottleneck(128, 128, 1, 256) for _ in range(2)),
            _conv(128, 512, 1, 1, 0),
            _conv(512, 512, 7, 1, 0, groups=512, linear=True),
        )
        self.fc = nn.Linear(512, EMBEDDING_SIZE, bias=False)
        self.bn = nn.BatchNorm1d(EMBEDDING_SIZE)

    def forward(self, x: Tensor) -> Tensor:
        embeddings: Tensor = self.bn(self.fc(self.body(x).flatten(1)))
        return embeddings


class _Bottleneck(nn.Module):
    def __init__(self, channels: int, out: int, stride: int, expanded: int) -> None:
        super().__init__()
        self.residual = stride == 1 and channels == out
        self.layers = nn.Sequential(
            _conv(channels, expanded, 1, 1, 0),
            _conv(expanded, expanded, 3, stride, 1, groups=expanded),
            _conv(expanded, out, 1, 1, 0, linear=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


def _conv(
    channels: int, out: int, kernel: int, stride: int, padding: int, groups: int = 1, linear: bool = False
) -> nn.Sequential:
    layers = [nn.Conv2d(channels, out, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(out)]
    return nn.Sequential(*layers, *([] if linear else [nn.PReLU(out)]))


def iresnet50() -> IResNet:
    """ArcFace's iResNet-50 with random weights, in eval mode; weights require a gradient, as in any torch module."""
    return _randomised(IResNet())


def mobilefacenet() -> MobileFaceNet:
    """MobileFaceNet with random weights, likewise."""
    return _randomised(MobileFaceNet())


NETS: dict[str, Callable[[], nn.Module]] = {"mobilefacenet": mobilefacenet, "iresnet50": iresnet50}


def _randomised(net: Net) -> Net:
    """Random weights; one pass in training mode gives batch normalisations the statistics of what they get."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, 0, module.weight[0].numel() ** -0.5, generator)
        elif isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
            nn.init.uniform_(module.weight, 0.3, 1.1, generator)
            nn.init.normal_(module.bias, 0, 0.2, generator)
            module.momentum = None  # plain average over passes, of which there is one
        elif isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, 0.0, 0.4, generator)
    with torch.no_grad():
        net.train()(torch.cat([faces(1, seed=person) for person in range(8)]) * 2 - 1)
    return net.eval()


class OnFaces(nn.Module):
    """A network with ArcFace's normalisation, (x - 127.5) / 127.5 of 0..255, before it: faces in [0, 1] -> [n, D]."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.train(net.training)

    def forward(self, faces: Tensor) -> Tensor:
        embeddings: Tensor = self.net(faces * 2 - 1)
        return embeddings


def surrogate(net: nn.Module, name: str | None = None) -> Surrogate:
    """The same network and normalisation as a model of fastcloak (a frozen copy)."""
    return load_model(net, scale=2.0, shift=-1.0, name=name)


def faces(count: int, seed: int = 0) -> Tensor:
    """[count, 3, 112, 112] float32 on the grid of grey levels: blobs and texture on a base that all have in common.

    Texture keeps a mask from being the only fine detail that a network with random weights sees.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(n: int) -> Tensor:
        picture = torch.zeros(n, 3, SIDE, SIDE)
        for side, strength in ((112, 0.1), (28, 0.2), (14, 0.3), (7, 0.4)):
            coarse = torch.rand(n, 3, side, side, generator=generator)
            picture += strength * nn.functional.interpolate(coarse, (SIDE, SIDE))
        return picture

    return ((0.6 * noise(1) + 0.4 * noise(count)) * 255).round() / 255


def flops(net: nn.Module) -> int:
    """Floating-point operations of one face's forward pass in convolutions and linear layers; a multiply-add is two.

    The gradient with respect to the picture costs as much again, that with respect to the weights once more.
    """
    counted = 0

    def count(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal counted
        assert isinstance(module.weight, Tensor)
        # Each output number takes one multiply-add per weight of its row.
        counted += 2 * output.numel() * module.weight[0].numel()

    layers = [module for module in net.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        with torch.no_grad():
            net(torch.zeros(1, 3, SIDE, SIDE, device=next(net.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return counted
