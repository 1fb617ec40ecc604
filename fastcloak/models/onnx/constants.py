"""Nodes of an ONNX file that do not depend on the picture, computed once.

Most by the reference implementation in `onnx`, the others by the same modules and functions as pictures.
"""

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
from torch import fx

from fastcloak.models.onnx.graph import Builder, Known, Operation, as_tensor, whole_numbers
from fastcloak.models.onnx.operators import CONSTANTS_ONLY, emit
from fastcloak.system import packages

__all__ = ["MAX_CONSTANT", "MOVES", "constants_of"]

MAX_CONSTANT = 1 << 26
"""256 MB; the largest matrix of a face network, 512 x 25088, has 13 million numbers."""

MOVES = {"Cast", "Concat", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
"""What may be done with a picture of whole numbers before it is cast to floats: nothing that computes."""

_BROADCASTS = {"Add", "And", "Div", "Equal", "Expand", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min"}
_BROADCASTS |= {"Mod", "Mul", "Or", "Pow", "Sub", "Sum", "Where"}
# What the reference implementation evaluates.
_EVALUATED = {*MOVES, *_BROADCASTS, *CONSTANTS_ONLY, "Abs", "Cos", "Exp", "Flatten", "Log", "Neg", "Reciprocal", "Sin"}
_EVALUATED |= {"ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Sqrt", "Tanh", "Tile"}


def constants_of(op: Operation, node: Any, model: Any) -> list[Known]:
    """What a node without any computed input gives.

    Raises:
        ValueError: more numbers than any face network has, or a use of the operator that is not supported.
    """
    if op.kind == "DequantizeLinear":
        return [_dequantized(op)]
    return _evaluated(op, node, model) if op.kind in _EVALUATED else _made_by_torch(op)


# (q - zero point) * scale, with one of each for the whole tensor, for each index of an axis, or for each block of it:
# the reference implementation only knows the newest opsets of this one
def _dequantized(op: Operation) -> Known:
    quantized, scale = op.known(0).astype(np.float32), op.known(1).astype(np.float32)
    zero = op.known(2).astype(np.float32) if op.has(2) else np.zeros_like(scale)
    axis, block = range(quantized.ndim)[op.get("axis", 1)], op.get("block_size", 0)
    size = quantized.shape[axis]
    if not 0 <= block <= size:
        raise ValueError(f"block_size must be in [0, {size}], got {block}")
    if block:
        inside = (*[slice(None)] * axis, slice(size))
        scale, zero = (np.repeat(array, block, axis)[inside] for array in (scale, zero))
    elif scale.size > 1:
        scale, zero = (array.reshape(-1, *[1] * (quantized.ndim - axis - 1)) for array in (scale, zero))
    _refuse_large(np.broadcast_shapes(quantized.shape, scale.shape, zero.shape))
    return (quantized - zero) * scale


def _evaluated(op: Operation, node: Any, model: Any) -> list[Known]:
    helper = packages.require("onnx.helper", extra="faces")
    reference = packages.require("onnx.reference", extra="faces")
    _refuse_large(_bound(op))
    feeds = {name: value for name, value in zip(node.input, op.inputs, strict=True) if name}
    entries = [[helper.make_tensor_value_info(name, 1, None) for name in names] for names in (feeds, node.output)]
    graph = helper.make_graph([node], "constant", *entries)
    one = helper.make_model(graph, opset_imports=model.opset_import, functions=[])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = [np.asarray(result) for result in reference.ReferenceEvaluator(one).run(None, feeds)]
    for result in results:
        _refuse_large(result.shape)
    return results


# the shape of the result of a node of constants, or another one of at least as many numbers
def _bound(op: Operation) -> tuple[int, ...]:
    arrays = [value for value in op.inputs if isinstance(value, np.ndarray)]
    shapes = [array.shape for array in arrays]
    if op.kind == "Expand":
        shapes[1] = tuple(whole_numbers(arrays[1]))
    if op.kind in _BROADCASTS:
        return np.broadcast_shapes(*shapes)
    if op.kind == "ConstantOfShape":
        return tuple(whole_numbers(arrays[0]))
    if op.kind == "Range":
        start, limit, delta = (array.item() for array in arrays)
        return (max(math.ceil((limit - start) / delta), 0),)
    if op.kind == "Tile":
        return tuple(size * number for size, number in zip(shapes[0], whole_numbers(arrays[1]), strict=True))
    if op.kind == "Gather":
        return (*shapes[1], arrays[0].size // max(shapes[0][op.get("axis", 0)], 1))
    return (sum(array.size for array in arrays),)


def _refuse_large(shape: tuple[int, ...]) -> None:
    if min(shape, default=0) < 0 or math.prod(shape) > MAX_CONSTANT:
        raise ValueError(f"must make a constant of at most {MAX_CONSTANT} numbers, got shape {list(shape)}")


# as if its first input were a picture
def _made_by_torch(op: Operation) -> list[Known]:
    array = op.known(0)
    if array.dtype.kind != "f":
        raise ValueError(f"input 0 must hold floats, got {array.dtype}")
    build = Builder()
    first = build.pictures(array.shape or (1,), batch=False)
    results = emit(build, replace(op, inputs=(first, *op.inputs[1:])))
    build.graph.output(tuple(result.node for result in results))
    tensors = fx.GraphModule(build.root, build.graph)(as_tensor(array).reshape(first.shape))
    shapes = [result.shape if array.shape else () for result in results]
    return [tensor.numpy().reshape(shape) for tensor, shape in zip(tensors, shapes, strict=True)]
