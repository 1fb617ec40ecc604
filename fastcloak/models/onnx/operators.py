"""What each ONNX operator becomes: a torch module where there is one, a torch function otherwise.

Source: the operator specification, github.com/onnx/onnx docs/Operators.md and docs/Changelog.md (for older opsets).
Shapes are those of one picture (onnx_build.py): the front axis is an axis like any other, except that an operator that
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

from fastcloak.models.onnx.graph import (
    Builder,
    Known,
    Operation,
    Value,
    as_tensor,
    axis_from_front,
    for_each_picture,
    whole_numbers,
)

__all__ = ["FLOATS", "OPERATORS"]

FLOATS = (1, 10, 11, 16)
"""TensorProto.DataType: float, float16, double, bfloat16."""

_WHOLE = (2, 4, 5, 6, 7, 12, 13)  # uint8 and the types of whole numbers that hold all of it

_MAX_PAD = 512
"""A file cannot make a picture absurdly large by padding it."""

_MAX_SIDE = 1024
"""Nor by resizing it."""

_Emit = Callable[[Builder, Operation], "Value | list[Value]"]


# Which axes ---------------------------------------------------------------------------------------------------------


# Do something along axes of a value. Along the front axis, where pictures lie too, it is done one axis further in.
def _along(build: Builder, x: Value, axes: Sequence[int], function: Callable[[Value, tuple[int, ...]], Value]) -> Value:
    if 0 not in axes:
        return function(x, tuple(axes))
    return build.lower(function(build.lift(x), tuple(axis + 1 for axis in axes)))


# A function of values and constants that are broadcast against each other; `numbers`: whether it takes plain numbers.
def _broadcast(
    build: Builder, function: Callable[..., Any], operands: Sequence[Value | Known], *, numbers: bool
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


# Convolution, pooling, padding ------------------------------------------------------------------------------------


_Pair = tuple[int, int]


# kernel, strides, dilations, and pads in the order top, left, bottom, right
def _window(op: Operation, kernel: Sequence[int]) -> tuple[_Pair, _Pair, _Pair, list[int]]:
    shape = op.value().example.shape
    if len(kernel) != 2 or len(shape) != 4:
        raise ValueError(f"must have a kernel of 2 sizes on [n, C, H, W], got {list(kernel)} on {list(shape)}")
    strides = list(op.attributes.get("strides", [1, 1]))
    dilations = list(op.attributes.get("dilations", [1, 1]))
    pads = list(op.attributes.get("pads", [0, 0, 0, 0]))
    auto = op.attributes.get("auto_pad", "NOTSET")
    if auto == "VALID":
        pads = [0, 0, 0, 0]
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        for i in range(2):
            size, reach = int(shape[2 + i]), (kernel[i] - 1) * dilations[i] + 1
            total = max((-(-size // strides[i]) - 1) * strides[i] + reach - size, 0)
            less, more = total // 2, total - total // 2
            pads[i], pads[2 + i] = (less, more) if auto == "SAME_UPPER" else (more, less)
    elif auto != "NOTSET":
        raise ValueError(f"auto_pad must be NOTSET, VALID, SAME_UPPER or SAME_LOWER, got {auto!r}")
    if len(pads) != 4 or not all(0 <= pad <= _MAX_PAD for pad in pads):
        raise ValueError(f"pads must be 4 whole numbers in [0, {_MAX_PAD}], got {pads}")
    return (kernel[0], kernel[1]), (strides[0], strides[1]), (dilations[0], dilations[1]), pads


# ONNX order (top, left, bottom, right) -> torch order (left, right, top, bottom)
def _torch_pads(pads: Sequence[int]) -> tuple[int, int, int, int]:
    return pads[1], pads[3], pads[0], pads[2]


# the same above and below, left and right, which torch's own padding is; at most half a kernel where it pools
def _symmetric(pads: Sequence[int], kernel: _Pair | None = None) -> _Pair | None:
    fits = kernel is None or (2 * pads[0] <= kernel[0] and 2 * pads[1] <= kernel[1])
    return (pads[0], pads[1]) if (pads[0], pads[1]) == (pads[2], pads[3]) and fits else None


def _conv(build: Builder, op: Operation) -> Value:
    x, weight = op.value(), as_tensor(op.known(1))
    if weight.ndim == 3 and len(x.shape) == 3:
        return _conv_on_lists(build, op)
    kernel, strides, dilations, pads = _window(op, weight.shape[2:])
    padding = _symmetric(pads)
    if padding is None:
        x = build.module(nn.ZeroPad2d(_torch_pads(pads)), x)
    groups = op.attributes.get("group", 1)
    channels = weight.shape[1] * groups
    # Made on the meta device: it is filled at once, and the caller's random state stays as it is.
    conv = nn.Conv2d(
        channels, len(weight), kernel, strides, padding or 0, dilations, groups, bias=op.has(2), device="meta"
    )
    _fill(conv, weight=weight, bias=as_tensor(op.known(2)) if op.has(2) else None)
    return build.module(conv, x)


# [n, C, W] as pictures of height 1
def _conv_on_lists(build: Builder, op: Operation) -> Value:
    x, weight = op.value(), op.known(1)
    neutral = {"kernel_shape": [1], "strides": [1], "dilations": [1], "pads": [0]}
    attributes = dict(op.attributes)
    for name, given in neutral.items():
        if name in attributes:
            own = list(attributes[name])
            half = len(own) // 2 if name == "pads" else 0
            attributes[name] = [*given, *own] if not half else [*given, *own[:half], *given, *own[half:]]
    flat = build.reshape(x, (*x.shape[:2], 1, x.shape[2]))
    made = _conv(build, replace(op, inputs=(flat, weight[:, :, None], *op.inputs[2:]), attributes=attributes))
    return build.reshape(made, (*made.shape[:2], made.shape[3]))


def _max_pool(build: Builder, op: Operation) -> Value:
    x = op.value()
    kernel, strides, dilations, pads = _window(op, op.attributes["kernel_shape"])
    padding = _symmetric(pads, kernel)
    if padding is None:
        x = build.module(nn.ConstantPad2d(_torch_pads(pads), float("-inf")), x)
    ceil = bool(op.attributes.get("ceil_mode", 0))
    return build.module(nn.MaxPool2d(kernel, strides, padding or 0, dilations, ceil_mode=ceil), x)


def _average_pool(build: Builder, op: Operation) -> Value:
    x = op.value()
    kernel, strides, dilations, pads = _window(op, op.attributes["kernel_shape"])
    if dilations != (1, 1):
        raise ValueError(f"dilations must be [1, 1], got {list(dilations)}")
    ceil, whole = bool(op.attributes.get("ceil_mode", 0)), bool(op.attributes.get("count_include_pad", 0))
    padding = _symmetric(pads, kernel)
    if padding is not None:
        return build.module(nn.AvgPool2d(kernel, strides, padding, ceil, whole), x)
    pool = nn.AvgPool2d(kernel, strides, 0, ceil)
    covered = pool(F.pad(torch.ones(1, 1, *x.example.shape[2:]), _torch_pads(pads)))
    pooled = build.module(pool, build.module(nn.ZeroPad2d(_torch_pads(pads)), x))
    # Averages over padded windows become averages over the pixels that are really there.
    return pooled if whole else build.call(operator.truediv, pooled, covered.numpy())


def _global_pool(pool: type[nn.Module], function: Callable[..., Any]) -> _Emit:
    def emit(build: Builder, op: Operation) -> Value:
        x = op.value()
        if len(x.shape) == 4:
            return build.module(pool(1), x)
        return build.call(function, x, tuple(range(2, len(x.shape))), True)

    return emit


def _pad(build: Builder, op: Operation) -> Value:
    x = op.value()
    ndim = x.example.ndim
    pads = op.ints("pads", 1, 11) or []
    named = op.ints("axes", 3, 18) if op.opset >= 18 else None
    axes = list(range(ndim)) if named is None else [axis % ndim for axis in named]
    if len(pads) != 2 * len(axes) or not all(-_MAX_PAD <= pad <= _MAX_PAD for pad in pads):
        raise ValueError(f"pads must be {2 * len(axes)} whole numbers within +-{_MAX_PAD}, got {pads}")
    before, after = [0] * ndim, [0] * ndim
    for i, axis in enumerate(axes):
        before[axis], after[axis] = pads[i], pads[len(axes) + i]
    if before[0] or after[0]:
        raise ValueError("axis 0 is the batch and must be left alone")
    mode = op.attributes.get("mode", "constant")
    fill = op.attributes.get("value", 0.0) if op.opset < 11 else op.known(2).item() if op.has(2) else 0.0
    inner = before[:-2] + after[:-2]
    if mode == "constant" and fill == 0 and ndim == 4 and not any(inner) and min(pads) >= 0:
        return build.module(nn.ZeroPad2d((before[3], after[3], before[2], after[2])), x)
    if mode not in ("constant", "reflect", "edge") or (mode != "constant" and (ndim != 4 or any(inner))):
        raise ValueError(f"mode must be constant, or reflect or edge on height and width alone, got {mode!r}")
    torch_pads = [pad for axis in range(ndim - 1, 0, -1) for pad in (before[axis], after[axis])]
    if mode == "constant":
        return build.call(F.pad, x, tuple(torch_pads), "constant", float(fill))
    return build.call(F.pad, x, tuple(torch_pads[:4]), "replicate" if mode == "edge" else mode)


# Bilinear, bicubic and nearest resizing as one matrix an axis: exact in every coordinate mode, and its gradient is
# deterministic on every device.
def _resize(build: Builder, op: Operation) -> Value:
    x, old = op.value(), op.opset < 11 or op.kind == "Upsample"
    shape, ndim = x.shape, len(x.shape)
    if op.attributes.get("antialias", 0) or op.attributes.get("exclude_outside", 0):
        raise ValueError("antialias and exclude_outside must be 0")
    if op.attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise ValueError("keep_aspect_ratio_policy must be stretch")
    axes = [axis % ndim for axis in op.attributes.get("axes", range(ndim))]
    index = 1 if old else 2
    if "scales" in op.attributes or (op.has(index) and op.known(index).size):
        scales = [float(scale) for scale in op.attributes.get("scales") or op.known(index).flatten()]
        sizes = [math.floor(shape[axis] * scale) for axis, scale in zip(axes, scales, strict=True)]
    else:
        sizes = op.sizes(3)
        scales = [size / shape[axis] for axis, size in zip(axes, sizes, strict=True)]
    for axis, size, scale in zip(axes, sizes, scales, strict=True):
        if size == shape[axis] and scale == 1:
            continue
        if ndim != 4 or axis < 2 or not 1 <= size <= _MAX_SIDE >= shape[axis]:
            raise ValueError(f"must resize height and width, within [1, {_MAX_SIDE}], got {list(shape)} to {sizes}")
        matrix = _resize_matrix(op, shape[axis], size, scale, old).astype(np.float32)
        x = build.call(torch.matmul, matrix, x) if axis == 2 else build.call(torch.matmul, x, matrix.T)
    return x


def _resize_matrix(op: Operation, size: int, to: int, scale: float, old: bool) -> Known:  # [to, size]
    coordinates = "asymmetric" if old else op.attributes.get("coordinate_transformation_mode", "half_pixel")
    place = np.arange(to, dtype=np.float64)
    if coordinates in ("half_pixel", "pytorch_half_pixel"):
        place = (place + 0.5) / scale - 0.5 if to > 1 or coordinates == "half_pixel" else 0 * place
    elif coordinates == "align_corners":
        place *= (size - 1) / max(to - 1, 1)
    elif coordinates == "asymmetric":
        place /= scale
    else:
        raise ValueError(
            f"coordinate_transformation_mode must be half_pixel, pytorch_half_pixel, align_corners or asymmetric, "
            f"got {coordinates!r}"
        )
    mode = op.attributes.get("mode", "nearest")
    if mode == "nearest":
        rounding = "floor" if old else op.attributes.get("nearest_mode", "round_prefer_floor")
        near = {
            "round_prefer_floor": np.ceil(place - 0.5),
            "round_prefer_ceil": np.floor(place + 0.5),
            "floor": np.floor(place),
            "ceil": np.ceil(place),
        }[rounding]
        taps = [(near, np.ones(to))]
    elif mode == "linear":
        place = place.clip(0, size - 1)
        left = np.floor(place)
        taps = [(left, 1 - place + left), (left + 1, place - left)]
    elif mode == "cubic":
        left, a = np.floor(place), op.attributes.get("cubic_coeff_a", -0.75)
        taps = []
        for step in range(-1, 3):
            t = np.abs(place - left - step)
            near_weight = ((a + 2) * t - (a + 3)) * t * t + 1
            far_weight = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
            taps.append((left + step, np.where(t <= 1, near_weight, far_weight)))
    else:
        raise ValueError(f"mode must be nearest, linear or cubic, got {mode!r}")
    matrix = np.zeros((to, size))
    for index, weight in taps:
        np.add.at(matrix, (np.arange(to), index.clip(0, size - 1).astype(np.int64)), weight)
    return matrix


# Normalisation and activations ------------------------------------------------------------------------------------


def _batch_normalization(build: Builder, op: Operation) -> Value:
    x = op.value()
    if op.attributes.get("training_mode", 0) or not op.attributes.get("spatial", 1):
        raise ValueError("must be in inference mode, with one mean and variance a channel")
    weight, bias, mean, var = (as_tensor(op.known(i)) for i in range(1, 5))
    kind = nn.BatchNorm2d if x.example.ndim == 4 else nn.BatchNorm1d
    norm = kind(weight.numel(), eps=op.attributes.get("epsilon", 1e-5))
    _fill(norm, weight=weight, bias=bias)
    if mean.shape != weight.shape or var.shape != weight.shape:
        raise ValueError(f"mean and variance must be {list(weight.shape)}, got {list(mean.shape)}, {list(var.shape)}")
    norm.running_mean, norm.running_var = mean, var
    return build.module(norm, x)


def _prelu(build: Builder, op: Operation) -> Value:
    x, slope = op.value(), op.known(1)
    channels = x.example.shape[1]
    # Files converted from MXNet write [C] for a slope a channel, which ONNX's broadcasting would read as a width.
    per_channel = slope.ndim == 1 and (slope.size == channels != x.example.shape[-1] or x.example.ndim == 2)
    aligned = slope if per_channel else slope.reshape((1,) * (x.example.ndim - slope.ndim) + slope.shape)[0]
    if slope.size not in (1, channels) or (slope.size > 1 and aligned.shape[0] != channels):
        raise ValueError(f"slope must be one number or {channels}, one a channel, got {list(slope.shape)}")
    prelu = nn.PReLU(slope.size)
    _fill(prelu, weight=as_tensor(slope).flatten())
    return build.module(prelu, x)


# scale and bias [C], mean and variance of each picture and group of channels
def _group_normalization(build: Builder, op: Operation) -> Value:
    x, weight, bias = op.value(), as_tensor(op.known(1)), as_tensor(op.known(2))
    channels = x.shape[1]
    groups = op.attributes["num_groups"] if op.kind == "GroupNormalization" else channels
    if not 1 <= groups <= channels or channels % groups:
        raise ValueError(f"num_groups must divide {channels}, got {groups}")
    if op.kind == "GroupNormalization" and op.opset < 21:
        weight, bias = (tensor.repeat_interleave(channels // groups) for tensor in (weight, bias))
    norm = nn.GroupNorm(groups, channels, op.attributes.get("epsilon", 1e-5))
    _fill(norm, weight=weight, bias=bias)
    return build.module(norm, x)


def _layer_normalization(build: Builder, op: Operation) -> Value:
    x = op.value()

    def normalise(x: Value, axes: tuple[int, ...]) -> Value:
        shape = x.shape[axes[0] :]
        norm = nn.LayerNorm(shape, op.attributes.get("epsilon", 1e-5), bias=op.has(2), device="meta")
        weight = as_tensor(np.broadcast_to(op.known(1), shape))
        bias = as_tensor(np.broadcast_to(op.known(2), shape)) if op.has(2) else None
        _fill(norm, weight=weight, bias=bias)
        return build.module(norm, x)

    return _along(build, x, [axis_from_front(op.attributes.get("axis", -1), x)], normalise)


def _local_response(build: Builder, op: Operation) -> Value:
    size = op.attributes["size"]
    if size < 1 or size % 2 == 0:
        raise ValueError(f"size must be an odd number, got {size}")
    alpha, beta, bias = (
        op.attributes.get(name, value) for name, value in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
    )
    return build.module(nn.LocalResponseNorm(size, alpha, beta, bias), op.value())


def _lp_normalization(build: Builder, op: Operation) -> Value:
    x, p = op.value(), op.attributes.get("p", 2)
    if p not in (1, 2):
        raise ValueError(f"p must be 1 or 2, got {p}")
    axis = axis_from_front(op.attributes.get("axis", -1), x)
    return _along(build, x, [axis], lambda x, axes: build.call(F.normalize, x, float(p), axes[0]))


def _softmax(function: Callable[..., Any]) -> _Emit:
    def emit(build: Builder, op: Operation) -> Value:
        x = op.value()
        shape = x.shape
        axis = axis_from_front(op.attributes.get("axis", -1 if op.opset >= 13 else 1), x)
        # Before opset 13 it goes over this axis and all that follow.
        if op.opset < 13:
            x = build.reshape(x, (*shape[:axis], math.prod(shape[axis:])))
        return build.reshape(_along(build, x, [axis], lambda x, axes: build.call(function, x, axes[0])), shape)

    return emit


# a module made of attributes, which have defaults
def _activation(module: Callable[..., nn.Module], **attributes: Any) -> _Emit:
    def emit(build: Builder, op: Operation) -> Value:
        return build.module(module(*(op.attributes.get(name, value) for name, value in attributes.items())), op.value())

    return emit


def _selu(build: Builder, op: Operation) -> Value:
    elu = build.module(nn.ELU(op.attributes.get("alpha", 1.67326319217681884765625)), op.value())
    return build.call(operator.mul, elu, op.attributes.get("gamma", 1.05070102214813232421875))


def _hard_sigmoid(build: Builder, op: Operation) -> Value:
    scaled = build.call(operator.mul, op.value(), op.attributes.get("alpha", 0.2))
    return build.call(torch.clamp, build.call(operator.add, scaled, op.attributes.get("beta", 0.5)), 0.0, 1.0)


def _unary(function: Callable[[Any], Any]) -> _Emit:
    return lambda build, op: build.call(function, op.value())


def _clip(build: Builder, op: Operation) -> Value:
    if op.opset < 11:
        low, high = op.attributes.get("min"), op.attributes.get("max")
    else:
        low, high = (op.known(i).item() if op.has(i) else None for i in (1, 2))
    return op.value() if low is None and high is None else build.call(torch.clamp, op.value(), low, high)


# Arithmetic ---------------------------------------------------------------------------------------------------------


def _arithmetic(function: Callable[[Any, Any], Any]) -> _Emit:
    def emit(build: Builder, op: Operation) -> Value:
        return _broadcast(build, function, _operands(op), numbers=True)

    return emit


# any number of operands
def _several(function: Callable[[Any, Any], Any], *, mean: bool = False) -> _Emit:
    def emit(build: Builder, op: Operation) -> Value:
        first, *others = sorted(_operands(op), key=lambda operand: isinstance(operand, np.ndarray))
        if not isinstance(first, Value):
            raise ValueError("must have an operand that depends on the picture")
        total = functools.reduce(lambda x, y: _broadcast(build, function, (x, y), numbers=False), others, first)
        return build.call(operator.truediv, total, len(op.inputs)) if mean else total

    return emit


def _operands(op: Operation) -> list[Value | Known]:
    operands = [value for value in op.inputs if value is not None]
    if len(operands) != len(op.inputs):
        raise ValueError("every operand must be given")
    return operands


def _where(build: Builder, op: Operation) -> Value:
    op.known(0)
    return _broadcast(build, torch.where, _operands(op), numbers=False)


def _gemm(build: Builder, op: Operation) -> Value:
    x, weight = op.value(), torch.from_numpy(op.known(1).astype(np.float64))
    if op.attributes.get("transA", 0) or x.example.ndim != 2:
        raise ValueError(f"input 0 must be [n, C] and not transposed, got {list(x.example.shape)}")
    weight = (weight if op.attributes.get("transB", 0) else weight.T) * op.attributes.get("alpha", 1.0)
    bias = None
    if op.has(2):
        bias = torch.from_numpy(op.known(2).astype(np.float64)) * op.attributes.get("beta", 1.0)
        bias = bias.flatten().expand(weight.shape[0])
    return _linear(build, x, weight, bias)


def _matmul(build: Builder, op: Operation) -> Value:
    first, second = _operands(op)
    if isinstance(first, Value) and isinstance(second, np.ndarray) and second.ndim == 2 and len(first.shape) > 1:
        return _linear(build, first, torch.from_numpy(second.astype(np.float64)).T, None)
    ndims, fronts = zip(*((len(x.shape), x.shape[:1]) for x in (first, second)), strict=True)
    if min(ndims) < 2:
        raise ValueError(f"operands must have 2 axes or more, got {list(first.shape)} and {list(second.shape)}")
    # The front axis is one of those that stay, and is the same in both, or in the one that has it.
    arrays = [x for x in (first, second) if isinstance(x, np.ndarray)]
    stays = max(ndims) > 2 and (
        all(x.ndim == 2 for x in arrays) if arrays else len(set(zip(ndims, fronts, strict=True))) == 1
    )
    if stays:
        return build.call(torch.matmul, first, second)
    lifted = (build.lift(x, max(ndims)) if isinstance(x, Value) else x for x in (first, second))
    return build.lower(build.call(torch.matmul, *lifted))


# Pictures get a letter of their own.
def _einsum(build: Builder, op: Operation) -> Value:
    equation, operands = op.attributes["equation"].replace(" ", ""), _operands(op)
    match = re.fullmatch(r"([A-Za-z.]*(?:,[A-Za-z.]*)?)(?:->([A-Za-z.]*))?", equation)
    if match is None or "..." in equation:
        raise ValueError(f"equation must have one or two operands of letters, got {equation!r}")
    terms, letters = match[1].split(","), sorted(match[1].replace(",", ""))
    made = match[2] if match[2] is not None else "".join(one for one in letters if letters.count(one) == 1)
    own = next(letter for letter in string.ascii_letters if letter not in letters)
    terms = [own + term if isinstance(x, Value) else term for term, x in zip(terms, operands, strict=True)]
    lifted = [build.lift(x) if isinstance(x, Value) else x for x in operands]
    return build.lower(build.call(torch.einsum, f"{','.join(terms)}->{own}{made}", *lifted))


# weight [out, in], bias [out]
def _linear(build: Builder, x: Value, weight: Tensor, bias: Tensor | None) -> Value:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    _fill(linear, weight=weight, bias=bias)
    return build.module(linear, x)


# `since`: the opset in which axes became an input
def _reduce(function: Callable[..., Any], *leading: Any, since: int = 18) -> _Emit:
    def emit(build: Builder, op: Operation) -> Value:
        x = op.value()
        axes = op.axes("axes", 1, since, x) or []
        if not axes and (x.batch or op.attributes.get("noop_with_empty_axes", 0)):
            raise ValueError("axes must be given: a reduction of everything would mix pictures")
        keep = bool(op.attributes.get("keepdims", 1))
        axes = axes or list(range(len(x.shape)))
        return _along(build, x, axes, lambda x, axes: build.call(function, x, *leading, axes, keep))

    return emit


def _reduce_sum_square(build: Builder, op: Operation) -> Any:
    squares = build.call(torch.square, op.value())
    return _reduce(torch.sum)(build, replace(op, inputs=(squares, *op.inputs[1:])))


# Shapes -------------------------------------------------------------------------------------------------------------


def _flatten(build: Builder, op: Operation) -> Value:
    x = op.value()
    shape, axis = x.shape, op.attributes.get("axis", 1)
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
    if not op.attributes.get("allowzero", 0):
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
    order = list(op.attributes.get("perm", range(ndim)[::-1]))
    if sorted(order) != list(range(ndim)):
        raise ValueError(f"perm must be an order of {ndim} axes, got {order}")
    if order[0] == 0:
        return build.call(torch.permute, x, tuple(order))
    return build.lower(build.call(torch.permute, build.lift(x), (0, *(axis + 1 for axis in order))))


def _squeeze(build: Builder, op: Operation) -> Value:
    x = op.value()
    shape = x.shape
    axes = op.axes("axes", 1, 13, x)
    if axes is None:
        axes = [axis for axis in range(1 if x.batch else 0, len(shape)) if shape[axis] == 1]
    if any(shape[axis] != 1 for axis in axes):
        raise ValueError(f"axes {axes} must be of size 1, got shape {list(shape)} for one picture")
    return build.reshape(x, [size for axis, size in enumerate(shape) if axis not in axes])


def _unsqueeze(build: Builder, op: Operation) -> Value:
    x = op.value()
    axes = op.ints("axes", 1, 13) or []
    shape, ndim = list(x.shape), len(x.shape) + len(axes)
    if not all(-ndim <= axis < ndim for axis in axes):
        raise ValueError(f"axes must be in [{-ndim}, {ndim - 1}], got {axes}")
    for axis in sorted(axis % ndim for axis in axes):
        shape.insert(axis, 1)
    made = build.reshape(x, shape)
    return replace(made, batch=x.batch and 0 not in [axis % ndim for axis in axes])


def _concat(build: Builder, op: Operation) -> Value:
    operands = _operands(op)
    like = next(operand for operand in operands if isinstance(operand, Value))
    # In front too: a picture and its mirror image may go through as a batch of two for every picture.
    axis = axis_from_front(op.attributes["axis"], replace(like, batch=False))
    parts = []
    for operand in operands:
        if isinstance(operand, np.ndarray):
            rows = operand[None] if axis == 0 else operand
            parts.append(build.call(for_each_picture, rows, like, like.shape[0]))
        else:
            parts.append(build.lift(operand) if axis == 0 else operand)
    return build.call(torch.cat, parts, axis) if axis else build.lower(build.call(torch.cat, parts, 1))


def _split(build: Builder, op: Operation) -> list[Value]:
    x = op.value()
    axis = axis_from_front(op.attributes.get("axis", 0), x)
    size, parts = x.shape[axis], op.attributes.get("num_outputs", op.outputs)
    sizes = op.ints("split", 1, 13)
    if sizes is None:
        if parts != op.outputs:
            raise ValueError(f"num_outputs must be {op.outputs}, got {parts}")
        each = -(-size // parts)
        sizes = [each] * (parts - 1) + [size - each * (parts - 1)]
    if len(sizes) != op.outputs or min(sizes) < 0 or sum(sizes) != size:
        raise ValueError(f"split must be {op.outputs} sizes that make {size}, got {sizes}")
    starts = np.cumsum([0, *sizes[:-1]]).tolist()

    def part(start: int, size: int) -> Value:
        return _along(build, x, [axis], lambda x, axes: build.call(torch.narrow, x, axes[0], start, size))

    return [part(start, size) for start, size in zip(starts, sizes, strict=True)]


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
    starts, ends = op.ints("starts", 1, 10) or [], op.ints("ends", 2, 10) or []
    axes = op.ints("axes", 3, 10, range(len(starts))) or []
    steps = (op.ints("steps", 4, 10) if op.opset >= 10 else None) or [1] * len(starts)
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
    if step > 0:
        return _along(
            build, x, [axis],
            lambda x, axes: build.call(operator.getitem, x, (*[slice(None)] * axes[0], slice(start, end, step))),
        )  # fmt: skip
    index = np.arange(start, end, step)
    return _along(build, x, [axis], lambda x, axes: build.call(torch.index_select, x, axes[0], index))


def _gather(build: Builder, op: Operation) -> Value:
    x, index = op.value(), op.known(1)
    axis = axis_from_front(op.attributes.get("axis", 0), x)
    size = x.shape[axis]
    index = np.where(index < 0, index + size, index).astype(np.int64)
    if index.size and not 0 <= index.min() <= index.max() < size:
        raise ValueError(f"indices must be in [{-size}, {size - 1}], got {index.min()} to {index.max()}")
    if index.ndim == 0:
        return _along(build, x, [axis], lambda x, axes: build.call(torch.select, x, axes[0], int(index)))
    made = _along(build, x, [axis], lambda x, axes: build.call(torch.index_select, x, axes[0], index.flatten()))
    return build.reshape(made, (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])) if index.ndim > 1 else made


def _same(build: Builder, op: Operation) -> Value:
    return op.value()


def _cast(build: Builder, op: Operation) -> Value:
    # Between float types nothing is done: the surrogate decides what is computed in. Nor from uint8 to float: a picture
    # of whole numbers comes as float, without rounding, so that a gradient gets through.
    x, to = op.value(), op.attributes.get("to")
    if to in FLOATS:
        return replace(x, example=x.example.float())
    if x.example.is_floating_point() or to not in _WHOLE:
        raise ValueError("a computed value must stay a float")
    return x


def _constants_only(build: Builder, op: Operation) -> Value:
    raise ValueError("must have constants of the file as its inputs, got a computed value")


def _fill(module: nn.Module, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        expected = getattr(module, name).shape
        if tensor.shape != expected:
            raise ValueError(f"{name} must be {list(expected)}, got {list(tensor.shape)}")
        setattr(module, name, nn.Parameter(tensor.float().contiguous(), requires_grad=False))


OPERATORS: dict[str, _Emit] = {
    "Abs": _unary(torch.abs),
    "Add": _arithmetic(operator.add),
    "And": _constants_only,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Cast": _cast,
    "Ceil": _constants_only,
    "Celu": _activation(nn.CELU, alpha=1.0),
    "Clip": _clip,
    "Concat": _concat,
    "Constant": _constants_only,
    "ConstantOfShape": _constants_only,
    "Conv": _conv,
    "Cos": _unary(torch.cos),
    "CumSum": _constants_only,
    "DequantizeLinear": _constants_only,
    "Div": _arithmetic(operator.truediv),
    "Dropout": _same,
    "Einsum": _einsum,
    "Elu": _activation(nn.ELU, alpha=1.0),
    "Equal": _constants_only,
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _constants_only,
    "Gather": _gather,
    "Gelu": _activation(nn.GELU, approximate="none"),
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool(nn.AdaptiveAvgPool2d, torch.mean),
    "GlobalMaxPool": _global_pool(nn.AdaptiveMaxPool2d, torch.amax),
    "Greater": _constants_only,
    "GreaterOrEqual": _constants_only,
    "GroupNormalization": _group_normalization,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _activation(nn.Hardswish),
    "Identity": _same,
    "InstanceNormalization": _group_normalization,
    "LRN": _local_response,
    "LayerNormalization": _layer_normalization,
    "LeakyRelu": _activation(nn.LeakyReLU, alpha=0.01),
    "Less": _constants_only,
    "LessOrEqual": _constants_only,
    "Log": _unary(torch.log),
    "LogSoftmax": _softmax(torch.log_softmax),
    "LpNormalization": _lp_normalization,
    "MatMul": _matmul,
    "Max": _several(torch.maximum),
    "MaxPool": _max_pool,
    "Mean": _several(operator.add, mean=True),
    "Min": _several(torch.minimum),
    "Mish": _activation(nn.Mish),
    "Mod": _constants_only,
    "Mul": _arithmetic(operator.mul),
    "Neg": _unary(operator.neg),
    "Not": _constants_only,
    "Or": _constants_only,
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": _arithmetic(torch.pow),
    "Range": _constants_only,
    "Reciprocal": _unary(torch.reciprocal),
    "ReduceL1": _reduce(torch.linalg.vector_norm, 1),
    "ReduceL2": _reduce(torch.linalg.vector_norm, 2),
    "ReduceLogSumExp": _reduce(torch.logsumexp),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceMin": _reduce(torch.amin),
    "ReduceProd": _constants_only,
    "ReduceSum": _reduce(torch.sum, since=13),
    "ReduceSumSquare": _reduce_sum_square,
    "Relu": _activation(nn.ReLU),
    "Reshape": _reshape,
    "Resize": _resize,
    "Selu": _selu,
    "Shape": _constants_only,
    "Sigmoid": _activation(nn.Sigmoid),
    "Sin": _unary(torch.sin),
    "Size": _constants_only,
    "Slice": _slice,
    "Softmax": _softmax(torch.softmax),
    "Softplus": _activation(nn.Softplus),
    "Softsign": _activation(nn.Softsign),
    "Split": _split,
    "Sqrt": _unary(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _arithmetic(operator.sub),
    "Sum": _several(operator.add),
    "Tanh": _activation(nn.Tanh),
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Upsample": _resize,
    "Where": _where,
}
