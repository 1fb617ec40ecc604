"""PReLU: written as one module where a converter wrote it out, and with a gradient of its input alone."""

import operator
from collections.abc import Callable
from itertools import permutations
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastcloak.models.rewrites.fold import BORDER

__all__ = ["FrozenPReLU", "freeze_prelu", "join_prelu", "move_biases"]


class FrozenPReLU(nn.Module):
    """nn.PReLU without a gradient of its slope.

    PyTorch computes the gradient of the slope whether or not anyone wants it: on a CPU in a loop that is not
    vectorised, a third of a step of a MobileFaceNet (rungs `folded` and `prepared` of docs/performance.md).
    """

    slope: Tensor  # [1] or [C]
    bias: Tensor | None  # [C] or [1, C, H, W]

    def __init__(self, slope: Tensor, ops: ModuleType) -> None:
        """Take the slope, [1] or [C], and what `resolve_backend` returned."""
        super().__init__()
        self.register_buffer("slope", slope.detach().clone())
        self.register_buffer("bias", None)
        self._compute: Callable[..., Tensor] = ops.frozen_prelu

    def forward(self, x: Tensor) -> Tensor:
        """max(0, z) + slope * min(0, z) of z = x + bias, [n, C, ...] -> the same."""
        return self._compute(x, self.slope, self.bias)


def freeze_prelu(net: nn.Module, ops: ModuleType) -> None:
    """Replace every nn.PReLU and FrozenPReLU within `net` by a FrozenPReLU of `ops`, in place; one with hooks stays."""
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if child._forward_hooks or child._forward_pre_hooks:
                continue
            if type(child) is nn.PReLU:
                setattr(parent, name, FrozenPReLU(child.weight, ops))
            elif type(child) is FrozenPReLU:
                frozen = FrozenPReLU(child.slope, ops)
                frozen.bias = child.bias
                setattr(parent, name, frozen)


def move_biases(net: fx.GraphModule) -> None:
    """Let each FrozenPReLU add the bias of the convolution before it, in place, where it alone reads that.

    The border that folding left there is such a bias, of one number a pixel.
    """
    for node in list(net.graph.nodes):
        prelu, source = _module(net, node), next(iter(node.all_input_nodes), None)
        if type(prelu) is not FrozenPReLU or prelu.bias is not None or source is None or len(source.users) > 1:
            continue
        if _calls(net, node) > 1:
            continue
        border = next((one for one in source.all_input_nodes if str(one.target).startswith(BORDER)), None)
        conv = _module(net, source)
        if source.target is operator.add and border is not None:
            node.replace_input_with(source, next(one for one in source.all_input_nodes if one is not border))
            prelu.bias = getattr(net, str(border.target))
            for gone in (source, border):
                net.graph.erase_node(gone)
            delattr(net, str(border.target))
        elif isinstance(conv, nn.Conv2d) and conv.bias is not None and _calls(net, source) == 1:
            prelu.bias, conv.bias = conv.bias.detach(), None
    net.recompile()


def _module(net: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return net.get_submodule(str(node.target)) if node.op == "call_module" else None


def _calls(net: fx.GraphModule, node: fx.Node) -> int:  # of the same module
    return sum(_module(net, other) is _module(net, node) for other in net.graph.nodes)


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
