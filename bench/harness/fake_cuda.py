"""CUDA tensors without a GPU: shapes, dtypes, layouts and devices are real, numbers are not.

A whole step runs, forward and backward, and every operation that it would launch is seen. What makes a GPU wait, or
cannot be captured, is an error at the line that asks for it.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import get_gradient_edge
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastcloak.fitting.loop import Loop
from fastcloak.fitting.state import Learnt
from fastcloak.models import Surrogate

CUDA = torch.device("cuda", 0)
COPIES = {"_to_copy", "copy_"}
LAPACK = "linalg_", "_linalg_", "cholesky", "triangular_solve", "lu_solve", "geqrf", "ormqr"
"""How operations begin that may wait for the device or take memory in a capture."""
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"}


@contextmanager
def fake_cuda() -> Iterator[None]:
    """A world with a fake CUDA device: tensors made in it are fake, and events happen at once."""
    with ExitStack() as world:
        world.enter_context(FakeTensorMode(allow_non_fake_inputs=False))
        world.enter_context(mock.patch.object(FakeTensor, "__deepcopy__", _copied))
        world.enter_context(mock.patch("torch.autograd.grad", grad))
        world.enter_context(mock.patch("torch.cuda.Event", _Event))
        world.enter_context(mock.patch("torch.cuda.get_rng_state"))
        world.enter_context(mock.patch("torch.cuda.set_rng_state"))
        yield


def on_fake_cuda(surrogate: Surrogate) -> Surrogate:
    """A copy of a surrogate with every tensor on the fake device, in its dtype and memory layout."""
    with unset_fake_temporarily():
        moved = surrogate.copy()

    def fake(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CUDA)

    for module in moved.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(fake(parameter), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fake(buffer)
    return moved


class Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what each operation on the device launches: one a call, none where it only makes a view or takes memory.

    Attributes:
        counts: operation -> calls.

    Raises:
        AssertionError: an operation copies between devices, or has tensors of several. What reads a value from the
            device is refused by FakeTensorMode, which has none.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        schema, kwargs = operation._schema, kwargs or {}
        namespace, name = schema.name.split("::")
        result = operation(*args, **kwargs)
        if namespace == "prim":
            return result
        tensors = [one for one in tree_leaves((args, kwargs, result)) if isinstance(one, torch.Tensor)]
        # A number on the CPU goes along with a launch, unless it is copied itself.
        devices = {one.device.type for one in tensors if one.ndim or one.is_cuda or name in COPIES}
        assert len(devices) <= 1, f"{schema.name} takes or gives tensors on {' and '.join(sorted(devices))}"
        is_view = any(one.alias_info is not None and not one.alias_info.is_write for one in schema.returns)
        if "cuda" in devices and not is_view and name not in FREE:
            self.launched(operation, args, kwargs, result)
        return result

    def launched(self, operation: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Count one launch."""
        self.counts[operation._schema.name.removeprefix("aten::")] += 1


def of_lapack(counts: Counter[str]) -> set[str]:
    """The operations of LAPACK among those counted."""
    return {name for name in counts if name.startswith(LAPACK) and name not in ("linalg_vector_norm", "linalg_cross")}


def launches_of_steps(loop: Loop, **arguments: Any) -> list[Counter[str]]:
    """What each step of a fit launches, a Counter each; the arguments are those of `Loop.learn`."""
    seen = Launches()
    steps: list[Counter[str]] = []
    with ExitStack() as watched:

        def keep(learnt: Learnt, state: object) -> None:
            if learnt.steps == 0:  # all is ready
                watched.enter_context(seen)
            else:
                steps.append(seen.counts)
            seen.counts = Counter()

        loop.learn(keep=keep, **arguments)
    return steps


def grad(
    outputs: Tensor, inputs: Tensor, grad_outputs: Tensor | None = None, *, allow_unused: bool = False
) -> tuple[Any]:
    """`torch.autograd.grad` of one output and one input, by the same backward formulas in the same order.

    PyTorch's engine asks the CUDA driver for streams as soon as it sees a CUDA tensor, so the nodes are called here.
    """
    root, leaf = get_gradient_edge(outputs), get_gradient_edge(inputs)
    waiting: Counter[Any] = Counter()
    seen: list[Any] = [root.node]
    for node in seen:
        for after, _ in node.next_functions:
            if after is not None:
                if after not in waiting and after is not root.node:
                    seen.append(after)
                waiting[after] += 1
    given: defaultdict[Any, dict[int, Tensor]] = defaultdict(dict)
    given[root.node][root.output_nr] = torch.ones_like(outputs) if grad_outputs is None else grad_outputs
    order = count()
    ready: list[Any] = []
    heapq.heappush(ready, (-root.node._sequence_nr(), next(order), root.node))
    while ready:
        node = heapq.heappop(ready)[2]
        if node is leaf.node:
            break
        with torch.no_grad():
            slopes = _called(node, given.pop(node, {}))
        for (after, number), slope in zip(node.next_functions, slopes, strict=not isinstance(node, BackwardCFunction)):
            if after is None:
                continue
            if slope is not None:
                known = given[after].get(number)
                given[after][number] = slope if known is None else known + slope
            waiting[after] -= 1
            if not waiting[after]:
                heapq.heappush(ready, (-after._sequence_nr(), next(order), after))
    found = given[leaf.node].get(leaf.output_nr)
    assert found is not None or allow_unused, "the input is not part of the graph"
    return (found,)


def _called(node: Any, given: dict[int, Tensor]) -> Any:
    """What the backward formula of a node gives each of its inputs."""
    if not given:
        return [None] * len(node.next_functions)
    slopes = [given.get(i) for i in range(len(node._input_metadata))]
    call = node.apply if isinstance(node, BackwardCFunction) else node
    found = call(*slopes)
    return found if isinstance(found, tuple) else (found,)


def _copied(tensor: Tensor, memo: Any) -> Tensor:
    # PyTorch's own looks for the memory.
    copy = tensor.detach().clone()
    return torch.nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else copy


class _Event:
    """An event that has happened as soon as it is recorded."""

    def record(self, stream: object = None) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass
