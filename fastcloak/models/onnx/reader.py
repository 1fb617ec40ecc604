"""Read an ONNX file of a face network into a torch.fx graph of real torch modules.

Convolutions become nn.Conv2d, batch normalisations nn.BatchNorm2d and so on, so that folding them or putting dropout
between them is a generic pass over the graph. Nothing in the file is executed: operators come from a closed list, names
are made here, and what does not depend on the picture is computed once (constants.py).
"""

import logging
import math
import operator
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fastcloak.models.onnx.constants import MAX_CONSTANT, MOVES, constants_of
from fastcloak.models.onnx.graph import Builder, Known, Operation, Value
from fastcloak.models.onnx.operators import FLOATS, OPERATORS, emit
from fastcloak.models.rewrites.prelu import join_prelu
from fastcloak.models.surrogate import FACE_SIZE, MAX_SIDE
from fastcloak.system import packages

__all__ = ["OnnxNet", "load_onnx_net"]

_log = logging.getLogger("fastcloak")

_OLDEST_OPSET = 7  # the first with today's broadcasting
_UINT8 = 2  # TensorProto.DataType
_DOMAINS = ("", "ai.onnx")
MAX_MADE = 1 << 28  # numbers of all constants that are made from others, 1 GB
_MAX_EXTERNAL = 1 << 31  # bytes of weights in other files: as many as protobuf takes inside one


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
    onnx = packages.require("onnx", extra="faces")
    content = Path(path).read_bytes()
    try:
        model = _parsed(onnx, content, Path(path).parent)
        net = _build(model, input_size)
    except OSError:
        raise
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    # The file is not to be trusted: whatever a malformed one trips over is a fault of the file.
    except Exception as error:
        raise ValueError(f"{path}: not a usable ONNX network ({type(error).__name__}: {error})") from error
    names = [output.name for output in model.graph.output]
    if len(names) > 1:
        _log.warning("%s: has %d outputs; the first, %r, is used", path, len(names), names[0])
    return net


def _parsed(onnx: Any, content: bytes, folder: Path) -> Any:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    # protobuf's DecodeError, of a module that may move between its versions
    except Exception as error:
        raise ValueError(f"not an ONNX file, or a damaged one ({error})") from error
    if not model.graph.node or not model.graph.output:
        raise ValueError("not an ONNX file, or an empty one: it holds no network")
    left = _MAX_EXTERNAL
    for tensor in [*model.graph.initializer, *(a.t for node in model.graph.node for a in node.attribute)]:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.raw_data = _external(tensor, folder, left)
            tensor.data_location = onnx.TensorProto.DEFAULT
            left -= len(tensor.raw_data)
    return model


def _external(tensor: Any, folder: Path, most: int) -> bytes:
    """The bytes of a tensor that lie in another file of the folder; `most` of them."""
    # str: protobuf gives bytes where they are not UTF-8
    entries = {str(entry.key): str(entry.value) for entry in tensor.external_data}
    name = entries.get("location", "")
    what = f"keeps {tensor.name!r} in the file {name!r}"

    def whole(key: str, default: int) -> int:
        text = entries.get(key, str(default))
        if not (text.isascii() and text.isdigit() and len(text) < 19):
            raise ValueError(f"{what}: {key} must be a whole number, got {text[:40]!r}")
        return int(text)

    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts or set(name) & set("\0\\:"):
        raise ValueError(f"{what}; it must be a relative name inside the folder of the .onnx file, without '..'")
    folder = Path(os.path.realpath(folder))
    file = Path(os.path.realpath(folder / name))
    if not file.is_relative_to(folder):
        raise ValueError(f"{what}, a link out of its folder; put the file itself there")
    try:
        if not file.is_file():
            raise ValueError(f"{what}, which is no ordinary file there; put both files into one folder")
        stream = file.open("rb")
    except OSError as error:
        raise ValueError(f"{what}, which cannot be read ({error.strerror}); put both files into one folder") from error
    with stream:
        size = os.fstat(stream.fileno()).st_size
        offset = whole("offset", 0)
        end = offset + whole("length", max(size - offset, 0))
        if end > size:
            raise ValueError(
                f"{what} at {offset} to {end}, but that has {size} bytes; it is cut off or of another network"
            )
        numbers = math.prod(tensor.dims)
        if not 0 <= numbers <= MAX_CONSTANT or end - offset > min(16 * numbers, most):
            raise ValueError(
                f"{what}: must have at most {MAX_CONSTANT} numbers, and {_MAX_EXTERNAL} bytes in all, got shape "
                f"{list(tensor.dims)} in {end - offset} bytes"
            )
        stream.seek(offset)
        return stream.read(end - offset)


