"""How a step is launched: directly, through a compiled network, or captured once in a CUDA graph and replayed.

A step is a function without arguments on buffers that never move. Nothing here knows of faces.
"""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from types import FunctionType
from typing import Any

import torch

from fastcloak.system.errors import EngineError

ENGINES = ("auto", "eager", "compile", "cudagraph")
WARM_UP = 3
"""Runs on a side stream before a capture, in which libraries choose algorithms and allocate, as PyTorch asks for."""
AHEAD = 8
"""Steps in the queue of a GPU: enough that it never runs dry, few enough that Ctrl-C need not wait for a whole fit."""

# Streams in capture and the debug mode belong to the whole process: one capture at a time.
_CAPTURING = threading.Lock()


def resolve_engine(engine: str, device: torch.device) -> str:
    """The engine that will be tried on `device`; "auto" is cudagraph on CUDA, else eager.

    Raises:
        ValueError: an unknown name, or an engine that this device cannot have.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    if engine == "cudagraph" and device.type != "cuda":
        raise ValueError(f"engine 'cudagraph' needs a CUDA device, got {device.type}; use 'eager' or 'auto'")
    if engine == "auto":
        return "cudagraph" if device.type == "cuda" else "eager"
    return engine


def network(engine: str, forward: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The network as the engine runs it: compiled as one graph for one shape, or unchanged."""
    if engine != "compile":
        return forward

    def embed(pictures: torch.Tensor) -> torch.Tensor:
        return forward(pictures)

    # torch.compile counts recompilations per code object and gives up after eight: every network gets one of its own.
    own = FunctionType(embed.__code__.replace(co_name="embed"), embed.__globals__, closure=embed.__closure__)
    compiled: Callable[[torch.Tensor], torch.Tensor] = torch.compile(own, fullgraph=True, dynamic=False)
    return compiled


def launchers(engine: str, steps: Mapping[Hashable, Callable[[], None]]) -> dict[Hashable, Callable[[], None]]:
    """The steps as the engine launches them. compile and cudagraph run them here, so buffers change.

    Args:
        engine: what `resolve_engine` returned.
        steps: for cudagraph they neither wait for the device nor read from it, and need nothing from each other but
            their buffers: their graphs share one memory pool.

    Raises:
        EngineError: a step cannot be compiled or captured; says why.
    """
    try:
        if engine == "compile":
            return {name: _compiled(step) for name, step in steps.items()}
        if engine == "cudagraph":
            pool = torch.cuda.graph_pool_handle()
            return {name: _captured(step, pool) for name, step in steps.items()}
    except (ValueError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # torch.compile and CUDA raise many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EngineError(f"engine {engine!r} cannot run this network: {reason}; use engine='eager'") from error
    return dict(steps)


def _compiled(step: Callable[[], None]) -> Callable[[], None]:
    def without_recompilation() -> None:
        with torch.compiler.set_stance("fail_on_recompile"):
            step()

    step()
    without_recompilation()  # a network that is compiled again for every call is refused before the loop
    return without_recompilation


def _captured(step: Callable[[], None], pool: Any) -> Callable[[], None]:
    with _CAPTURING:
        current = torch.cuda.current_stream()
        side: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP - 1):
                step()
            # A step that waits for the device is refused here: a capture that fails would leave the process unable to
            # make another one.
            mode = torch.cuda.get_sync_debug_mode()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch says once that the mode is a prototype
                torch.cuda.set_sync_debug_mode("error")
            try:
                step()
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
                step()
        except BaseException:
            torch.cuda.set_stream(current)
            raise
    replay: Callable[[], None] = graph.replay
    return replay


class Progress:
    """Calls `tick` for each step that the device has finished; the host runs up to AHEAD steps ahead of it."""

    def __init__(self, device: torch.device, tick: Callable[[], None]) -> None:
        self._on_host, self._tick = device.type != "cuda", tick
        self._launched: deque[Any] = deque()

    def launched(self) -> None:
        """To call when a step was launched."""
        if self._on_host:
            self._tick()
            return
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._launched.append(event)
        while self._launched and (len(self._launched) > AHEAD or self._launched[0].query()):
            self._launched.popleft().synchronize()
            self._tick()

    def wait(self) -> None:
        """Wait for every step that was launched."""
        while self._launched:
            self._launched.popleft().synchronize()
            self._tick()
