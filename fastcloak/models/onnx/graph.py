"""A torch.fx graph that is built one ONNX operation at a time, with the shapes of an example.

A file is read as what it does for one picture: shapes are those of one picture, and computing with them is computing
with constants. The pictures of a batch stand one after the other along the front axis: where the file has [a, b, c] for
one picture, the graph has [n * a, b, c] for n. So pictures cannot meet, whatever the file does with its axes.

Shapes only (torch's meta device): a small file may ask for values that fill the memory, and is refused before they are
made.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

__all__ = ["Builder", "Known", "Operation", "Value", "as_tensor", "axis_from_front", "whole_numbers"]

Known = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Value:
    """A value that depends on the picture.

    Attributes:
        node: where it is computed.
        example: [2 * a, b, c], what it is for two pictures, on the meta device; in the file's type.
        batch: whether the front axis is the number of pictures, which the file leaves open.
    """

    node: fx.Node
    example: Tensor
    batch: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """What the file has for one picture."""
        return (self.example.shape[0] // 2, *self.example.shape[1:])


@dataclass
class Builder:
    """Collects modules and calls into a torch.fx graph, and follows the shapes at once."""

    root: nn.Module = field(default_factory=nn.Module)
    graph: fx.Graph = field(default_factory=fx.Graph)
    _count: int = 0

    def pictures(self, shape: Sequence[int], *, batch: bool, dtype: torch.dtype = torch.float32) -> Value:
        """Return what the graph gets: of `shape` for one picture."""
        example = torch.empty(2 * shape[0], *shape[1:], dtype=dtype, device="meta")
        return Value(self.graph.placeholder("pictures"), example, batch)

    def module(self, module: nn.Module, value: Value) -> Value:
        """Apply a module to a value."""
        module.eval().requires_grad_(False)
        name = self._name(type(module).__name__)
        self.root.add_module(name, module)
        tensors = {name: tensor.to("meta") for name, tensor in (*module.named_parameters(), *module.named_buffers())}
        example = torch.func.functional_call(module, tensors, (value.example,))
        return Value(self.graph.call_module(name, (value.node,)), example, value.batch)

    def call(self, function: Callable[..., Any], *args: Any) -> Value:
        """Call a function on values, known arrays (which become buffers) and plain arguments."""
        nodes, examples, batch = [], [], False
        for arg in args:
            node, example = arg, arg
            if isinstance(arg, np.ndarray):
                name, constant = self._name("constant"), as_tensor(arg)
                self.root.register_buffer(name, constant)
                node, example = self.graph.get_attr(name), constant.to("meta")
            elif isinstance(arg, Value):
                node, example, batch = arg.node, arg.example, batch or arg.batch
            elif isinstance(arg, list):
                node, example = [item.node for item in arg], [item.example for item in arg]
                batch = batch or any(item.batch for item in arg)
            nodes.append(node)
            examples.append(example)
        return Value(self.graph.call_function(function, tuple(nodes)), function(*examples), batch)

    def reshape(self, value: Value, shape: Sequence[int]) -> Value:
        """Give a value the shape that the file has for one picture; always right, for pictures lie in front."""
        if tuple(shape) == value.shape:
            return value
        reshaped = self.call(torch.reshape, value, (-1, *shape[1:])) if shape else value
        return replace(reshaped, batch=value.batch and shape[0] == 1)

    def lift(self, value: Value, ndim: int = 0) -> Value:
        """Axes of size 1 in front, up to `ndim` and one more: nothing that is done to the others touches pictures."""
        ones = max(ndim - len(value.shape), 0)
        return self.reshape(value, (*[1] * (ones + 1), *value.shape))

    def lower(self, value: Value) -> Value:
        """Take away the front axis of size 1 that `lift` added."""
        return replace(self.reshape(value, value.shape[1:]), batch=False)

    # Names never come from the file: fx writes them into Python source.
    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{kind.lower()}_{self._count}"


@dataclass(frozen=True)
class Operation:
    """One node of the file with its inputs looked up.

    Attributes:
        outputs: how many results the node has.
        pictures: how many pictures the file says it takes at a time; 0 where it leaves that open.
    """

    kind: str
    opset: int
    inputs: tuple[Value | Known | None, ...]
    attributes: dict[str, Any]
    outputs: int = 1
    pictures: int = 0

    def get(self, name: str, default: Any = ...) -> Any:
        """Return an attribute; one without a default must be given."""
        if default is ... and name not in self.attributes:
            raise ValueError(f"{name} must be given")
        return self.attributes.get(name, default)

    def choice(self, name: str, default: str, choices: Sequence[str]) -> str:
        """Return an attribute that is one of a few words."""
        got: str = self.get(name, default)
        if got not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {got!r}")
        return got

    def has(self, index: int) -> bool:
        """Whether the optional input is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def value(self, index: int = 0) -> Value:
        """Return an input that must depend on the picture."""
        return self._input(index, Value, "depend on the picture")  # type: ignore[no-any-return]

    def known(self, index: int) -> Known:
        """Return an input that must not depend on the picture."""
        return self._input(index, np.ndarray, "be a constant of the file")  # type: ignore[no-any-return]

    def _input(self, index: int, kind: type, expected: str) -> Any:
        value = self.inputs[index] if self.has(index) else None
        if not isinstance(value, kind):
            got = {np.ndarray: "a constant", Value: "a computed value"}.get(type(value), "nothing")
            raise ValueError(f"input {index} must {expected}, got {got}")
        return value

    def ints(self, name: str, index: int, since: int, default: Any = None) -> Any:
        """Whole numbers that are an attribute before opset `since` and input `index` from then on."""
        got = self.attributes.get(name) if self.opset < since else self.known(index) if self.has(index) else None
        return default if got is None else whole_numbers(got)

    def sizes(self, index: int) -> list[int]:
        """Return an input that lists sizes; a front one that is the file's own number of pictures becomes 1."""
        sizes = whole_numbers(self.known(index))
        return [1, *sizes[1:]] if self.pictures > 1 and sizes[:1] == [self.pictures] else sizes


def as_tensor(array: Known) -> Tensor:
    """Known array -> tensor of its own memory, float32 if it holds floats."""
    tensor = torch.from_numpy(np.array(array, order="C"))
    return tensor.float() if tensor.is_floating_point() else tensor


def whole_numbers(given: Known | Sequence[int] | int) -> list[int]:
    """Whole numbers that the file gives, as a list."""
    array = np.asarray(given)
    if array.dtype.kind not in "iu" and array.size:
        raise ValueError(f"must be whole numbers, got {array.dtype}")
    return [int(number) for number in array.flatten()]


def axis_from_front(axis: int, value: Value) -> int:
    """Count an axis of a value from the front, and raise if it is the batch."""
    ndim = len(value.shape)
    if not -ndim <= axis < ndim:
        raise ValueError(f"axis must be in [{-ndim}, {ndim - 1}], got {axis}")
    if axis % ndim == 0 and value.batch:
        raise ValueError("axis 0 is the batch and must be left alone")
    return axis % ndim
