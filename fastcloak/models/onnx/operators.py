"""What each ONNX operator becomes: a torch module where there is one, a torch function otherwise.

Source: the operator specification, github.com/onnx/onnx docs/Operators.md and docs/Changelog.md (for older opsets).
Shapes are those of one picture (graph.py): the front axis is an axis like any other, except that an operator that
would compute across a batch axis is refused.
"""

import functools
import math
import operator
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcloak.models.onnx.graph import Builder, Known, Operation, Value, as_tensor, axis_from_front, whole_numbers
from fastcloak.models.surrogate import MAX_SIDE

__all__ = ["CONSTANTS_ONLY", "FLOATS", "OPERATORS", "emit"]

# TensorProto.DataType: float, float16, double, bfloat16; uint8 and the types of whole numbers that hold all of it
FLOATS, _WHOLE = (1, 10, 11, 16), (2, 4, 5, 6, 7, 12, 13)

# Guards against files written to exhaust memory, far above any face network: numbers of a picture, pixels of a border.
_MAX_NUMBERS, _MAX_PAD = 1 << 24, 512

_Function = Callable[..., Any]

_UNARY = {name: getattr(torch, name.lower()) for name in ("Abs", "Cos", "Erf", "Exp", "Log", "Neg", "Reciprocal")}
_UNARY |= {"Sin": torch.sin, "Sqrt": torch.sqrt}
_BINARY: dict[str, _Function] = {"Add": operator.add, "Div": operator.truediv, "Mul": operator.mul}
_BINARY |= {"Pow": torch.pow, "Sub": operator.sub}
# of any number of operands
_SEVERAL: dict[str, _Function] = {"Max": torch.maximum, "Mean": operator.add, "Min": torch.minimum, "Sum": operator.add}
# modules, and the attributes that they are made of, with their defaults
_ACTIVATIONS: dict[str, tuple[_Function, dict[str, Any]]] = {
    "Celu": (nn.CELU, {"alpha": 1.0}),
    "Elu": (nn.ELU, {"alpha": 1.0}),
    "Gelu": (nn.GELU, {"approximate": "none"}),
    "HardSwish": (nn.Hardswish, {}),
    "LeakyRelu": (nn.LeakyReLU, {"alpha": 0.01}),
    **{name: (getattr(nn, name), {}) for name in ("Mish", "Sigmoid", "Softplus", "Softsign", "Tanh")},
    "Relu": (nn.ReLU, {}),
}
_SOFTMAX: dict[str, _Function] = {"LogSoftmax": torch.log_softmax, "Softmax": torch.softmax}
_GLOBAL_POOLS: dict[str, tuple[_Function, _Function]] = {
    "GlobalAveragePool": (nn.AdaptiveAvgPool2d, torch.mean),
    "GlobalMaxPool": (nn.AdaptiveMaxPool2d, torch.amax),
}
# functions, and their arguments before the axes
_REDUCTIONS: dict[str, tuple[Any, ...]] = {
    "ReduceL1": (torch.linalg.vector_norm, 1), "ReduceL2": (torch.linalg.vector_norm, 2),
    "ReduceLogSumExp": (torch.logsumexp,), "ReduceMax": (torch.amax,), "ReduceMean": (torch.mean,),
    "ReduceMin": (torch.amin,), "ReduceSum": (torch.sum,), "ReduceSumSquare": (torch.sum,),
}  # fmt: skip
# Exporters compute sizes and weights with these, never pictures.
CONSTANTS_ONLY = (
    *("And", "Ceil", "Constant", "ConstantOfShape", "CumSum", "DequantizeLinear", "Equal", "Floor", "Greater"),
    *("GreaterOrEqual", "Less", "LessOrEqual", "Mod", "Not", "Or", "Range", "ReduceProd", "Shape", "Size"),
)


def emit(build: Builder, op: Operation) -> list[Value]:
    """Add one operation to the graph.

    Raises:
        ValueError: a use of the operator that is not supported, or a result that is absurdly large.
    """
    made = OPERATORS[op.kind](build, op)
    results = made if isinstance(made, list) else [made]
    for result in results:
        if result.example.numel() > 2 * _MAX_NUMBERS:
            shape = list(result.shape[1:] if result.batch else result.shape)
            raise ValueError(f"must make at most {_MAX_NUMBERS} numbers a picture, got shape {shape}")
    return results


