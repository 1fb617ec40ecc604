"""A torch.fx graph that is built one ONNX operation at a time, and followed on the shapes of an example as it is built.

Shapes only (torch's meta device): a small file may ask for values that fill the memory, and is refused before they are
made.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

__all__ = ["BATCH", "Builder", "Known", "Operation", "Value", "as_tensor", "batch_free_axis", "check"]

BATCH = -(2**31) + 1
"""Stands for the number of pictures in what Shape returns; no real size is negative."""

# A guard against files written to exhaust memory: far above any face network.
_MAX_NUMBERS = 1 << 24

Known = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Value:
    """A value that depends on the picture: where it is computed, and its shape for two pictures, on the meta device."""

    node: fx.Node
    example: Tensor


@dataclass
class Builder:
    """Collects modules and calls into a torch.fx graph, and follows the shapes at once."""

    root: nn.Module = field(default_factory=nn.Module)
    graph: fx.Graph = field(default_factory=fx.Graph)
    _count: int = 0

    def module(self, module: nn.Module, value: Value) -> Value:
        """Apply a module to a value."""
        module.eval().requires_grad_(False)
        name = self._name(type(module).__name__)
        self.root.add_module(name, module)
        tensors = {name: tensor.to("meta") for name, tensor in (*module.named_parameters(), *module.named_buffers())}
        example = torch.func.functional_call(module, tensors, (value.example,))
        return Value(self.graph.call_module(name, (value.node,)), example)

    def call(self, function: Callable[..., Any], *args: Any) -> Value:
        """Call a function on values, known arrays (which become buffers) and plain arguments."""
        nodes, examples = [], []
        for arg in args:
            node, example = arg, arg
            if isinstance(arg, np.ndarray):
                name = self._name("constant")
                constant = as_tensor(arg)
                self.root.register_buffer(name, constant)
                example = constant.to("meta")
                node = self.graph.get_attr(name)
            elif isinstance(arg, Value):
                node, example = arg.node, arg.example
            elif isinstance(arg, list):
                node, example = [item.node for item in arg], [item.example for item in arg]
            nodes.append(node)
            examples.append(example)
        return Value(self.graph.call_function(function, tuple(nodes)), function(*examples))

    # Names never come from the file: fx writes them into Python source.
    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{kind.lower()}_{self._count}"


@dataclass(frozen=True)
class Operation:
    """One node of the file with its inputs looked up."""

    kind: str
    opset: int
    inputs: tuple[Value | Known | None, ...]
    attributes: dict[str, Any]

    def has(self, index: int) -> bool:
        """Whether the optional input is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def value(self, index: int = 0) -> Value:
        """Return an input that must depend on the picture."""
        value = self.inputs[index] if self.has(index) else None
        if not isinstance(value, Value):
            raise ValueError(f"input {index} must depend on the picture, got {_words(value)}")
        return value

    def known(self, index: int) -> Known:
        """Return an input that must not depend on the picture."""
        value = self.inputs[index] if self.has(index) else None
        if not isinstance(value, np.ndarray):
            raise ValueError(f"input {index} must be a constant of the file, got {_words(value)}")
        return value

    def ints(self, name: str, index: int, since: int, default: Sequence[int] | None = None) -> list[int] | None:
        """Whole numbers that are an attribute before opset `since` and input `index` from then on."""
        got = self.attributes.get(name) if self.opset < since else self.known(index) if self.has(index) else None
        numbers = default if got is None else [int(number) for number in np.atleast_1d(np.asarray(got))]
        if numbers is not None and BATCH in numbers:
            raise ValueError(f"{name} depends on the number of pictures, which must stay free")
        return None if numbers is None else list(numbers)

    def axes(self, name: str, index: int, since: int, ndim: int) -> list[int] | None:
        """Return axes counted from the front; the batch is refused."""
        axes = self.ints(name, index, since)
        return None if axes is None else [batch_free_axis(axis, ndim) for axis in axes]


def as_tensor(array: Known) -> Tensor:
    """Known array -> tensor of its own memory, float32 if it holds floats."""
    tensor = torch.from_numpy(np.array(array, order="C"))
    return tensor.float() if tensor.is_floating_point() else tensor


def check(value: Value) -> None:
    """Raise if the batch is no longer dimension 0, or the value is absurdly large."""
    shape = tuple(value.example.shape)
    if not shape or shape[0] != 2:
        raise ValueError(f"must keep the pictures in dimension 0, got {list(shape)} for 2 pictures")
    if value.example.numel() > 2 * _MAX_NUMBERS:
        raise ValueError(f"must make at most {_MAX_NUMBERS} numbers a picture, got shape {list(shape[1:])}")


def _words(value: Value | Known | None) -> str:
    return "nothing" if value is None else "a constant" if isinstance(value, np.ndarray) else "a computed value"


def batch_free_axis(axis: int, ndim: int) -> int:
    """Count an axis from the front, and raise if it is the batch."""
    if not -ndim <= axis < ndim:
        raise ValueError(f"axis must be in [{-ndim}, {ndim - 1}], got {axis}")
    if axis % ndim == 0:
        raise ValueError("axis 0 is the batch and must be left alone")
    return axis % ndim
