"""Fold frozen batch normalisations into the convolutions and linear layers next to them, exactly.

A frozen batch normalisation is x * s + t with s = weight / sqrt(var + eps) and t = bias - mean * s, one a channel.

    norm after conv or linear:   W <- W s_out,  b <- b s_out + t
    norm before conv or linear:  W <- W s_in,   b <- b + W t

Before a convolution that pads with zeros, t is missing at the border: b + conv(t) is then not one number a channel but
a constant picture [1, C, H, W], which is added after the convolution. All arithmetic is in float64.
"""

import copy
import operator
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

__all__ = ["fold"]

BORDER = "border_of_"
"""Names of the constant pictures start so."""

_Net = fx.GraphModule
_FLATTENS, _FLATTEN_METHODS = {torch.flatten, torch.reshape}, {"flatten", "reshape", "view"}


def fold(net: fx.GraphModule, example: Tensor) -> int:
    """Fold in place what can be folded, and drop what does nothing in eval mode.

    Args:
        net: eval mode, of any dtype; what is folded is left in float64 for the caller to cast.
        example: [1, 3, S, S] in the network's dtype; sizes are read from a run on it.

    Returns:
        How many batch normalisations are left.
    """
    ShapeProp(net).propagate(example)
    with torch.no_grad():
        for rewrite in (_drop_idle, _merge_padding, _fold_after, _fold_before):
            for node in list(net.graph.nodes):
                rewrite(net, node)
    net.graph.eliminate_dead_code()
    net.delete_all_unused_submodules()
    net.graph.lint()
    net.recompile()
    return sum(isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) for module in net.modules())


def _drop_idle(net: fx.GraphModule, node: fx.Node) -> None:
    """Dropout in eval mode and Identity."""
    idle = type(_module(net, node)) in (nn.Identity, nn.Dropout, nn.Dropout2d)
    if idle or (node.target is F.dropout and node.kwargs.get("training") is False):
        _remove(net, node)


def _merge_padding(net: fx.GraphModule, node: fx.Node) -> None:
    """Zero padding before a convolution becomes the convolution's own, where it is symmetric: one copy less."""
    conv = _owned(net, node, nn.Conv2d)
    if conv is None or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return
    source = _source(node)
    pad = _module(net, source)
    if len(source.users) > 1 or type(pad) is not nn.ZeroPad2d:
        return
    left, right, top, bottom = pad.padding
    if left != right or top != bottom or min(left, top) < 0:
        return
    conv.padding = (conv.padding[0] + top, conv.padding[1] + left)
    conv._reversed_padding_repeated_twice = [conv.padding[1]] * 2 + [conv.padding[0]] * 2
    node.replace_input_with(source, _source(source))


def _fold_after(net: fx.GraphModule, node: fx.Node) -> None:
    """Conv -> BatchNorm2d, and Linear -> BatchNorm1d."""
    if not _is_frozen_norm(net, node):
        return
    source = _source(node)
    kind, ndim = (nn.Conv2d, 4) if isinstance(_module(net, node), nn.BatchNorm2d) else (nn.Linear, 2)
    layer = _owned(net, source, kind)
    if layer is None or len(source.users) > 1 or len(_shape(node)) != ndim:
        return
    s, t = _affine(net, node)
    bias = t if layer.bias is None else layer.bias.double() * s + t
    _set(layer, layer.weight.double() * s.reshape(-1, *[1] * (ndim - 1)), bias)
    _remove(net, node)


def _fold_before(net: fx.GraphModule, node: fx.Node) -> None:
    """BatchNorm -> (zero padding) -> Conv, and BatchNorm -> (flatten) -> Linear."""
    if not _is_frozen_norm(net, node):
        return
    pads: list[nn.Module] = []
    user = _only_user(node)
    while user is not None and type(_module(net, user)) is nn.ZeroPad2d:
        pads.append(_module(net, user))
        user = _only_user(user)
    while user is not None and not pads and _flattens(net, user):
        user = _only_user(user)
    if user is None:
        return
    conv, linear = _owned(net, user, nn.Conv2d), _owned(net, user, nn.Linear)
    if conv is not None and conv.padding_mode == "zeros":
        _fold_before_conv(net, node, user, conv, pads)
    elif linear is not None:
        _fold_before_linear(net, node, user, linear)