# Do something along axes of a value. Along the front axis, where pictures lie too, it is done one axis further in.
def _along(build: Builder, x: Value, axes: Sequence[int], function: Callable[[Value, tuple[int, ...]], Value]) -> Value:
    if 0 not in axes:
        return function(x, tuple(axes))
    return build.lower(function(build.lift(x), tuple(axis + 1 for axis in axes)))


# A function of values and constants that are broadcast against each other; `numbers`: whether it takes plain numbers.
def _broadcast(
    build: Builder, function: Callable[..., Any], operands: Sequence[Value | Known], *, numbers: bool = False
) -> Value:
    shape = np.broadcast_shapes(*(operand.shape for operand in operands))
    front = any(
        len(operand.shape) == len(shape) and operand.shape[0] > 1 if isinstance(operand, np.ndarray)
        else (len(operand.shape), operand.shape[0]) != (len(shape), shape[0])
        for operand in operands
    )  # fmt: skip
    arguments = [
        (operand.item() if numbers and operand.size == 1 else operand)
        if isinstance(operand, np.ndarray)
        else build.lift(operand, len(shape)) if front else operand
        for operand in operands
    ]  # fmt: skip
    made = build.call(function, *arguments)
    return build.lower(made) if front else made


def _operands(op: Operation) -> list[Value | Known]:
    operands = [value for value in op.inputs if value is not None]
    if len(operands) != len(op.inputs):
        raise ValueError("every operand must be given")
    return operands


# a module with the numbers of the file
def _filled(build: Builder, module: nn.Module, x: Value, **tensors: Tensor | None) -> Value:
    for name, tensor in tensors.items():
        own = getattr(module, name)
        if tensor is None:
            continue
        if tensor.shape != own.shape:
            raise ValueError(f"{name} must be {list(own.shape)}, got {list(tensor.shape)}")
        tensor = tensor.float().contiguous()
        setattr(module, name, nn.Parameter(tensor, requires_grad=False) if isinstance(own, nn.Parameter) else tensor)
    return build.module(module, x)


