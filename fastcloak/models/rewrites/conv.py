"""Convolutions that keep nothing of their input: the gradient of a picture does not read it.

    x -> y = W * x + b        dL/dx = W^T * dL/dy        dL/dW, which frozen weights never ask for, would read x

PyTorch keeps x all the same, since one formula of its has both gradients.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

__all__ = ["FrozenConv2d", "freeze_convolutions", "slow_in_bfloat16"]


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
        dtype = grad.dtype
        if grad.device.type == "cpu" and dtype == torch.bfloat16 and slow_in_bfloat16(stride, groups):
            grad, weight = grad.float(), weight.float()
        # Its shape and layout choose the algorithm, which is then that of nn.Conv2d; its numbers are not read.
        x = grad.new_empty_strided(ctx.shape, ctx.strides)
        fixed = (stride, padding, dilation, False, (0, 0), groups, (True, False, False))
        grad_x, _, _ = torch.ops.aten.convolution_backward(grad, x, weight, None, *fixed)
        return grad_x.to(dtype), None, None, None, None, None, None


def slow_in_bfloat16(stride: Sequence[int], groups: int) -> bool:
    """Whether a CPU is far slower at the gradient in bfloat16 than in float32: grouped convolutions with a stride.

    Four of these took half of a gradient of SFace in bfloat16. With them in float32 it takes 0.5 (four photos) to 0.8
    (one) of the time of float32 where the processor has AMX (docs/performance.md).
    """
    return groups > 1 and max(stride) > 1


class FrozenConv2d(nn.Conv2d):
    """nn.Conv2d without gradients of its weights; the same numbers, but for `slow_in_bfloat16` on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """[n, C, H, W] -> [n, O, H', W']."""
        output: Tensor = _Convolve.apply(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )
        return output


def freeze_convolutions(net: nn.Module, slow_alone: bool = False) -> None:
    """Make every nn.Conv2d within `net` that pads with a number of zeros a FrozenConv2d, in place; hooked ones stay.

    With `slow_alone` only those that are `slow_in_bfloat16`: a call of Python costs a CPU more than what others save.
    """
    for module in net.modules():
        if type(module) is not nn.Conv2d or module._forward_hooks or module._forward_pre_hooks:
            continue
        plain = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        if plain and (not slow_alone or slow_in_bfloat16(module.stride, module.groups)):
            module.__class__ = FrozenConv2d
