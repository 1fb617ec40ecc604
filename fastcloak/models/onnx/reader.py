"""Read an ONNX file of a face network into a torch.fx graph of real torch modules.

Convolutions become nn.Conv2d, batch normalisations nn.BatchNorm2d and so on, so that folding them or putting dropout
between them is a generic pass over the graph. Nothing in the file is executed: operators come from a closed list, names
are made here, and whatever does not depend on the picture is evaluated once, by the reference implementation in
`onnx` or by the same modules.
"""

import logging
import math
import operator
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fastcloak.models.onnx.graph import Builder, Known, Operation, Value, as_tensor, check, whole_numbers
from fastcloak.models.onnx.operators import FLOATS, OPERATORS
from fastcloak.models.surrogate import FACE_SIZE
from fastcloak.system import packages

__all__ = ["OnnxNet", "load_onnx_net"]

_log = logging.getLogger("fastcloak")

_OLDEST_OPSET = 7  # the first with today's broadcasting
_MAX_SIDE = 1024

_UINT8 = 2  # TensorProto.DataType

# What may be done with a picture of whole numbers before it is cast to floats: nothing that computes.
_MOVES = {"Cast", "Concat", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}

# What the reference implementation evaluates when all inputs are constants; other operators run as they do on pictures.
_BROADCASTS = {"Add", "And", "Div", "Equal", "Expand", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min"}
_BROADCASTS |= {"Mod", "Mul", "Or", "Pow", "Sub", "Sum", "Where"}
_EVALUATED = {*_BROADCASTS, *_MOVES, "Abs", "Ceil", "Constant", "ConstantOfShape", "Cos", "CumSum", "Exp", "Flatten"}
_EVALUATED |= {"Floor", "Log", "Neg", "Not", "Range", "Reciprocal", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin"}
_EVALUATED |= {"ReduceProd", "ReduceSum", "Shape", "Sin", "Size", "Sqrt", "Tanh", "Tile"}
_MAX_CONSTANT = 1 << 26  # 256 MB; the largest matrix of a face network, 512 x 25088, has 13 million numbers
_MAX_MADE = 1 << 28  # numbers of all constants that are made from others, 1 GB

# Bytes of weights beside the file: as many as protobuf takes inside one.
_MAX_EXTERNAL = 1 << 31


@dataclass(frozen=True)
class OnnxNet:
    """What was read from a file.

    Attributes:
        net: float32 [n, 3, input_size, input_size] -> [n, ...], frozen.
        input_size: the side of the pictures it takes.
        black, white: [1, 3, 1, 1], what 0 and 1 become by the normalisation at the head of the file's own graph.
        uint8: whether the file takes whole numbers in 0..255, which `net` gets as floats.
    """

    net: fx.GraphModule
    input_size: int
    black: Tensor
    white: Tensor
    uint8: bool


def load_onnx_net(path: str | Path, input_size: int | None = None) -> OnnxNet:
    """Read a network from an ONNX file, opset 7 or later.

    It is read as what the file does for one picture; in a batch every picture goes through alone.

    Args:
        path: the file; weights may be in other files of its folder.
        input_size: side of the pictures, for a file that leaves it open (112 if not given).

    Raises:
        ValueError: the file is corrupt, its weights are not in its folder, it takes something else than one RGB
            picture, or needs an operator (or a use of one) that is not supported.
        MissingExtraError: the package onnx is not installed.
        OSError: the file cannot be read.
    """
    model = _read(path)
    try:
        return _build(model, path, input_size)
    except ValueError:
        raise
    # The file is not to be trusted: whatever a malformed one trips over is a fault of the file.
    except Exception as error:
        raise ValueError(f"{path}: not a usable ONNX network ({type(error).__name__}: {error})") from error


def _read(path: str | Path) -> Any:
    onnx = packages.require("onnx", extra="faces")
    content = Path(path).read_bytes()
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    # protobuf's DecodeError, of a module that may move between its versions
    except Exception as error:
        raise ValueError(f"{path}: not an ONNX file, or a damaged one ({error})") from error
    if not model.graph.node or not model.graph.output:
        raise ValueError(f"{path}: not an ONNX file, or an empty one: it holds no network")
    tensors = [*model.graph.initializer, *(a.t for node in model.graph.node for a in node.attribute)]
    left = _MAX_EXTERNAL
    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.raw_data = _external(tensor, Path(path), left)
            tensor.data_location = onnx.TensorProto.DEFAULT
            left -= len(tensor.raw_data)
    return model


def _external(tensor: Any, path: Path, most: int) -> bytes:
    """The bytes of a tensor that lie in another file of the same folder; `most` of them."""
    # str: protobuf gives bytes where they are not UTF-8
    entries = {str(entry.key): str(entry.value) for entry in tensor.external_data}
    name = entries.get("location", "")
    what = f"{path}: keeps {tensor.name!r} in the file {name!r}"
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts or set(name) & set("\0\\:"):
        raise ValueError(f"{what}; it must be a relative name inside the folder of the .onnx file, without '..'")
    folder = os.path.realpath(path.parent)
    file = Path(os.path.realpath(Path(folder, name)))
    if not file.is_relative_to(folder):
        raise ValueError(f"{what}, a link out of its folder; put the file itself there")
    try:
        stream = file.open("rb") if file.is_file() else None
    except OSError as error:
        raise ValueError(f"{what}, which cannot be read ({error.strerror}); put both files into one folder") from error
    if stream is None:
        raise ValueError(f"{what}, which is no ordinary file there; put both files into one folder")
    with stream:
        size = os.fstat(stream.fileno()).st_size
        offset = _whole(what, "offset", entries.get("offset", "0"))
        length = _whole(what, "length", entries.get("length", str(max(size - offset, 0))))
        if offset + length > size:
            raise ValueError(
                f"{what} at {offset} to {offset + length}, but that has {size} bytes; it is cut off or of "
                "another network"
            )
        numbers = math.prod(tensor.dims)
        if not 0 <= numbers <= _MAX_CONSTANT or length > min(16 * numbers, most):
            raise ValueError(
                f"{what}: must have at most {_MAX_CONSTANT} numbers, and {_MAX_EXTERNAL} bytes in all, got shape "
                f"{list(tensor.dims)} in {length} bytes"
            )
        stream.seek(offset)
        content: bytes = stream.read(length)
    return content


def _whole(what: str, key: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise ValueError(f"{what}: {key} must be a whole number, got {text[:40]!r}")
    return int(text)


def _build(model: Any, path: str | Path, input_size: int | None) -> OnnxNet:
    numpy_helper = packages.require("onnx.numpy_helper", extra="faces")
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < _OLDEST_OPSET:
        raise ValueError(
            f"{path}: opset must be {_OLDEST_OPSET} or later, got {opset}; convert it with onnx.version_converter"
        )
    nodes = _needed(model.graph)
    _refuse_unknown(nodes, path)
    values: dict[str, Value | Known] = {}
    for tensor in model.graph.initializer:
        try:
            values[tensor.name] = numpy_helper.to_array(tensor)
        # whatever the reader of `onnx` trips over
        except Exception as error:
            raise ValueError(f"{path}: the weights {tensor.name!r} are damaged ({error})") from error
    build = Builder()
    # Initialisers may be listed as inputs too, and inputs may be left over that nothing reads.
    read = {name for node in nodes for name in node.input}
    pictures = [entry for entry in model.graph.input if entry.name not in values and entry.name in read]
    size, picture, together = _input(pictures, build, path, input_size)
    uint8 = not picture.example.is_floating_point()
    values[pictures[0].name] = picture
    made = 0

    for i, node in enumerate(nodes):
        try:
            inputs = tuple(values[name] if name else None for name in node.input)
            attributes = {attribute.name: _attribute(attribute) for attribute in node.attribute}
            op = Operation(node.op_type, opset, inputs, attributes, len(node.output), together)
            results = _run(build, op, node, model)
            made += sum(result.size for result in results if isinstance(result, np.ndarray))
            if made > _MAX_MADE:
                raise ValueError(f"must make at most {_MAX_MADE} numbers of constants in all")
            values.update((name, result) for name, result in zip(node.output, results, strict=False) if name)
        except MemoryError:
            raise
        except Exception as error:
            words = f"no value named {error}" if isinstance(error, KeyError) else str(error)
            if together > 1:
                words += f" (the file takes {together} pictures at a time; export it for 1, or leave the number open)"
            raise ValueError(f"{path}: {node.op_type} (node {i} {node.name!r}): {words}") from error

    output = model.graph.output[0].name
    if len(model.graph.output) > 1:
        _log.warning("%s: has %d outputs; the first, %r, is used", path, len(model.graph.output), output)
    embedding = values.get(output)
    if not isinstance(embedding, Value):
        raise ValueError(f"{path}: the output {output!r} does not depend on the picture")
    if len(embedding.shape) > 1 and embedding.shape[0] != 1:
        raise ValueError(
            f"{path}: the output {output!r} must keep pictures apart and leave the batch in front, [n, D], got "
            f"{list(embedding.shape)} for one picture"
        )
    if len(embedding.shape) == 1:
        embedding = build.reshape(embedding, (1, *embedding.shape))
    build.graph.output(embedding.node)
    net = fx.GraphModule(build.root, build.graph, "OnnxNet")
    _write_prelu(net)
    black, white = _normalisation(net)
    return OnnxNet(net.eval().requires_grad_(False), size, black, white, uint8)


# nodes that the first output depends on, in the file's order (which the format requires to be topological)
def _needed(graph: Any) -> list[Any]:
    wanted, needed = {graph.output[0].name}, []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            needed.append(node)
            wanted.update(name for name in node.input if name)
    return needed[::-1]


def _refuse_unknown(nodes: list[Any], path: str | Path) -> None:
    unknown = {
        f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        for node in nodes
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS
    }
    if unknown:
        raise ValueError(
            f"{path}: unsupported operator {', '.join(sorted(unknown))}; supported are {', '.join(OPERATORS)}. "
            "Another route: convert it to a torch module yourself and pass that to load_model"
        )


def _input(
    inputs: list[Any], build: Builder, path: str | Path, input_size: int | None
) -> tuple[int, Value, int]:  # the side, the picture, and how many the file takes at a time (0: any number)
    if len(inputs) != 1:
        raise ValueError(f"{path}: must take one picture, got {len(inputs)} inputs: {[i.name for i in inputs]}")
    kind = inputs[0].type.tensor_type
    sizes = [dim.dim_value for dim in kind.shape.dim]  # 0 where the file leaves it open
    if kind.elem_type not in (*FLOATS, _UINT8) or len(sizes) != 4:
        raise ValueError(
            f"{path}: must take float pictures [n, 3, H, W], or uint8 ones, got sizes {sizes} of type {kind.elem_type}"
        )
    channels_last = sizes[3] == 3 and sizes[1] != 3
    channels, height, width = (sizes[3], sizes[1], sizes[2]) if channels_last else sizes[1:]
    if channels not in (0, 3) or height != width or height > _MAX_SIDE:
        raise ValueError(f"{path}: must take square RGB pictures of at most {_MAX_SIDE} pixels, got sizes {sizes}")
    if height and input_size not in (None, height):
        raise ValueError(f"{path}: input_size must be {height}, which the file itself says, got {input_size}")
    size = height or input_size or FACE_SIZE
    dtype = torch.uint8 if kind.elem_type == _UINT8 else torch.float32
    value = build.pictures((1, 3, size, size), batch=sizes[0] != 1, dtype=dtype)
    return size, build.call(torch.permute, value, (0, 2, 3, 1)) if channels_last else value, sizes[0]


def _attribute(attribute: Any) -> Any:
    helper = packages.require("onnx.helper", extra="faces")
    value = helper.get_attribute_value(attribute)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


@torch.no_grad()
def _run(build: Builder, op: Operation, node: Any, model: Any) -> Sequence[Value | Known]:
    values = [value for value in op.inputs if isinstance(value, Value)]
    if values and op.kind == "Shape":
        return [np.array(values[0].shape, np.int64)[op.attributes.get("start", 0) : op.attributes.get("end")]]
    if values and op.kind == "Size":
        return [np.array(math.prod(values[0].shape), np.int64)]
    if not values:
        if op.kind == "DequantizeLinear":
            return [_dequantize(op)]
        return _evaluate(op, node, model) if op.kind in _EVALUATED else _made_by_torch(op)
    if op.kind not in _MOVES and not all(value.example.is_floating_point() for value in values):
        raise ValueError("a picture of whole numbers must be cast to float before it is computed with")
    made = OPERATORS[op.kind](build, op)
    results = made if isinstance(made, list) else [made]
    for result in results:
        check(result)
    return results


def _arrays(op: Operation) -> list[Known]:
    return [value for value in op.inputs if isinstance(value, np.ndarray)]


# a node without any computed input, as if its first one were a picture
def _made_by_torch(op: Operation) -> list[Known]:
    array = op.known(0)
    if array.dtype.kind != "f":
        raise ValueError(f"input 0 must hold floats, got {array.dtype}")
    build = Builder()
    first = build.pictures(array.shape or (1,), batch=False)
    made = OPERATORS[op.kind](build, replace(op, inputs=(first, *op.inputs[1:])))
    results = made if isinstance(made, list) else [made]
    for result in results:
        check(result)
    build.graph.output(tuple(result.node for result in results))
    tensors = fx.GraphModule(build.root, build.graph)(as_tensor(array).reshape(first.shape))
    shapes = [result.shape if array.shape else () for result in results]
    return [tensor.numpy().reshape(shape) for tensor, shape in zip(tensors, shapes, strict=True)]


# (q - zero point) * scale, with one of each for the whole tensor, for each index of an axis, or for each block of it
# (the reference implementation of `onnx` only knows the newest opsets of this one)
def _dequantize(op: Operation) -> Known:
    quantized, scale = op.known(0).astype(np.float32), op.known(1).astype(np.float32)
    zero = op.known(2).astype(np.float32) if op.has(2) else np.zeros_like(scale)
    axis, block = op.attributes.get("axis", 1), op.attributes.get("block_size", 0)
    if not 0 <= block <= quantized.shape[axis]:
        raise ValueError(f"block_size must be in [0, {quantized.shape[axis]}], got {block}")
    if block:
        whole = [slice(None)] * quantized.ndim
        whole[axis] = slice(quantized.shape[axis])
        scale, zero = (np.repeat(array, block, axis)[tuple(whole)] for array in (scale, zero))
    elif scale.size > 1:
        along = [1] * quantized.ndim
        along[axis] = -1
        scale, zero = scale.reshape(along), zero.reshape(along)
    _refuse_large(np.broadcast_shapes(quantized.shape, scale.shape, zero.shape))
    return (quantized - zero) * scale


# a node without any computed input, by the reference implementation that comes with onnx
def _evaluate(op: Operation, node: Any, model: Any) -> list[Known]:
    helper = packages.require("onnx.helper", extra="faces")
    reference = packages.require("onnx.reference", extra="faces")
    _refuse_large(_bound(op))
    feeds = {name: value for name, value in zip(node.input, op.inputs, strict=True) if name}
    anything = helper.make_tensor_type_proto(1, None)
    entries = [[helper.make_value_info(name, anything) for name in names] for names in (feeds, node.output)]
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
    arrays = _arrays(op)
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
        return (*shapes[1], arrays[0].size // max(shapes[0][op.attributes.get("axis", 0)], 1))
    return (sum(array.size for array in arrays),)


def _refuse_large(shape: tuple[int, ...]) -> None:
    if min(shape, default=0) < 0 or math.prod(shape) > _MAX_CONSTANT:
        raise ValueError(f"must make a constant of at most {_MAX_CONSTANT} numbers, got shape {list(shape)}")


def _write_prelu(net: fx.GraphModule) -> None:
    """Rewrite relu(x) + c * (x - |x|), as some converters write PReLU, to nn.PReLU of slope 2 c: exact."""
    graph, modules = net.graph, dict(net.named_modules())
    for add in list(graph.nodes):
        for relu, scaled in (add.args, add.args[::-1]) if add.target is operator.add else ():
            if not (isinstance(relu, fx.Node) and isinstance(scaled, fx.Node) and scaled.target is operator.mul):
                continue
            if relu.op != "call_module" or not isinstance(modules[str(relu.target)], nn.ReLU):
                continue
            x = relu.args[0]
            for factor, difference in (scaled.args, scaled.args[::-1]):
                if not (isinstance(difference, fx.Node) and difference.target is operator.sub):
                    continue
                absolute = difference.args[1]
                if difference.args[0] is not x or not isinstance(absolute, fx.Node):
                    continue
                if absolute.target is not torch.abs or absolute.args[0] is not x:
                    continue
                slope = _slope(net, factor)
                if slope is None:
                    continue
                name = f"prelu_of_{add.name}"
                prelu = nn.PReLU(slope.numel())
                prelu.weight.data = slope
                net.add_module(name, prelu)
                with graph.inserting_before(add):
                    add.replace_all_uses_with(graph.call_module(name, (x,)))
                break
    graph.eliminate_dead_code()
    net.delete_all_unused_submodules()
    net.recompile()


# twice a constant factor that is one number or [1, C, 1, 1], else None
def _slope(net: fx.GraphModule, factor: Any) -> Tensor | None:
    if isinstance(factor, float):
        return torch.tensor([2 * factor])
    if not isinstance(factor, fx.Node) or factor.op != "get_attr":
        return None
    constant: Tensor = getattr(net, str(factor.target))
    per_channel = constant.ndim in (3, 4) and constant.numel() == constant.shape[-3]
    return 2 * constant.flatten() if per_channel else None


def _normalisation(net: fx.GraphModule) -> tuple[Tensor, Tensor]:
    """Follow black and white pixels through the steps at the head of the graph that only scale and shift."""
    node = next(iter(net.graph.nodes))
    black, white = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)
    while len(node.users) == 1:
        (user,) = node.users
        if user.target not in (operator.add, operator.sub, operator.mul, operator.truediv):
            break
        constants = [
            getattr(net, str(arg.target)) if isinstance(arg, fx.Node) and arg.op == "get_attr" else arg
            for arg in user.args
        ]
        if sum(isinstance(c, fx.Node) for c in constants) != 1 or any(
            isinstance(c, Tensor) and (c.shape[-2:] != (1, 1) or c.numel() not in (1, 3)) for c in constants
        ):
            break
        black, white = (
            user.target(*(end if isinstance(c, fx.Node) else c for c in constants)) for end in (black, white)
        )
        node = user
    return black, white