def _build(model: Any, input_size: int | None) -> OnnxNet:
    opset = max((entry.version for entry in model.opset_import if entry.domain in _DOMAINS), default=0)
    if opset < _OLDEST_OPSET:
        raise ValueError(f"opset must be {_OLDEST_OPSET} or later, got {opset}; convert it with onnx.version_converter")
    nodes = _needed(model.graph)
    values: dict[str, Value | Known] = {tensor.name: _array(tensor) for tensor in model.graph.initializer}
    # Initialisers may be listed as inputs too, and inputs may be left over that nothing reads.
    read = {name for node in nodes for name in node.input}
    entries = [entry for entry in model.graph.input if entry.name not in values and entry.name in read]
    if len(entries) != 1:
        raise ValueError(f"must take one picture, got {len(entries)} inputs: {[entry.name for entry in entries]}")
    build = Builder()
    size, picture, together = _input(entries[0].type.tensor_type, build, input_size)
    values[entries[0].name] = picture
    made = 0
    for i, node in enumerate(nodes):
        try:
            results = _results(build, node, values, model, opset, together)
            made += sum(result.size for result in results if isinstance(result, np.ndarray))
            if made > MAX_MADE:
                raise ValueError(f"must make at most {MAX_MADE} numbers of constants in all")
        # Modules and functions raise whatever they like on what does not fit.
        except Exception as error:
            hint = f" (the file takes {together} pictures at a time; export it for 1, or leave the number open)"
            hint = hint if together > 1 else ""
            raise ValueError(f"{node.op_type} (node {i} {node.name!r}): {error}{hint}") from error
        values.update((name, result) for name, result in zip(node.output, results, strict=False) if name)

    output = model.graph.output[0].name
    embedding = values.get(output)
    if not isinstance(embedding, Value):
        raise ValueError(f"the output {output!r} does not depend on the picture")
    if len(embedding.shape) > 1 and embedding.shape[0] != 1:
        raise ValueError(
            f"the output {output!r} must keep pictures apart and leave the batch in front, [n, D], got "
            f"{list(embedding.shape)} for one picture"
        )
    if len(embedding.shape) == 1:
        embedding = build.reshape(embedding, (1, *embedding.shape))
    build.graph.output(embedding.node)
    net = fx.GraphModule(build.root, build.graph, "OnnxNet")
    join_prelu(net)
    black, white = _normalisation(net)
    return OnnxNet(net.eval().requires_grad_(False), size, black, white, not picture.example.is_floating_point())


def _needed(graph: Any) -> list[Any]:
    """The nodes that the first output depends on, in the file's order, which the format requires to be topological."""
    wanted, needed, unknown = {graph.output[0].name}, [], set()
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            needed.append(node)
            wanted.update(name for name in node.input if name)
            if node.domain not in _DOMAINS:
                unknown.add(f"{node.domain}.{node.op_type}")
            elif node.op_type not in OPERATORS:
                unknown.add(node.op_type)
    if unknown:
        raise ValueError(
            f"unsupported operator {', '.join(sorted(unknown))}; supported are {', '.join(sorted(OPERATORS))}. "
            "Another route: convert it to a torch module yourself and pass that to load_model"
        )
    return needed[::-1]


def _array(tensor: Any) -> Known:
    try:
        array: Known = packages.require("onnx.numpy_helper", extra="faces").to_array(tensor)
    # whatever the reader of `onnx` trips over
    except Exception as error:
        raise ValueError(f"the weights {tensor.name!r} are damaged ({error})") from error
    return array


# the side, the picture, and how many the file takes at a time (0: any number)
def _input(kind: Any, build: Builder, input_size: int | None) -> tuple[int, Value, int]:
    sizes = [dim.dim_value for dim in kind.shape.dim]  # 0 where the file leaves it open
    if kind.elem_type not in (*FLOATS, _UINT8) or len(sizes) != 4:
        raise ValueError(
            f"must take float pictures [n, 3, H, W], or uint8 ones, got sizes {sizes} of type {kind.elem_type}"
        )
    channels_last = sizes[3] == 3 and sizes[1] != 3
    channels, height, width = (sizes[3], sizes[1], sizes[2]) if channels_last else sizes[1:]
    if channels not in (0, 3) or height != width or height > MAX_SIDE:
        raise ValueError(f"must take square RGB pictures of at most {MAX_SIDE} pixels, got sizes {sizes}")
    if height and input_size not in (None, height):
        raise ValueError(f"input_size must be {height}, which the file itself says, got {input_size}")
    size = height or input_size or FACE_SIZE
    dtype = torch.uint8 if kind.elem_type == _UINT8 else torch.float32
    value = build.pictures((1, 3, size, size), batch=sizes[0] != 1, dtype=dtype)
    return size, build.call(torch.permute, value, (0, 2, 3, 1)) if channels_last else value, sizes[0]


@torch.no_grad()
def _results(
    build: Builder, node: Any, known: dict[str, Value | Known], model: Any, opset: int, together: int
) -> Sequence[Value | Known]:
    for name in node.input:
        if name and name not in known:
            raise ValueError(f"no value named {name!r}")
    helper = packages.require("onnx.helper", extra="faces")
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    words = {name: word.decode("utf-8", "replace") for name, word in attributes.items() if isinstance(word, bytes)}
    inputs = tuple(known[name] if name else None for name in node.input)
    op = Operation(node.op_type, opset, inputs, attributes | words, len(node.output), together)
    values = [value for value in inputs if isinstance(value, Value)]
    if not values:
        return constants_of(op, node, model)
    if op.kind == "Shape":
        return [np.array(values[0].shape, np.int64)[op.get("start", 0) : op.get("end", None)]]
    if op.kind == "Size":
        return [np.array(math.prod(values[0].shape), np.int64)]
    if op.kind not in MOVES and not all(value.example.is_floating_point() for value in values):
        raise ValueError("a picture of whole numbers must be cast to float before it is computed with")
    return emit(build, op)


def _normalisation(net: fx.GraphModule) -> tuple[Tensor, Tensor]:
    """Follow black and white pixels through the steps at the head of the graph that only scale and shift."""
    node = next(iter(net.graph.nodes))
    black, white = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)
    while len(node.users) == 1:
        (user,) = node.users
        if user.target not in (operator.add, operator.sub, operator.mul, operator.truediv):
            break
        constants = [getattr(net, arg.target) if getattr(arg, "op", "") == "get_attr" else arg for arg in user.args]
        varying = [
            c for c in constants if isinstance(c, Tensor) and (c.shape[-2:] != (1, 1) or c.numel() not in (1, 3))
        ]
        if varying or sum(isinstance(c, fx.Node) for c in constants) != 1:
            break
        black, white = (user.target(*(end if c is node else c for c in constants)) for end in (black, white))
        node = user
    return black, white
