"""CUDA graphs on a CPU: the calls of torch.cuda that a capture takes, with what a card makes of them.

A capture executes nothing: what it writes is put back. A replay repeats its operations on the same memory, whatever the
Python code around them would do by now.
"""

from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Graph(TorchDispatchMode):
    """A torch.cuda.CUDAGraph, filled while it is the current mode."""

    def __init__(self, log):
        super().__init__()
        self.log, self.operations, self.overwritten = log, [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written = args[position] if position < len(args) else kwargs.get(argument.name)
                self.overwritten += [(one, one.clone()) for one in tree_leaves(written) if one is not None]
        result = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, result))
        return result

    def undo(self):
        for tensor, before in reversed(self.overwritten):
            tensor.detach().copy_(before)
        self.overwritten.clear()

    def replay(self):
        self.log.append(("replay", self))
        with torch._C._AutoDispatchBelowAutograd():
            for func, args, kwargs, result in self.operations:
                for old, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class FakeCuda:
    """What stands in for torch.cuda.

    Attributes:
        log: what happened, in order: ("capture", graph, pool, stream), ("replay", graph) and ("clear",).
        streams, pools: those that were asked for.
        breaks: an exception that a capture raises at its end.
    """

    def __init__(self):
        self.log, self.streams, self.pools, self.breaks = [], [], [], None
        self.current = "default"

    def stream(self, device=None):
        self.streams.append(f"side {len(self.streams)}")
        return self.streams[-1]

    def pool(self):
        self.pools.append(f"pool {len(self.pools)}")
        return self.pools[-1]

    def set_stream(self, stream):
        self.current = stream

    @contextmanager
    def capture(self, graph, pool=None, stream=None, capture_error_mode="global"):
        self.log.append(("capture", graph, pool, stream))
        before, self.current, random = self.current, stream, torch.get_rng_state()
        try:
            with graph:
                yield
        finally:
            graph.undo()
            torch.set_rng_state(random)
        if self.breaks is not None:
            raise self.breaks  # PyTorch then leaves its side stream the current one
        self.current = before

    def named(self, what):
        return [entry for entry in self.log if entry[0] == what]


def fake_cuda(monkeypatch):
    """Make engine "cudagraph" run on CPU tensors, and "auto" mean it."""
    fake = FakeCuda()
    monkeypatch.setattr(torch.cuda, "Stream", fake.stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: fake.current)
    monkeypatch.setattr(torch.cuda, "set_stream", fake.set_stream)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", fake.pool)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Graph(fake.log))
    monkeypatch.setattr(torch.cuda, "graph", fake.capture)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: fake.log.append(("clear",)), raising=False)
    monkeypatch.setattr(
        "fastcloak.fitting.learner.resolve_engine", lambda engine, device: "cudagraph" if engine == "auto" else engine
    )
    return fake