# The picture, padded by `pad` where torch's own padding cannot, which is the same on opposite sides, and at most half
# a kernel where it pools; kernel, strides, dilations and padding for torch; what `pad` got.
def _window(
    build: Builder, op: Operation, kernel: Sequence[int], pad: Callable[[Any], nn.Module], *, pools: bool
) -> tuple[Value, Any, Any, Any, Any, Any]:
    x = op.value()
    if len(kernel) != 2 or len(x.shape) != 4:
        raise ValueError(f"must have a kernel of 2 sizes on [n, C, H, W], got {list(kernel)} on {list(x.shape)}")
    strides, dilations = (op.get(name, (1, 1)) for name in ("strides", "dilations"))
    auto = op.choice("auto_pad", "NOTSET", ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"))
    pads = list(op.get("pads", (0, 0, 0, 0))) if auto == "NOTSET" else [0, 0, 0, 0]
    if auto.startswith("SAME"):
        for i in range(2):
            size, reach = x.shape[2 + i], (kernel[i] - 1) * dilations[i] + 1
            total = max((-(-size // strides[i]) - 1) * strides[i] + reach - size, 0)
            less, more = total // 2, total - total // 2
            pads[i], pads[2 + i] = (less, more) if auto == "SAME_UPPER" else (more, less)
    if len(pads) != 4 or not all(0 <= pad <= _MAX_PAD for pad in pads):
        raise ValueError(f"pads must be 4 whole numbers in [0, {_MAX_PAD}], got {pads}")
    top, left, bottom, right = pads
    padding, around = (top, left), None
    if padding != (bottom, right) or (pools and (2 * top > kernel[0] or 2 * left > kernel[1])):
        padding, around = (0, 0), (left, right, top, bottom)
        x = build.module(pad(around), x)
    return x, tuple(kernel), (strides[0], strides[1]), (dilations[0], dilations[1]), padding, around


def _conv(build: Builder, op: Operation) -> Value:
    weight = as_tensor(op.known(1))
    if weight.ndim == 3 and len(op.value().shape) == 3:
        return _conv_on_lists(build, op)
    x, kernel, strides, dilations, padding, _ = _window(build, op, weight.shape[2:], nn.ZeroPad2d, pools=False)
    groups = op.get("group", 1)
    channels = weight.shape[1] * groups
    # Made on the meta device: it is filled at once, and draws no random numbers.
    conv = nn.Conv2d(channels, len(weight), kernel, strides, padding, dilations, groups, bias=op.has(2), device="meta")
    return _filled(build, conv, x, weight=weight, bias=as_tensor(op.known(2)) if op.has(2) else None)


# [n, C, W] as pictures of height 1
def _conv_on_lists(build: Builder, op: Operation) -> Value:
    x, attributes = op.value(), dict(op.attributes)
    for name in attributes.keys() & {"strides", "dilations"}:
        attributes[name] = [1, *attributes[name]]
    if "pads" in attributes:
        before, after = attributes["pads"]
        attributes["pads"] = [0, before, 0, after]
    flat = build.reshape(x, (*x.shape[:2], 1, x.shape[2]))
    made = _conv(build, replace(op, inputs=(flat, op.known(1)[:, :, None], *op.inputs[2:]), attributes=attributes))
    return build.reshape(made, (*made.shape[:2], made.shape[3]))


def _max_pool(build: Builder, op: Operation) -> Value:
    pad = functools.partial(nn.ConstantPad2d, value=-math.inf)
    x, kernel, strides, dilations, padding, _ = _window(build, op, op.get("kernel_shape"), pad, pools=True)
    ceil = bool(op.get("ceil_mode", 0))
    return build.module(nn.MaxPool2d(kernel, strides, padding, dilations, ceil_mode=ceil), x)


def _average_pool(build: Builder, op: Operation) -> Value:
    shape = op.get("kernel_shape")
    x, kernel, strides, dilations, padding, around = _window(build, op, shape, nn.ZeroPad2d, pools=True)
    if dilations != (1, 1):
        raise ValueError(f"dilations must be [1, 1], got {list(dilations)}")
    ceil, whole = bool(op.get("ceil_mode", 0)), bool(op.get("count_include_pad", 0))
    pool = nn.AvgPool2d(kernel, strides, padding, ceil, whole or around is not None)
    x = build.module(pool, x)
    if around is not None and not whole:
        # Averages over padded windows become averages over the pixels that are really there.
        covered = pool(F.pad(torch.ones(1, 1, *op.value().shape[2:]), around))
        x = build.call(operator.truediv, x, covered.numpy())
    return x


def _global_pool(build: Builder, op: Operation) -> Value:
    x, (pool, function) = op.value(), _GLOBAL_POOLS[op.kind]
    if len(x.shape) == 4:
        return build.module(pool(1), x)
    return build.call(function, x, tuple(range(2, len(x.shape))), True)


def _pad(build: Builder, op: Operation) -> Value:
    x = op.value()
    ndim = len(x.shape)
    pads = op.ints("pads", 1, 11, [])
    axes = [axis % ndim for axis in op.ints("axes", 3, 18, range(ndim))]
    if len(pads) != 2 * len(axes) or not all(-_MAX_PAD <= pad <= _MAX_PAD for pad in pads):
        raise ValueError(f"pads must be {2 * len(axes)} whole numbers within +-{_MAX_PAD}, got {pads}")
    around = [(0, 0)] * ndim
    for i, axis in enumerate(axes):
        around[axis] = (pads[i], pads[len(axes) + i])
    if any(around[0]):
        raise ValueError("axis 0 is the batch and must be left alone")
    mode = op.get("mode", "constant")
    fill = op.get("value", 0.0) if op.opset < 11 else op.known(2).item() if op.has(2) else 0.0
    torch_pads: tuple[Any, ...] = tuple(pad for pair in around[:0:-1] for pad in pair)
    flat = ndim == 4 and not any(around[1])
    if mode == "constant":
        if fill == 0 and flat and min(pads) >= 0:
            return build.module(nn.ZeroPad2d(torch_pads[:4]), x)
        return build.call(F.pad, x, torch_pads, "constant", float(fill))
    if mode not in ("reflect", "edge") or not flat:
        raise ValueError(f"mode must be constant, or reflect or edge on height and width alone, got {mode!r}")
    return build.call(F.pad, x, torch_pads[:4], "replicate" if mode == "edge" else mode)


# Bilinear, bicubic and nearest resizing as one matrix an axis: exact in every coordinate mode, and its gradient is
# deterministic on every device.
def _resize(build: Builder, op: Operation) -> Value:
    x, old = op.value(), op.opset < 11 or op.kind == "Upsample"
    shape, ndim = x.shape, len(x.shape)
    if op.get("antialias", 0) or op.get("exclude_outside", 0):
        raise ValueError("antialias and exclude_outside must be 0")
    op.choice("keep_aspect_ratio_policy", "stretch", ("stretch",))
    axes = [axis % ndim for axis in op.get("axes", range(ndim))]
    index = 1 if old else 2
    if "scales" in op.attributes or (op.has(index) and op.known(index).size):
        scales = [float(scale) for scale in op.get("scales", None) or op.known(index).flatten()]
        sizes = [math.floor(shape[axis] * scale) for axis, scale in zip(axes, scales, strict=True)]
    else:
        sizes = op.sizes(3)
        scales = [size / shape[axis] for axis, size in zip(axes, sizes, strict=True)]
    for axis, size, scale in zip(axes, sizes, scales, strict=True):
        if size == shape[axis] and scale == 1:
            continue
        if ndim != 4 or axis < 2 or not 1 <= size <= MAX_SIDE >= shape[axis]:
            raise ValueError(f"must resize height and width, within [1, {MAX_SIDE}], got {list(shape)} to {sizes}")
        matrix = _resize_matrix(op, shape[axis], size, scale, old).astype(np.float32)
        x = build.call(torch.matmul, matrix, x) if axis == 2 else build.call(torch.matmul, x, matrix.T)
    return x


def _resize_matrix(op: Operation, size: int, to: int, scale: float, old: bool) -> Known:  # [to, size]
    known = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
    coordinates = "asymmetric" if old else op.choice("coordinate_transformation_mode", "half_pixel", known)
    at = np.arange(to, dtype=np.float64)
    if coordinates == "align_corners":
        at *= (size - 1) / max(to - 1, 1)
    elif coordinates == "asymmetric":
        at /= scale
    else:
        at = (at + 0.5) / scale - 0.5 if to > 1 or coordinates == "half_pixel" else 0 * at
    mode = op.choice("mode", "nearest", ("nearest", "linear", "cubic"))
    if mode == "nearest":
        nearest = {
            "round_prefer_floor": np.ceil(at - 0.5),
            "round_prefer_ceil": np.floor(at + 0.5),
            "floor": np.floor(at),
            "ceil": np.ceil(at),
        }
        rounding = "floor" if old else op.choice("nearest_mode", "round_prefer_floor", tuple(nearest))
        taps = [(nearest[rounding], np.ones(to))]
    elif mode == "linear":
        at = at.clip(0, size - 1)
        left = np.floor(at)
        taps = [(left, 1 - at + left), (left + 1, at - left)]
    else:
        left, a = np.floor(at), op.get("cubic_coeff_a", -0.75)
        taps = []
        for step in range(-1, 3):
            t = np.abs(at - left - step)
            near_weight = ((a + 2) * t - (a + 3)) * t * t + 1
            far_weight = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
            taps.append((left + step, np.where(t <= 1, near_weight, far_weight)))
    matrix = np.zeros((to, size))
    for index, weight in taps:
        np.add.at(matrix, (np.arange(to), index.clip(0, size - 1).astype(np.int64)), weight)
    return matrix


def _batch_normalization(build: Builder, op: Operation) -> Value:
    x = op.value()
    if op.get("training_mode", 0) or not op.get("spatial", 1):
        raise ValueError("must be in inference mode, with one mean and variance a channel")
    weight, bias, mean, var = (as_tensor(op.known(i)) for i in range(1, 5))
    kind = nn.BatchNorm2d if len(x.shape) == 4 else nn.BatchNorm1d
    norm = kind(weight.numel(), eps=op.get("epsilon", 1e-5))
    return _filled(build, norm, x, weight=weight, bias=bias, running_mean=mean, running_var=var)


def _prelu(build: Builder, op: Operation) -> Value:
    x, slope = op.value(), op.known(1)
    shape, ndim = x.example.shape, x.example.ndim
    channels = shape[1]
    # Files converted from MXNet write [C] for a slope a channel, which ONNX's broadcasting would read as a width.
    per_channel = slope.ndim == 1 and (slope.size == channels != shape[-1] or ndim == 2)
    aligned = slope if per_channel else slope.reshape((1,) * (ndim - slope.ndim) + slope.shape)[0]
    if slope.size not in (1, channels) or (slope.size > 1 and aligned.shape[0] != channels):
        raise ValueError(f"slope must be one number or {channels}, one a channel, got {list(slope.shape)}")
    return _filled(build, nn.PReLU(slope.size), x, weight=as_tensor(slope).flatten())


# scale and bias [C], mean and variance of each picture and group of channels
def _group_normalization(build: Builder, op: Operation) -> Value:
    x, weight, bias = op.value(), as_tensor(op.known(1)), as_tensor(op.known(2))
    channels = x.shape[1]
    groups = op.get("num_groups") if op.kind == "GroupNormalization" else channels
    if not 1 <= groups <= channels or channels % groups:
        raise ValueError(f"num_groups must divide {channels}, got {groups}")
    if op.kind == "GroupNormalization" and op.opset < 21:
        weight, bias = (tensor.repeat_interleave(channels // groups) for tensor in (weight, bias))
    return _filled(build, nn.GroupNorm(groups, channels, op.get("epsilon", 1e-5)), x, weight=weight, bias=bias)


def _layer_normalization(build: Builder, op: Operation) -> Value:
    def normalise(x: Value, axes: tuple[int, ...]) -> Value:
        shape = x.shape[axes[0] :]
        norm = nn.LayerNorm(shape, op.get("epsilon", 1e-5), bias=op.has(2), device="meta")
        weight = as_tensor(np.broadcast_to(op.known(1), shape))
        bias = as_tensor(np.broadcast_to(op.known(2), shape)) if op.has(2) else None
        return _filled(build, norm, x, weight=weight, bias=bias)

    return _along(build, op.value(), [axis_from_front(op.get("axis", -1), op.value())], normalise)


def _local_response(build: Builder, op: Operation) -> Value:
    size = op.get("size")
    if size < 1 or size % 2 == 0:
        raise ValueError(f"size must be an odd number, got {size}")
    norm = nn.LocalResponseNorm(size, op.get("alpha", 1e-4), op.get("beta", 0.75), op.get("bias", 1.0))
    return build.module(norm, op.value())


def _lp_normalization(build: Builder, op: Operation) -> Value:
    x, p = op.value(), op.get("p", 2)
    if p not in (1, 2):
        raise ValueError(f"p must be 1 or 2, got {p}")
    axis = axis_from_front(op.get("axis", -1), x)
    return _along(build, x, [axis], lambda x, axes: build.call(F.normalize, x, float(p), axes[0]))


def _softmax(build: Builder, op: Operation) -> Value:
    x, function = op.value(), _SOFTMAX[op.kind]
    shape = x.shape
    axis = axis_from_front(op.get("axis", -1 if op.opset >= 13 else 1), x)
    # Before opset 13 it goes over this axis and all that follow.
    if op.opset < 13:
        x = build.reshape(x, (*shape[:axis], math.prod(shape[axis:])))
    return build.reshape(_along(build, x, [axis], lambda x, axes: build.call(function, x, axes[0])), shape)


def _activation(build: Builder, op: Operation) -> Value:
    module, attributes = _ACTIVATIONS[op.kind]
    return build.module(module(*(op.get(name, default) for name, default in attributes.items())), op.value())


def _selu(build: Builder, op: Operation) -> Value:
    elu = build.module(nn.ELU(op.get("alpha", 1.67326319217681884765625)), op.value())
    return build.call(operator.mul, elu, op.get("gamma", 1.05070102214813232421875))


def _hard_sigmoid(build: Builder, op: Operation) -> Value:
    scaled = build.call(operator.mul, op.value(), op.get("alpha", 0.2))
    return build.call(torch.clamp, build.call(operator.add, scaled, op.get("beta", 0.5)), 0.0, 1.0)


def _clip(build: Builder, op: Operation) -> Value:
    low, high = (op.known(i).item() if op.has(i) else None for i in (1, 2))
    if op.opset < 11:
        low, high = op.get("min", None), op.get("max", None)
    return op.value() if low is None and high is None else build.call(torch.clamp, op.value(), low, high)


def _several(build: Builder, op: Operation) -> Value:
    first, *others = sorted(_operands(op), key=lambda operand: isinstance(operand, np.ndarray))
    if not isinstance(first, Value):
        raise ValueError("must have an operand that depends on the picture")
    total = functools.reduce(lambda x, y: _broadcast(build, _SEVERAL[op.kind], (x, y)), others, first)
    return build.call(operator.truediv, total, len(op.inputs)) if op.kind == "Mean" else total


def _where(build: Builder, op: Operation) -> Value:
    op.known(0)
    return _broadcast(build, torch.where, _operands(op))


# weight [out, in], bias [out]
def _linear(build: Builder, x: Value, weight: Tensor, bias: Tensor | None = None) -> Value:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    return _filled(build, linear, x, weight=weight, bias=bias)


def _gemm(build: Builder, op: Operation) -> Value:
    x, weight = op.value(), torch.from_numpy(op.known(1).astype(np.float64))
    if op.get("transA", 0) or len(x.shape) != 2:
        raise ValueError(f"input 0 must be [n, C] and not transposed, got {list(x.shape)}")
    weight = (weight if op.get("transB", 0) else weight.T) * op.get("alpha", 1.0)
    if not op.has(2):
        return _linear(build, x, weight)
    bias = torch.from_numpy(op.known(2).astype(np.float64)) * op.get("beta", 1.0)
    return _linear(build, x, weight, bias.flatten().expand(weight.shape[0]))


def _matmul(build: Builder, op: Operation) -> Value:
    first, second = _operands(op)
    if isinstance(first, Value) and isinstance(second, np.ndarray) and second.ndim == 2 and len(first.shape) > 1:
        return _linear(build, first, torch.from_numpy(second.astype(np.float64)).T)
    ndims, fronts = zip(*((len(x.shape), x.shape[:1]) for x in (first, second)), strict=True)
    if min(ndims) < 2:
        raise ValueError(f"operands must have 2 axes or more, got {list(first.shape)} and {list(second.shape)}")
    # The front axis is one of those that stay, and is the same in both, or in the one that has it.
    arrays = [x for x in (first, second) if isinstance(x, np.ndarray)]
    same = all(x.ndim == 2 for x in arrays) if arrays else len(set(zip(ndims, fronts, strict=True))) == 1
    if max(ndims) > 2 and same:
        return build.call(torch.matmul, first, second)
    lifted = (build.lift(x, max(ndims)) if isinstance(x, Value) else x for x in (first, second))
    return build.lower(build.call(torch.matmul, *lifted))


# Pictures get a letter of their own.
def _einsum(build: Builder, op: Operation) -> Value:
    equation, operands = op.get("equation").replace(" ", ""), _operands(op)
    match = re.fullmatch(r"([A-Za-z.]*(?:,[A-Za-z.]*)?)(?:->([A-Za-z.]*))?", equation)
    if match is None or "..." in equation:
        raise ValueError(f"equation must have one or two operands of letters, got {equation!r}")
    terms, letters = match[1].split(","), sorted(match[1].replace(",", ""))
    made = match[2] if match[2] is not None else "".join(one for one in letters if letters.count(one) == 1)
    own = next(letter for letter in string.ascii_letters if letter not in letters)
    terms = [own + term if isinstance(x, Value) else term for term, x in zip(terms, operands, strict=True)]
    lifted = [build.lift(x) if isinstance(x, Value) else x for x in operands]
    return build.lower(build.call(torch.einsum, f"{','.join(terms)}->{own}{made}", *lifted))


def _reduce(build: Builder, op: Operation) -> Value:
    function, *leading = _REDUCTIONS[op.kind]
    x = build.call(torch.square, op.value()) if op.kind == "ReduceSumSquare" else op.value()
    axes = [axis_from_front(axis, x) for axis in op.ints("axes", 1, 13 if op.kind == "ReduceSum" else 18, ())]
    if not axes and (x.batch or op.get("noop_with_empty_axes", 0)):
        raise ValueError("axes must be given: a reduction of everything would mix pictures")
    keep = bool(op.get("keepdims", 1))
    axes = axes or list(range(len(x.shape)))
    return _along(build, x, axes, lambda x, axes: build.call(function, x, *leading, axes, keep))


def _flatten(build: Builder, op: Operation) -> Value:
    x = op.value()
    shape, axis = x.shape, op.get("axis", 1)
    if not -len(shape) <= axis <= len(shape):
        raise ValueError(f"axis must be in [{-len(shape)}, {len(shape)}], got {axis}")
    axis += len(shape) if axis < 0 else 0
    if axis == 1:
        return build.module(nn.Flatten(1), x)
    if x.batch:
        raise ValueError(f"axis must be 1, got {axis}: pictures must be kept apart")
    return build.reshape(x, (math.prod(shape[:axis]), math.prod(shape[axis:])))


def _reshape(build: Builder, op: Operation) -> Value:
    x, target = op.value(), whole_numbers(op.known(1))
    shape = x.shape
    if not op.get("allowzero", 0):
        target = [shape[i] if size == 0 and i < len(shape) else size for i, size in enumerate(target)]
    numbers = math.prod(shape)
    # The front size of a batch is the batch, whatever it says, if the others take in one picture.
    if x.batch and target and (-1 in target[1:] or math.prod(target[1:]) == numbers):
        target[0] = 1
    if target.count(-1) == 1:
        others = math.prod(size for size in target if size != -1)
        target[target.index(-1)] = numbers // max(others, 1)
    if min(target, default=0) < 0 or math.prod(target) != numbers:
        raise ValueError(f"must keep pictures apart: {list(shape)} of one picture cannot become {target}")
    return build.reshape(x, target)


def _transpose(build: Builder, op: Operation) -> Value:
    x = op.value()
    ndim = len(x.shape)
    order = list(op.get("perm", range(ndim)[::-1]))
    if sorted(order) != list(range(ndim)):
        raise ValueError(f"perm must be an order of {ndim} axes, got {order}")
    if order[0] == 0:
        return build.call(torch.permute, x, tuple(order))
    return build.lower(build.call(torch.permute, build.lift(x), (0, *(axis + 1 for axis in order))))


def _squeeze(build: Builder, op: Operation) -> Value:
    x = op.value()
    shape, given = x.shape, op.ints("axes", 1, 13)
    if given is None:
        axes = [axis for axis in range(1 if x.batch else 0, len(shape)) if shape[axis] == 1]
    else:
        axes = [axis_from_front(axis, x) for axis in given]
    if any(shape[axis] != 1 for axis in axes):
        raise ValueError(f"axes {axes} must be of size 1, got shape {list(shape)} for one picture")
    return build.reshape(x, [size for axis, size in enumerate(shape) if axis not in axes])


def _unsqueeze(build: Builder, op: Operation) -> Value:
    x = op.value()
    given = op.ints("axes", 1, 13, [])
    shape, ndim = list(x.shape), len(x.shape) + len(given)
    if not all(-ndim <= axis < ndim for axis in given):
        raise ValueError(f"axes must be in [{-ndim}, {ndim - 1}], got {given}")
    axes = sorted(axis % ndim for axis in given)
    for axis in axes:
        shape.insert(axis, 1)
    return replace(build.reshape(x, shape), batch=x.batch and 0 not in axes)


# A constant [a, b] -> [n * a, b] for the n pictures of a value [n * size, ...].
def _for_each_picture(constant: Tensor, value: Tensor, size: int) -> Tensor:
    # Starts at the value, so that it can be traced again, which pickling a graph does.
    return (value.new_ones((value.shape[0] // size, *[1] * constant.ndim)) * constant).flatten(0, 1)


def _concat(build: Builder, op: Operation) -> Value:
    operands = _operands(op)
    like = next(operand for operand in operands if isinstance(operand, Value))
    # In front too: a picture and its mirror image may go through as a batch of two for every picture.
    axis = axis_from_front(op.get("axis"), replace(like, batch=False))
    parts = []
    for operand in operands:
        if isinstance(operand, np.ndarray):
            rows = operand[None] if axis == 0 else operand
            parts.append(build.call(_for_each_picture, rows, like, like.shape[0]))
        else:
            parts.append(build.lift(operand) if axis == 0 else operand)
    return build.call(torch.cat, parts, axis) if axis else build.lower(build.call(torch.cat, parts, 1))


def _split(build: Builder, op: Operation) -> list[Value]:
    x = op.value()
    axis = axis_from_front(op.get("axis", 0), x)
    size, parts = x.shape[axis], op.get("num_outputs", op.outputs)
    sizes = op.ints("split", 1, 13)
    if sizes is None:
        if parts != op.outputs:
            raise ValueError(f"num_outputs must be {op.outputs}, got {parts}")
        each = -(-size // parts)
        sizes = [each] * (parts - 1) + [size - each * (parts - 1)]
    if len(sizes) != op.outputs or min(sizes) < 0 or sum(sizes) != size:
        raise ValueError(f"split must be {op.outputs} sizes that make {size}, got {sizes}")
    ends = np.cumsum(sizes).tolist()
    return [_sliced(build, x, axis, slice(end - size, end)) for end, size in zip(ends, sizes, strict=True)]


def _expand(build: Builder, op: Operation) -> Value:
    x, target = op.value(), op.sizes(1)
    shape = np.broadcast_shapes(x.shape, tuple(target))
    if shape == x.shape:
        return x
    if len(shape) == len(x.shape) and shape[0] == x.shape[0]:
        return build.call(torch.broadcast_to, x, (-1, *shape[1:]))
    return build.lower(build.call(torch.broadcast_to, build.lift(x, len(shape)), (-1, *shape)))


def _tile(build: Builder, op: Operation) -> Value:
    x, repeats = op.value(), whole_numbers(op.known(1))
    if len(repeats) != len(x.shape) or min(repeats) < 0:
        raise ValueError(f"repeats must be {len(x.shape)} whole numbers, got {repeats}")
    if repeats[0] == 1:
        return build.call(torch.tile, x, tuple(repeats))
    if x.batch:
        raise ValueError("axis 0 is the batch and must be left alone")
    return build.lower(build.call(torch.tile, build.lift(x), (1, *repeats)))


def _slice(build: Builder, op: Operation) -> Value:
    x = op.value()
    starts, ends = op.ints("starts", 1, 10, []), op.ints("ends", 2, 10, [])
    axes, steps = op.ints("axes", 3, 10, range(len(starts))), op.ints("steps", 4, 10, [1] * len(starts))
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # All of the batch, as PyTorch writes the first : of x[:, 1:]
        if x.batch and axis in (0, -len(x.shape)) and (start, step) == (0, 1) and end >= 2**31 - 1:
            continue
        axis = axis_from_front(axis, x)
        if step == 0:
            raise ValueError("steps must not be 0")
        x = _sliced(build, x, axis, slice(start, end, step))
    return x


def _sliced(build: Builder, x: Value, axis: int, part: slice) -> Value:
    start, end, step = part.indices(x.shape[axis])
    if (start, end, step) == (0, x.shape[axis], 1):
        return x
    if step < 0:
        index = np.arange(start, end, step)
        return _along(build, x, [axis], lambda x, axes: build.call(torch.index_select, x, axes[0], index))
    part = slice(start, end, step)
    return _along(build, x, [axis], lambda x, axes: build.call(operator.getitem, x, (*[slice(None)] * axes[0], part)))


def _gather(build: Builder, op: Operation) -> Value:
    x, index = op.value(), op.known(1)
    axis = axis_from_front(op.get("axis", 0), x)
    size = x.shape[axis]
    index = np.where(index < 0, index + size, index).astype(np.int64)
    if index.size and not 0 <= index.min() <= index.max() < size:
        raise ValueError(f"indices must be in [{-size}, {size - 1}], got {index.min()} to {index.max()}")
    if index.ndim == 0:
        return _along(build, x, [axis], lambda x, axes: build.call(torch.select, x, axes[0], int(index)))
    made = _along(build, x, [axis], lambda x, axes: build.call(torch.index_select, x, axes[0], index.flatten()))
    return build.reshape(made, (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])) if index.ndim > 1 else made


def _cast(build: Builder, op: Operation) -> Value:
    # Between float types nothing is done: the surrogate decides what is computed in. Nor from uint8 to float: a picture
    # of whole numbers comes as float, without rounding, so that a gradient gets through.
    x, to = op.value(), op.get("to", None)
    if to in FLOATS:
        return replace(x, example=x.example.float())
    if x.example.is_floating_point() or to not in _WHOLE:
        raise ValueError("a computed value must stay a float")
    return x


def _constants_only(build: Builder, op: Operation) -> Value:
    raise ValueError("must have constants of the file as its inputs, got a computed value")


OPERATORS: dict[str, Callable[[Builder, Operation], Value | list[Value]]] = {
    **dict.fromkeys(_UNARY, lambda build, op: build.call(_UNARY[op.kind], op.value())),
    **dict.fromkeys(_BINARY, lambda build, op: _broadcast(build, _BINARY[op.kind], _operands(op), numbers=True)),
    **dict.fromkeys(_SEVERAL, _several),
    **dict.fromkeys(_ACTIVATIONS, _activation),
    **dict.fromkeys(_SOFTMAX, _softmax),
    **dict.fromkeys(_GLOBAL_POOLS, _global_pool),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(CONSTANTS_ONLY, _constants_only),
    **dict.fromkeys(("Dropout", "Identity"), lambda build, op: op.value()),
    **dict.fromkeys(("GroupNormalization", "InstanceNormalization"), _group_normalization),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "AveragePool": _average_pool, "BatchNormalization": _batch_normalization, "Cast": _cast,
    "Clip": _clip, "Concat": _concat, "Conv": _conv, "Einsum": _einsum, "Expand": _expand,
    "Flatten": _flatten, "Gather": _gather, "Gemm": _gemm, "HardSigmoid": _hard_sigmoid,
    "LRN": _local_response, "LayerNormalization": _layer_normalization,
    "LpNormalization": _lp_normalization, "MatMul": _matmul, "MaxPool": _max_pool, "PRelu": _prelu,
    "Pad": _pad, "Reshape": _reshape, "Selu": _selu, "Slice": _slice, "Split": _split,
    "Squeeze": _squeeze, "Tile": _tile, "Transpose": _transpose, "Unsqueeze": _unsqueeze,
    "Where": _where,
}  # fmt: skip