def _fold_before_conv(net: _Net, node: fx.Node, user: fx.Node, conv: nn.Conv2d, pads: list[nn.Module]) -> None:
    s, t = _affine(net, node)
    constant = t.reshape(1, -1, 1, 1).expand(1, -1, *_shape(node)[2:])
    for pad in pads:
        constant = pad(constant)
    constant = copy.deepcopy(conv).double()(constant)  # [1, C, H, W], with the bias
    weight = conv.weight.double()
    # a channel of group j of the input belongs to the filters of group j
    s = s.reshape(conv.groups, 1, -1).expand(-1, conv.out_channels // conv.groups, -1)
    bare = not pads and conv.padding in ((0, 0), "valid")
    _set(conv, weight * s.reshape(*weight.shape[:2], 1, 1), constant[0, :, 0, 0].clone() if bare else None)
    if not bare:
        name = f"{BORDER}{user.name}"
        net.register_buffer(name, constant.clone())
        with net.graph.inserting_after(user):
            buffer = net.graph.get_attr(name)
        with net.graph.inserting_after(buffer):
            added = net.graph.call_function(operator.add, (user, buffer))
        user.replace_all_uses_with(added, delete_user_cb=lambda one: one is not added)
        added.meta, buffer.meta = dict(user.meta), {}
    _remove(net, node)


def _fold_before_linear(net: _Net, node: fx.Node, user: fx.Node, linear: nn.Linear) -> None:
    shape = _shape(node)
    if len(_shape(user)) != 2 or shape[1:].numel() != linear.in_features:
        return
    s, t = (tensor.repeat_interleave(shape[2:].numel()) for tensor in _affine(net, node))
    weight = linear.weight.double()
    bias = weight @ t
    _set(linear, weight * s, bias if linear.bias is None else bias + linear.bias.double())
    _remove(net, node)


def _is_frozen_norm(net: _Net, node: fx.Node) -> bool:
    norm = _module(net, node)
    known = type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d)
    return known and norm.running_mean is not None and norm.running_var is not None


def _affine(net: _Net, node: fx.Node) -> tuple[Tensor, Tensor]:  # scale and shift [C]
    norm = _module(net, node)
    one = torch.ones_like(norm.running_var, dtype=torch.float64)
    s = (one if norm.weight is None else norm.weight.double()) / torch.sqrt(norm.running_var.double() + norm.eps)
    return s, (0 * one if norm.bias is None else norm.bias.double()) - norm.running_mean.double() * s


def _set(layer: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)


def _remove(net: fx.GraphModule, node: fx.Node) -> None:
    node.replace_all_uses_with(_source(node))
    net.graph.erase_node(node)


def _module(net: fx.GraphModule, node: fx.Node) -> Any:
    return net.get_submodule(str(node.target)) if node.op == "call_module" else None


# a module of exactly this type (subclasses may compute something else) that this node alone calls
def _owned(net: fx.GraphModule, node: fx.Node, kind: type[Any]) -> Any:
    module = _module(net, node)
    alone = type(module) is kind and sum(_module(net, other) is module for other in net.graph.nodes) == 1
    return module if alone else None


def _source(node: fx.Node) -> fx.Node:
    return node.all_input_nodes[0]


def _shape(node: fx.Node) -> torch.Size:
    return cast(torch.Size, node.meta["tensor_meta"].shape)


# the one node that reads the numbers of this one; reading its batch size changes nothing
def _only_user(node: fx.Node) -> fx.Node | None:
    readers = [
        user
        for user in node.users
        if not (user.op == "call_method" and user.target == "size")
        and not (user.target is getattr and user.args[1:] == ("shape",))
    ]
    return readers[0] if len(readers) == 1 else None


def _flattens(net: fx.GraphModule, node: fx.Node) -> bool:
    known = node.target in _FLATTENS or (node.op == "call_method" and node.target in _FLATTEN_METHODS)
    return (known or type(_module(net, node)) is nn.Flatten) and len(_shape(node)) == 2
