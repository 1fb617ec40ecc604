"""TF32 on a CPU: float32 products as a GPU's tensor cores compute them, wherever PyTorch would let them."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Operation -> which of its arguments are multiplied.
CONVOLUTIONS = {"convolution": (0, 1), "convolution_backward": (0, 1, 2)}
PRODUCTS = {"mm": (0, 1), "bmm": (0, 1), "mv": (0, 1), "dot": (0, 1), "linear": (0, 1)}
PRODUCTS |= {"addmm": (1, 2), "baddbmm": (1, 2), "addmv": (1, 2), "_addmm_activation": (1, 2)}
DROPPED = 13
"""Bits of float32's mantissa that TF32 does not have."""


class Tf32(TorchDispatchMode):
    """Within it, float32 operands of convolutions and matrix products are rounded to TF32, forward and backward.

    PyTorch's switches count as on a GPU: convolutions are rounded unless `torch.backends.cudnn.allow_tf32` is False,
    matrix products only if `torch.backends.cuda.matmul.allow_tf32` is True. Sums stay float32.

    Attributes:
        rounded: how many operations were.
    """

    def __init__(self):
        super().__init__()
        self.rounded = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation._schema.name.removeprefix("aten::")
        multiplied = ()
        if name in CONVOLUTIONS and _allowed(getattr(torch.backends.cudnn, "conv", torch.backends.cudnn)):
            multiplied = CONVOLUTIONS[name]
        elif name in PRODUCTS and _allowed(torch.backends.cuda.matmul):
            multiplied = PRODUCTS[name]
        if multiplied and args[multiplied[0]].dtype == torch.float32:
            self.rounded += 1
            args = [tf32(one) if i in multiplied else one for i, one in enumerate(args)]
        return operation(*args, **(kwargs or {}))


def tf32(x):
    """float32 rounded to the nearest number with 10 bits of mantissa, ties to even."""
    bits = x.view(torch.int32)
    half = (1 << (DROPPED - 1)) - 1 + ((bits >> DROPPED) & 1)
    nearest = ((bits + half) & -(1 << DROPPED)).view(torch.float32)
    return torch.where(x.isfinite(), nearest, x)


def _allowed(switches):
    # From torch 2.9 on there is a name for each precision, and to ask for the older switch may be an error.
    precision = getattr(switches, "fp32_precision", None)
    return switches.allow_tf32 if precision is None else precision == "tf32"
