"""3x3 convolutions by Winograd's algorithm F(4x4, 3x3): a quarter of the multiplications of a direct convolution.

A 6x6 tile d of the input gives 4x4 outputs A^T [(G g G^T) * (B^T d B)] A. Over all channels the product becomes 36
matrix products [tiles, C] x [C, O]; each transform is one matrix product with the Kronecker square of B or A. The
gradient of the input runs the same steps transposed, on the same weights. Rounding errors are about five times those of
a direct float32 convolution (tests/test_winograd.py).

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, section 4.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fastcloak.models.rewrites.conv import FrozenConv2d

__all__ = ["WinogradConv2d", "use_winograd"]

# Below, the transforms cost more than the multiplications they save: measured, 64 channels gain nothing.
_LEAST_CHANNELS = 128
# Share of the 4x4 tiles that the output must fill; 7x7 fills 0.77, 5x5 0.39.
_LEAST_FILLED = 0.7
# In a batch, for matrix products that are worth it; a smaller batch goes through the direct convolution.
_LEAST_TILES = 16

_B = [[4, 0, 0, 0, 0, 0], [0, -4, 4, -2, 2, 4], [-5, -4, -4, -1, -1, 0], [0, 1, -1, 2, -2, -5], [1, 1, 1, 1, 1, 0]]
_B = [*_B, [0, 0, 0, 0, 0, 1]]
_G = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6]]
_G = [*_G, [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
_A = [[1, 0, 0, 0], [1, 1, 1, 1], [1, -1, 1, -1], [1, 2, 4, 8], [1, -2, 4, -8], [0, 0, 0, 1]]


def _squared(matrix: Sequence[Sequence[float]]) -> Tensor:
    """The Kronecker square of the transpose: acts on both axes of a tile at once."""
    once = torch.tensor(matrix, dtype=torch.float64).T
    return torch.kron(once, once).float()


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, into: Tensor, out_of: Tensor) -> Tensor:
        ctx.save_for_backward(weight, into, out_of)
        n, C, H, W = ctx.shape = x.shape
        rows, columns, O = -(-H // 4), -(-W // 4), weight.shape[2]
        # One zero before, and as many behind as the last tiles need.
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 4 * columns + 1 - W, 1, 4 * rows + 1 - H))
        s = padded.stride()
        tiles = padded.as_strided((6, 6, n, rows, columns, C), (s[1], s[2], s[0], 4 * s[1], 4 * s[2], s[3]))
        spectrum = (into @ tiles.reshape(36, -1)).view(36, -1, C)
        outputs = (out_of @ torch.bmm(spectrum, weight).view(36, -1)).view(4, 4, n, rows, columns, O)
        picture = outputs.permute(2, 3, 0, 4, 1, 5).reshape(n, 4 * rows, 4 * columns, O)
        return picture[:, :H, :W].permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        weight, into, out_of = ctx.saved_tensors
        n, C, H, W = ctx.shape
        rows, columns, O = -(-H // 4), -(-W // 4), weight.shape[2]
        padded = F.pad(grad.permute(0, 2, 3, 1), (0, 0, 0, 4 * columns - W, 0, 4 * rows - H))
        tiles = padded.reshape(n, rows, 4, columns, 4, O).permute(2, 4, 0, 1, 3, 5).reshape(16, -1)
        spectrum = torch.bmm((out_of.T @ tiles).view(36, -1, O), weight.mT)
        tiles = (into.T @ spectrum.view(36, -1)).view(6, 6, n, rows, columns, C).permute(2, 3, 0, 4, 1, 5)
        # Tiles of 6 overlap by 2: their first four rows and columns lie side by side, the rest falls on the next tile.
        picture = grad.new_zeros(n, rows + 1, 4, columns + 1, 4, C)
        picture[:, :-1, :, :-1] = tiles[:, :, :4, :, :4]
        picture[:, 1:, :2, :-1] += tiles[:, :, 4:, :, :4]
        picture[:, :-1, :, 1:, :2] += tiles[:, :, :4, :, 4:]
        picture[:, 1:, :2, 1:, :2] += tiles[:, :, 4:, :, 4:]
        picture = picture.view(n, 4 * rows + 4, 4 * columns + 4, C)
        return picture[:, 1 : H + 1, 1 : W + 1].permute(0, 3, 1, 2), None, None, None


class WinogradConv2d(nn.Module):
    """A 3x3 convolution with stride 1 and padding 1, without a gradient of its weights.

    The transformed weights take 4 times the memory of the others, which stay for small batches.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        """Transform the weights of a convolution, in float64."""
        super().__init__()
        weight = conv.weight.detach()
        once = torch.tensor(_G, dtype=torch.float64, device=weight.device)
        spectrum = torch.einsum("ir,ocrs,js->ijco", once, weight.double(), once)
        self.direct = conv
        self.register_buffer("weight", spectrum.reshape(36, weight.shape[1], weight.shape[0]).float().contiguous())
        self.register_buffer("into", _squared(_B).to(weight.device))
        self.register_buffer("out_of", _squared(_A).to(weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """[n, C, H, W] -> [n, O, H, W], float32."""
        if len(x) * _tiles(x) < _LEAST_TILES:
            convolved: Tensor = self.direct(x)
            return convolved
        output: Tensor = _Convolve.apply(x, self.weight, self.into, self.out_of)
        return output if self.direct.bias is None else output + self.direct.bias.view(1, -1, 1, 1)


def use_winograd(net: nn.Module, pictures: Tensor) -> list[tuple[nn.Module, str, nn.Conv2d]]:
    """Replace the convolutions within `net` that get faster by it, in place.

    Args:
        net: a network in float32 on a CPU.
        pictures: what it takes; one pass tells the sizes inside.

    Returns:
        What was replaced: parent, name and convolution.
    """
    fits: set[nn.Module] = set()

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        height, width = inputs[0].shape[-2:]
        if height * width >= _LEAST_FILLED * 16 * _tiles(inputs[0]):
            fits.add(module)

    hooks = [module.register_forward_pre_hook(look) for module in net.modules() if _suits(module)]
    try:
        with torch.no_grad():
            net(pictures)
    finally:
        for hook in hooks:
            hook.remove()
    replaced = [
        (parent, name, child)
        for parent in net.modules()
        if not isinstance(parent, WinogradConv2d)
        for name, child in parent.named_children()
        if isinstance(child, nn.Conv2d) and child in fits
    ]
    for parent, name, conv in replaced:
        setattr(parent, name, WinogradConv2d(conv))
    return replaced


def _tiles(x: Tensor) -> int:  # of one picture
    return -(-x.shape[2] // 4) * -(-x.shape[3] // 4)


def _suits(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and type(module) in (nn.Conv2d, FrozenConv2d)
        and module.kernel_size == (3, 3)
        and module.stride == module.dilation == (1, 1)
        and module.padding in ((1, 1), 1, "same")
        and module.padding_mode == "zeros"
        and module.groups == 1
        and min(module.in_channels, module.out_channels) >= _LEAST_CHANNELS
        and not (module._forward_hooks or module._forward_pre_hooks)
    )
