"""How a step is launched: directly, through a compiled network, or captured once in a CUDA graph and replayed.

A step is a function without arguments on buffers that never move. Nothing here knows of faces.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import FunctionType
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from fastcloak.ops.watch import Watch
from fastcloak.system.errors import EngineError

log = logging.getLogger("fastcloak")

ENGINES = ("auto", "eager", "compile", "cudagraph")
WARM_UP = 3
"""Steps before the first capture, in which libraries choose algorithms and allocate, as PyTorch asks for."""
AHEAD = 8
"""Steps in the queue of a GPU: enough that it never runs dry, few enough that Ctrl-C need not wait for a whole fit."""

# PyTorch asks for one capture at a time in a process.
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

    def unwatched(pictures: torch.Tensor) -> torch.Tensor:
        with _disable_current_modes():  # torch.compile refuses to run in one; what it compiled reads nothing back
            return compiled(pictures)

    return unwatched


class Launcher:
    """Launches the steps of one loop. None runs only to warm up: the first ones are real steps, launched directly.

    On CUDA, "cudagraph" and "compile" then capture a step, which executes nothing, and replay it from there on.

    Attributes:
        engine: what runs, also after a fall back.
    """

    def __init__(self, engine: str, device: torch.device, fall_back: bool = False) -> None:
        """Begin without graphs.

        Args:
            engine: what `resolve_engine` returned.
            device: of the steps.
            fall_back: where "cudagraph" cannot capture a step, go on with "eager" and log a warning.
        """
        self.engine, self._fall_back = engine, fall_back
        self._captures = engine == "cudagraph" or (engine == "compile" and device.type == "cuda")
        self._ran: Counter[Hashable] = Counter()
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        if self._captures:
            # Graphs share the memory of a pool only where they are captured on the same stream.
            self._pool = torch.cuda.graph_pool_handle()
            self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, name: Hashable, step: Callable[[], None]) -> None:
        """Run a step.

        Args:
            name: of what it launches, which is the same every time.
            step: launches it; needs nothing from other steps but their buffers.

        Raises:
            EngineError: it cannot be compiled or captured; says why.
        """
        warm = self._ran[name] and self._ran.total() >= WARM_UP
        if self._captures and warm and name not in self._graphs:
            self._capture(name, step)
        if name in self._graphs:
            self._graphs[name].replay()
            return
        first, watch = not self._ran[name], Watch()
        with ExitStack() as modes:
            if self._captures and first:
                modes.enter_context(watch)
            if self.engine == "compile":
                modes.enter_context(_compiling(first))
            step()
        self._ran[name] += 1
        if watch.found:
            self._refuse(f"{watch.found} may wait for the device")

    def _capture(self, name: Hashable, step: Callable[[], None]) -> None:
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        with _CAPTURING:
            # cuBLAS keeps up to 32 MiB for every thread and stream, whose address a graph holds. Cleared before, they
            # come from the pool; cleared after, nobody else uses them or frees them with a graph of their own.
            # Source: clear_cublas_manager in PyTorch's _inductor/cudagraph_trees.py; pytorch/pytorch#193402.
            torch._C._cuda_clearCublasWorkspaces()
            try:
                with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                    step()
                self._graphs[name] = graph
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # CUDA raises many kinds
                self._refuse(_first_line(error), error)
            finally:
                torch.cuda.set_stream(current)  # as PyTorch does only where the capture could be ended
                torch._C._cuda_clearCublasWorkspaces()

    def _refuse(self, reason: str, error: Exception | None = None) -> None:
        """Do without graphs from now on, or raise."""
        refused = f"engine {self.engine!r} cannot run this network in a graph: {reason}"
        if self.engine == "cudagraph" and not self._fall_back:
            raise EngineError(f"{refused}; use engine='eager'") from error
        self.engine = "compile" if self.engine == "compile" else "eager"
        self._captures = False
        self._graphs.clear()
        log.warning("%s; learning goes on with engine %r, slower", refused, self.engine)


@contextmanager
def _compiling(first: bool) -> Iterator[None]:
    # A network that is compiled again for every call would take minutes for each.
    stance = nullcontext() if first else torch.compiler.set_stance("fail_on_recompile")
    try:
        with stance:
            yield
    except (ValueError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # torch.compile raises many kinds
        reason = _first_line(error)
        raise EngineError(f"engine 'compile' cannot run this network: {reason}; use engine='eager'") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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
