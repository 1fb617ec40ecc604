"""Convolutions that keep nothing of their input: the gradient of a picture does not read it.

    x -> y = W * x + b        dL/dx = W^T * dL/dy        dL/dW, which frozen weights never ask for, would read x

PyTorch keeps x all the same, since one formula of its has both gradients.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

__all__ = ["FrozenConv2d", "freeze_convolutions"]


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.strides, ctx.options = x.shape, x.stride(), options
        return F.conv2d(x, weight, bias, *options)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.options
        # Its shape and layout choose the algorithm, which is then that of nn.Conv2d; its numbers are not read.
        x = grad.new_empty_strided(ctx.shape, ctx.strides)
        fixed = (stride, padding, dilation, False, (0, 0), groups, (True, False, False))
        grad_x, _, _ = torch.ops.aten.convolution_backward(grad, x, weight, None, *fixed)
        return grad_x, None, None, None, None, None, None


class FrozenConv2d(nn.Conv2d):
    """nn.Conv2d without gradients of its weights; the same numbers."""

    def forward(self, x: Tensor) -> Tensor:
        """[n, C, H, W] -> [n, O, H', W']."""
        output: Tensor = _Convolve.apply(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )
        return output


def freeze_convolutions(net: nn.Module) -> None:
    """Make every nn.Conv2d within `net` that pads with a number of zeros a FrozenConv2d, in place; hooked ones stay."""
    for module in net.modules():
        plain = type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str)
        if plain and not (module._forward_hooks or module._forward_pre_hooks):
            module.__class__ = FrozenConv2d
