"""Read an ONNX file of a face network into a torch.fx graph of real torch modules.

Convolutions become nn.Conv2d, batch normalisations nn.BatchNorm2d and so on, so that folding them or putting dropout
between them is a generic pass over the graph. Nothing in the file is executed: operators come from a closed list, names
are made here, and whatever does not depend on the picture is evaluated by the reference implementation in `onnx`.
"""

import logging
import math
import operator
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fastcloak import assets
from fastcloak.models.onnx_build import BATCH, Builder, Known, Operation, Value, check
from fastcloak.models.onnx_ops import OPERATORS
from fastcloak.models.surrogate import FACE_SIZE

__all__ = ["OnnxNet", "load_onnx_net"]

_log = logging.getLogger("fastcloak")

_OLDEST_OPSET = 7  # the first with today's broadcasting
_MAX_SIDE = 1024

# What may be done with a list of sizes that holds BATCH: nothing that computes with it.
_MOVES_SIZES = {"Cast", "Concat", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze"}

# What is evaluated when all of its inputs are constants, besides the above: nothing that makes them much larger.
_BROADCASTS = {"Add", "Div", "Mul", "Sub"}
_EVALUATED = {*_MOVES_SIZES, *_BROADCASTS, "Abs", "Constant", "Flatten", "Shape", "Transpose"}
_MAX_CONSTANT = 1 << 26  # 256 MB; the largest matrix of a face network, 512 x 25088, has 13 million numbers


@dataclass(frozen=True)
class OnnxNet:
    """What was read from a file.

    Attributes:
        net: float32 [n, 3, input_size, input_size] -> [n, ...], frozen.
        input_size: the side of the pictures it takes.
        black, white: [1, 3, 1, 1], what 0 and 1 become by the normalisation at the head of the file's own graph.
    """

    net: fx.GraphModule
    input_size: int
    black: Tensor
    white: Tensor


def load_onnx_net(path: str | Path, input_size: int | None = None) -> OnnxNet:
    """Read a network from an ONNX file, opset 7 or later.

    Args:
        path: the file; weights must be inside it.
        input_size: side of the pictures, for a file that leaves it open (112 if not given).

    Raises:
        ValueError: the file is corrupt, keeps its weights elsewhere, takes something else than one RGB picture, or
            needs an operator (or a use of one) that is not supported.
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
    onnx = assets.require("onnx", extra="faces")
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
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors):
        raise ValueError(
            f"{path}: keeps its weights in another file, which is not supported; put them inside with "
            "onnx.save(onnx.load(path), 'one.onnx', save_as_external_data=False)"
        )
    return model


def _build(model: Any, path: str | Path, input_size: int | None) -> OnnxNet:
    numpy_helper = assets.require("onnx.numpy_helper", extra="faces")
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < _OLDEST_OPSET:
        raise ValueError(
            f"{path}: opset must be {_OLDEST_OPSET} or later, got {opset}; convert it with onnx.version_converter"
        )
    nodes = _needed(model.graph)
    _refuse_unknown(nodes, path)
    values: dict[str, Value | Known] = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer
    }
    build = Builder()
    # Initialisers may be listed as inputs too, and inputs may be left over that nothing reads.
    read = {name for node in nodes for name in node.input}
    pictures = [entry for entry in model.graph.input if entry.name not in values and entry.name in read]
    size, picture = _input(pictures, build, path, input_size)
    values[picture[0]] = picture[1]

    for i, node in enumerate(nodes):
        try:
            inputs = tuple(values[name] if name else None for name in node.input)
            attributes = {attribute.name: _attribute(attribute) for attribute in node.attribute}
            op = Operation(node.op_type, opset, inputs, attributes)
            values[node.output[0]] = _run(build, op, node, model)
        except MemoryError:
            raise
        except Exception as error:
            words = f"no value named {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{path}: {node.op_type} (node {i} {node.name!r}): {words}") from error

    output = model.graph.output[0].name
    if len(model.graph.output) > 1:
        _log.warning("%s: has %d outputs; the first, %r, is used", path, len(model.graph.output), output)
    embedding = values.get(output)
    if not isinstance(embedding, Value):
        raise ValueError(f"{path}: the output {output!r} does not depend on the picture")
    build.graph.output(embedding.node)
    net = fx.GraphModule(build.root, build.graph, "OnnxNet")
    _write_prelu(net)
    black, white = _normalisation(net)
    return OnnxNet(net.eval().requires_grad_(False), size, black, white)


# nodes that the first output depends on, in the file's order (which the format requires to be topological)
def _needed(graph: Any) -> list[Any]:
    wanted, needed = {graph.output[0].name}, []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            needed.append(node)
            wanted.update(node.input)
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
) -> tuple[int, tuple[str, Value]]:
    if len(inputs) != 1:
        raise ValueError(f"{path}: must take one picture, got {len(inputs)} inputs: {[i.name for i in inputs]}")
    kind = inputs[0].type.tensor_type
    sizes = [dim.dim_value for dim in kind.shape.dim]  # 0 where the file leaves it open
    if kind.elem_type not in (1, 10, 11, 16) or len(sizes) != 4:
        raise ValueError(f"{path}: must take float pictures [n, 3, H, W], got sizes {sizes} of type {kind.elem_type}")
    channels_last = sizes[3] == 3 and sizes[1] != 3
    channels, height, width = (sizes[3], sizes[1], sizes[2]) if channels_last else sizes[1:]
    if channels not in (0, 3) or height != width or height > _MAX_SIDE:
        raise ValueError(f"{path}: must take square RGB pictures of at most {_MAX_SIDE} pixels, got sizes {sizes}")
    if height and input_size not in (None, height):
        raise ValueError(f"{path}: input_size must be {height}, which the file itself says, got {input_size}")
    size = height or input_size or FACE_SIZE
    value = Value(
        build.graph.placeholder("pictures"), torch.empty(2, 3, size, size, dtype=torch.float32, device="meta")
    )
    return size, (inputs[0].name, build.call(torch.permute, value, (0, 2, 3, 1)) if channels_last else value)


def _attribute(attribute: Any) -> Any:
    helper = assets.require("onnx.helper", extra="faces")
    value = helper.get_attribute_value(attribute)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


@torch.no_grad()
def _run(build: Builder, op: Operation, node: Any, model: Any) -> Value | Known:
    if op.kind == "Shape" and isinstance(op.inputs[0], Value):
        sizes = np.array([BATCH, *op.inputs[0].example.shape[1:]], np.int64)
        return sizes[op.attributes.get("start", 0) : op.attributes.get("end", len(sizes))]
    if not any(isinstance(value, Value) for value in op.inputs):
        holds_batch = any(v is not None and v.dtype.kind == "i" and (v == BATCH).any() for v in _arrays(op))
        if holds_batch and op.kind not in _MOVES_SIZES:
            raise ValueError("computes with the number of pictures, which must stay free")
        if op.kind == "DequantizeLinear":
            return _dequantize(op)
        if op.kind in _EVALUATED:
            return _evaluate(op, node, model)
    value = OPERATORS[op.kind](build, op)
    check(value)
    return value


def _arrays(op: Operation) -> list[Known]:
    return [value for value in op.inputs if isinstance(value, np.ndarray)]


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
    return (quantized - zero) * scale


# a node without any computed input, by the reference implementation that comes with onnx
def _evaluate(op: Operation, node: Any, model: Any) -> Known:
    helper = assets.require("onnx.helper", extra="faces")
    reference = assets.require("onnx.reference", extra="faces")
    feeds = {name: value for name, value in zip(node.input, op.inputs, strict=True) if name}
    anything = helper.make_tensor_type_proto(1, None)
    entries = [[helper.make_value_info(name, anything) for name in names] for names in (feeds, node.output[:1])]
    graph = helper.make_graph([node], "constant", *entries)
    one = helper.make_model(graph, opset_imports=model.opset_import, functions=[])
    if op.kind in _BROADCASTS:
        _refuse_large(np.broadcast_shapes(*(array.shape for array in _arrays(op))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = np.asarray(reference.ReferenceEvaluator(one).run(None, feeds)[0])
    _refuse_large(result.shape)
    return result


def _refuse_large(shape: tuple[int, ...]) -> None:
    if math.prod(shape) > _MAX_CONSTANT:
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
