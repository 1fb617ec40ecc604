"""Move the normalisation at the head of a network out of it, so that what goes in lies around zero.

bfloat16 has eight bits: pictures in 0..255 lose every half grey level above 128, pictures in [-1, 1] keep them all.
Padding stays right, since the first convolution still pads what is normalised.
"""

import operator

import torch
from torch import Tensor, fx

from fastcloak.models.surrogate import Surrogate

__all__ = ["centre"]

_MULTIPLIES, _ADDS = {operator.mul, torch.mul}, {operator.add, torch.add}
_DIVIDES, _SUBTRACTS = {operator.truediv, torch.div}, {operator.sub, torch.sub}


def centre(surrogate: Surrogate) -> None:
    """Let `scale` and `shift` do what the network does first: it adds to pictures and multiplies them by constants.

    In place; a network that is not an fx graph, or begins otherwise, stays.
    """
    net = surrogate.net
    if not isinstance(net, fx.GraphModule):
        return
    pictures = head = next(node for node in net.graph.nodes if node.op == "placeholder")
    scale, shift = (torch.tensor(value, dtype=torch.float64) for value in (1.0, 0.0))
    while len(head.users) == 1:
        (step,) = head.users
        constant = _constant(net, step, head)
        if constant is None:
            break
        if step.target in _MULTIPLIES | _DIVIDES:
            factor = constant if step.target in _MULTIPLIES else 1 / constant
            scale, shift = scale * factor, shift * factor
        else:
            shift = shift + (constant if step.target in _ADDS else -constant)
        head = step
    if head is pictures:
        return
    head.replace_all_uses_with(pictures)
    net.graph.eliminate_dead_code()
    net.recompile()
    if surrogate.bgr:
        scale, shift = (value.flip(1) if value.ndim == 4 else value for value in (scale, shift))
    device = surrogate.scale.device
    scale, shift = scale.to(device), shift.to(device)
    surrogate.shift = (surrogate.shift.double() * scale + shift).float()
    surrogate.scale = (surrogate.scale.double() * scale).float()


# the number, or the three [1, 3, 1, 1], that a step of the graph changes its first argument by
def _constant(net: fx.GraphModule, step: fx.Node, head: fx.Node) -> Tensor | None:
    if step.op != "call_function" or step.target not in _MULTIPLIES | _ADDS | _DIVIDES | _SUBTRACTS or step.kwargs:
        return None
    first, second = step.args
    if first is not head and step.target in _MULTIPLIES | _ADDS:
        first, second = second, first
    if first is not head or second is head:
        return None
    if isinstance(second, (int, float)):
        return torch.tensor(second, dtype=torch.float64)
    if not isinstance(second, fx.Node) or second.op != "get_attr":
        return None
    value: Tensor = operator.attrgetter(str(second.target))(net).detach().double()
    if value.numel() == 1:
        return value.flatten()[0]
    return value.reshape(1, 3, 1, 1) if value.numel() == 3 and value.shape[-3:] == (3, 1, 1) else None
