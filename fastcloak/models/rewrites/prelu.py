"""PReLU: written as one module where a converter wrote it out, and with a faster gradient on a CPU."""

import operator
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable

__all__ = ["FrozenPReLU", "freeze_prelu", "join_prelu"]


class _PReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return torch.prelu(x, slope)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, slope = ctx.saved_tensors
        if x.ndim > 1:
            slope = slope.view(1, -1, *[1] * (x.ndim - 2))
        # slope * grad + (1 - slope) * relu'(x) grad in two vectorised passes.
        through = torch.ops.aten.threshold_backward(grad, x, 0)
        return torch.lerp(through, grad, slope.to(grad.dtype), out=through), None


class FrozenPReLU(nn.Module):
    """nn.PReLU without a gradient of its slope.

    PyTorch computes the gradient of the slope whether or not anyone wants it, in a loop that its CPU build does not
    vectorise. On a MobileFaceNet that was a third of a step (rungs `folded` and `prepared` of docs/performance.md).
    """

    def __init__(self, slope: Tensor) -> None:
        """Take the slope, [1] or [C]."""
        super().__init__()
        self.register_buffer("slope", slope.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """max(0, x) + slope * min(0, x), [n, C, ...] -> the same."""
        output: Tensor = _PReLU.apply(x, self.slope)
        return output


def freeze_prelu(net: nn.Module) -> None:
    """Replace every nn.PReLU within `net` by a FrozenPReLU, in place; one with hooks stays."""
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.PReLU and not (child._forward_hooks or child._forward_pre_hooks):
                setattr(parent, name, FrozenPReLU(child.weight))


def join_prelu(net: fx.GraphModule) -> None:
    """Rewrite relu(x) + c * (x - |x|), as some converters write PReLU, to nn.PReLU of slope 2 c, in place: exact."""
    for add in list(net.graph.nodes):
        found = _written_out(net, add) if add.target is operator.add else None
        if found is None:
            continue
        x, slope = found
        prelu, name = nn.PReLU(slope.numel()), f"prelu_of_{add.name}"
        prelu.weight.data = slope
        net.add_module(name, prelu)
        with net.graph.inserting_before(add):
            add.replace_all_uses_with(net.graph.call_module(name, (x,)))
    net.graph.eliminate_dead_code()
    net.delete_all_unused_submodules()
    net.recompile()


def _written_out(net: fx.GraphModule, add: fx.Node) -> tuple[fx.Node, Tensor] | None:  # x and the slope
    relu: Any
    for relu, scaled in permutations(add.args, 2):
        called = isinstance(relu, fx.Node) and relu.op == "call_module"
        if not (called and isinstance(net.get_submodule(relu.target), nn.ReLU)):
            continue
        (x,) = relu.args
        for factor, difference in permutations(_arguments(scaled, operator.mul), 2):
            minuend, absolute = _arguments(difference, operator.sub) or (None, None)
            if minuend is not x or _arguments(absolute, torch.abs) != (x,):
                continue
            if isinstance(factor, float):
                return x, torch.tensor([2 * factor])
            if isinstance(factor, fx.Node) and factor.op == "get_attr":
                constant: Tensor = getattr(net, str(factor.target))
                if constant.ndim in (3, 4) and constant.numel() == constant.shape[-3]:
                    return x, 2 * constant.flatten()
    return None


def _arguments(node: Any, function: Any) -> tuple[Any, ...]:
    return node.args if isinstance(node, fx.Node) and node.target is function else ()
