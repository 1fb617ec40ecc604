"""DFANet: drops other single numbers after each convolution of a surrogate in every forward pass."""

import operator
from typing import Any

from torch import fx, nn
from torch.nn import functional as F

from fastcloak.models.rewrites.fold import BORDER
from fastcloak.models.rewrites.prelu import FrozenPReLU
from fastcloak.models.rewrites.winograd import WinogradConv2d
from fastcloak.models.surrogate import Ensemble, Surrogate

__all__ = ["with_dropout"]


def with_dropout(surrogate: Surrogate, p: float) -> Surrogate:
    """Copy a surrogate with element-wise dropout after every convolution, on in eval mode too.

    The dropped networks of many forward passes act as an ensemble of one network's price. Each pass draws from
    PyTorch's default generator of the device. Where batch normalisations were folded into their convolutions, numbers
    are dropped after both.

    Args:
        surrogate: what `prepare` returned.
        p: share of the numbers that become 0, in [0, 1); the others are divided by 1 - p.

    Raises:
        ValueError: the network is not an fx graph, or has no convolution.

    Source: Zhong and Deng, "Towards transferable adversarial attack against deep face recognition", TIFS 2021.
    """
    if isinstance(surrogate, Ensemble):
        return Ensemble([with_dropout(member, p) for member in surrogate.members], name=surrogate.name)
    copy = surrogate.copy()
    net: Any = copy.net
    traced = isinstance(net, fx.GraphModule)
    convolutions = [node for node in net.graph.nodes if _is_conv(net, node)] if traced else []
    if not convolutions:
        raise ValueError(
            f"dropout must be 0 for {surrogate.name}: it goes after the convolutions of networks that torch.fx can "
            f"trace, and this one has none or cannot be traced ({'; '.join(surrogate.notes)})"
        )
    for node in convolutions:
        users = list(node.users)
        # Where folding left a constant picture instead of a bias, the sum of both is what is dropped from.
        constant = users[0].args[1] if len(users) == 1 and users[0].target is operator.add else None
        if isinstance(constant, fx.Node) and constant.op == "get_attr" and str(constant.target).startswith(BORDER):
            node, users = users[0], list(users[0].users)
        # Where PReLU adds the bias, what follows it is dropped from: it keeps zeros and factors as they are.
        if len(users) == 1 and _adds_bias(net, users[0]):
            node, users = users[0], list(users[0].users)
        with net.graph.inserting_after(node):
            dropped = net.graph.call_function(F.dropout, (node, p, True))
        for user in users:
            user.replace_input_with(node, dropped)
    net.recompile()
    return copy


def _is_conv(net: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(net.get_submodule(str(node.target)), (nn.Conv2d, WinogradConv2d))
    return node.target is F.conv2d


def _adds_bias(net: fx.GraphModule, node: fx.Node) -> bool:
    module = net.get_submodule(str(node.target)) if node.op == "call_module" else None
    return isinstance(module, FrozenPReLU) and module.bias is not None
