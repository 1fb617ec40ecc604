"""What each ONNX operator becomes: a torch module where there is one, a torch function otherwise.

Source: the operator specification, github.com/onnx/onnx docs/Operators.md and docs/Changelog.md (for older opsets).
Dimension 0 is the batch everywhere: an operator that would move, split or merge it is refused.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcloak.models.onnx_build import Builder, Operation, Value, as_tensor, batch_free_axis

__all__ = ["OPERATORS"]

_MAX_PAD = 512
"""A file cannot make a picture absurdly large by padding it."""

_FLOATS = (1, 10, 11, 16)  # TensorProto.DataType: float, float16, double, bfloat16


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


def _global_average_pool(build: Builder, op: Operation) -> Value:
    return build.module(nn.AdaptiveAvgPool2d(1), op.value())


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


def _relu(build: Builder, op: Operation) -> Value:
    return build.module(nn.ReLU(), op.value())


def _leaky_relu(build: Builder, op: Operation) -> Value:
    return build.module(nn.LeakyReLU(op.attributes.get("alpha", 0.01)), op.value())


def _sigmoid(build: Builder, op: Operation) -> Value:
    return build.module(nn.Sigmoid(), op.value())


def _abs(build: Builder, op: Operation) -> Value:
    return build.call(torch.abs, op.value())


def _clip(build: Builder, op: Operation) -> Value:
    if op.opset < 11:
        low, high = op.attributes.get("min"), op.attributes.get("max")
    else:
        low, high = (op.known(i).item() if op.has(i) else None for i in (1, 2))
    return op.value() if low is None and high is None else build.call(torch.clamp, op.value(), low, high)


# Arithmetic ---------------------------------------------------------------------------------------------------------


def _arithmetic(function: Callable[[Any, Any], Any]) -> Callable[[Builder, Operation], Value]:
    def emit(build: Builder, op: Operation) -> Value:
        ndim = max(value.example.ndim for value in op.inputs if isinstance(value, Value))
        operands: list[Any] = []
        for value in op.inputs:
            if isinstance(value, np.ndarray):
                if value.ndim > ndim or (value.ndim == ndim and value.shape[0] != 1):
                    raise ValueError(f"a constant operand must be the same for every picture, got {list(value.shape)}")
                operands.append(value.item() if value.size == 1 else value)
            else:
                operands.append(value)
        return build.call(function, *operands)

    return emit


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
    first, second = op.inputs
    if isinstance(first, Value) and isinstance(second, np.ndarray) and second.ndim == 2:
        return _linear(build, first, torch.from_numpy(second.astype(np.float64)).T, None)
    return build.call(torch.matmul, first, second)


# weight [out, in], bias [out]
def _linear(build: Builder, x: Value, weight: Tensor, bias: Tensor | None) -> Value:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    _fill(linear, weight=weight, bias=bias)
    return build.module(linear, x)


def _reduce_mean(build: Builder, op: Operation) -> Value:
    x = op.value()
    axes = op.axes("axes", 1, 18, x.example.ndim)
    if axes is None:
        raise ValueError("axes must be given: the mean of everything would mix pictures")
    return build.call(torch.mean, x, tuple(axes), bool(op.attributes.get("keepdims", 1)))


# Shapes -------------------------------------------------------------------------------------------------------------


def _flatten(build: Builder, op: Operation) -> Value:
    x = op.value()
    if op.attributes.get("axis", 1) % x.example.ndim != 1:
        raise ValueError(f"axis must be 1, got {op.attributes['axis']}")
    return build.module(nn.Flatten(1), x)


def _reshape(build: Builder, op: Operation) -> Value:
    x = op.value()
    target = [int(size) for size in op.known(1).flatten()]
    shape = list(x.example.shape)
    if not op.attributes.get("allowzero", 0):
        target = [shape[i] if size == 0 and 0 < i < len(shape) else size for i, size in enumerate(target)]
    # The first size is the batch whatever it says (-1, 0, the file's own batch, a computed one); the rest is static.
    rest, numbers = target[1:], int(np.prod(shape[1:], dtype=np.int64))
    if rest.count(-1) == 1:
        others = int(np.prod([size for size in rest if size != -1], dtype=np.int64))
        rest[rest.index(-1)] = numbers // max(others, 1)
    if min(rest, default=0) < 0 or int(np.prod(rest, dtype=np.int64)) != numbers:
        raise ValueError(f"must keep pictures apart: {shape[1:]} a picture cannot become {target[1:]}")
    return build.call(torch.reshape, x, (-1, *rest))


def _transpose(build: Builder, op: Operation) -> Value:
    x = op.value()
    order = list(op.attributes.get("perm", range(x.example.ndim)[::-1]))
    if order[0] != 0:
        raise ValueError(f"perm must leave the batch in front, got {order}")
    return build.call(torch.permute, x, tuple(order))


def _squeeze(build: Builder, op: Operation) -> Value:
    x = op.value()
    axes = op.axes("axes", 1, 13, x.example.ndim)
    if axes is None:
        axes = [axis for axis in range(1, x.example.ndim) if x.example.shape[axis] == 1]
    if any(x.example.shape[axis] != 1 for axis in axes):
        raise ValueError(f"axes {axes} must be of size 1, got shape {list(x.example.shape[1:])} a picture")
    return build.call(torch.squeeze, x, tuple(axes)) if axes else x


def _unsqueeze(build: Builder, op: Operation) -> Value:
    x = op.value()
    axes = op.ints("axes", 1, 13) or []
    for axis in sorted(batch_free_axis(axis, x.example.ndim + len(axes)) for axis in axes):
        x = build.call(torch.unsqueeze, x, axis)
    return x


def _concat(build: Builder, op: Operation) -> Value:
    values = [op.value(i) for i in range(len(op.inputs))]
    return build.call(torch.cat, values, batch_free_axis(op.attributes["axis"], values[0].example.ndim))


def _slice(build: Builder, op: Operation) -> Value:
    x = op.value()
    starts, ends = op.ints("starts", 1, 10) or [], op.ints("ends", 2, 10) or []
    axes = op.ints("axes", 3, 10, range(len(starts))) or []
    steps = (op.ints("steps", 4, 10) if op.opset >= 10 else None) or [1] * len(starts)
    index = [slice(None)] * x.example.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 1:
            raise ValueError(f"steps must be positive, got {step}")
        index[batch_free_axis(axis, x.example.ndim)] = slice(start, end, step)
    return build.call(operator.getitem, x, tuple(index))


def _gather(build: Builder, op: Operation) -> Value:
    x, index = op.value(), op.known(1)
    axis = batch_free_axis(op.attributes.get("axis", 0), x.example.ndim)
    if index.ndim > 1:
        raise ValueError(f"indices must be one number or a list, got shape {list(index.shape)}")
    size = x.example.shape[axis]
    index = np.where(index < 0, index + size, index).astype(np.int64)
    if index.size and not 0 <= index.min() <= index.max() < size:
        raise ValueError(f"indices must be in [{-size}, {size - 1}], got {index.min()} to {index.max()}")
    if index.ndim == 0:
        return build.call(torch.select, x, axis, int(index))
    return build.call(torch.index_select, x, axis, index)


def _same(build: Builder, op: Operation) -> Value:
    return op.value()


def _cast(build: Builder, op: Operation) -> Value:
    # Between float types nothing is done: the surrogate decides what is computed in.
    if op.attributes.get("to") not in _FLOATS:
        raise ValueError("a computed value must stay a float")
    return op.value()


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


OPERATORS: dict[str, Callable[[Builder, Operation], Value]] = {
    "Abs": _abs,
    "Add": _arithmetic(operator.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Constant": _constants_only,
    "Conv": _conv,
    "DequantizeLinear": _constants_only,
    "Div": _arithmetic(operator.truediv),
    "Dropout": _same,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "Identity": _same,
    "LeakyRelu": _leaky_relu,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Mul": _arithmetic(operator.mul),
    "PRelu": _prelu,
    "Pad": _pad,
    "ReduceMean": _reduce_mean,
    "Relu": _relu,
    "Reshape": _reshape,
    "Shape": _constants_only,
    "Sigmoid": _sigmoid,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _arithmetic(operator.sub),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
