"""The device that things run on and their precision: "auto" and names -> torch devices and dtypes."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch

__all__ = ["check_fork", "has_fast_bfloat16", "resolve_device", "resolve_dtype", "without_tf32"]

# Seconds after which an operation of a millisecond counts as hanging.
_PATIENCE = 5.0
# Of the flags in /proc/self/stat: PF_FORKNOEXEC, forked and no other program since.
_FORKED = 0x40
# One change of PyTorch's switches at a time: of two that overlap, one would put the other's state back for good.
_SWITCHING = threading.RLock()


def check_fork() -> None:
    """Refuse a process in which PyTorch would wait for ever, for threads that its parent had and a fork does not copy.

    Costs microseconds in processes that are not forked, and milliseconds once per thread in those that are.

    Raises:
        RuntimeError: PyTorch hangs in this thread.
    """
    # A process and thread that once answered, with a thread pool of its own, goes on answering.
    _check_fork(os.getpid(), threading.get_ident(), torch.get_num_threads())


@lru_cache
def _check_fork(process: int, thread: int, threads: int) -> None:
    # Elsewhere than on Linux there is no fork, or OpenMP begins again after it.
    if threads == 1 or not sys.platform.startswith("linux"):
        return
    with open("/proc/self/stat", "rb") as file:
        is_forked = int(file.read().rpartition(b")")[2].split()[6]) & _FORKED
    if is_forked and _hangs():
        raise RuntimeError(
            f"a process that was forked after PyTorch ran with {threads} threads must not use it, it would wait for "
            "them for ever; start it with multiprocessing.get_context('spawn'), or call torch.set_num_threads(1) in it"
        )


def _hangs() -> bool:
    """Whether an operation on all threads does not end: tried in a child, since only the thread pool knows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on forks; this child runs one operation
        child = os.fork()
    if child == 0:
        try:
            torch.zeros(1 << 18).add_(1)
        finally:
            os._exit(0)
    ended = False
    try:
        deadline = time.monotonic() + _PATIENCE
        while not ended and time.monotonic() < deadline:
            time.sleep(0.001)
            ended = os.waitpid(child, os.WNOHANG)[0] == child
    except ChildProcessError:  # a program that ignores SIGCHLD: the child is gone
        ended = True
    finally:
        if not ended:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return not ended


def resolve_device(device: str | torch.device) -> torch.device:
    """A torch device that this machine has; "auto" is CUDA where there is one, else the CPU.

    Raises:
        ValueError: this machine has no such device.
        RuntimeError: as `check_fork`.
    """
    check_fork()
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        if found.type == "meta":
            raise ValueError("the meta device holds no numbers")
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device must be 'auto' or a device that this machine has, got {device!r}: {reason}") from None
    return found


def resolve_dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    """The dtype of a surrogate, float32 or bfloat16; None for "auto", where `fastcloak.models.prepare` chooses.

    Raises:
        ValueError: another one.
    """
    named = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
    if isinstance(dtype, torch.dtype) and dtype in named.values():
        return dtype
    if isinstance(dtype, str) and dtype in named:
        return named[dtype]
    raise ValueError(f"dtype must be one of {', '.join(named)} or the torch dtype, got {dtype!r}")


def has_fast_bfloat16(device: torch.device, grouped: bool = False) -> bool:
    """Whether the processor is faster in bfloat16 than in float32.

    CUDA from compute capability 8.0 on; x86 with AMX, or with AVX512-BF16 for networks without grouped (depthwise)
    convolutions. Elsewhere bfloat16 is emulated, many times slower.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    names = ("_is_amx_tile_supported", *(() if grouped else ("_is_avx512_bf16_supported",)))
    asked = (getattr(torch.cpu, name, None) for name in names)
    return any(ask() for ask in asked if ask is not None)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Multiply float32 numbers in full where CUDA would round them to the ten bits of TF32, until the context ends.

    PyTorch has these switches once for the whole process: other threads' products are exact in the meantime too, and
    a switch that the caller sets in the meantime is put back.
    """
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    with _SWITCHING:
        states = [_tf32(cudnn, lambda: cudnn.conv), _tf32(matmul, lambda: matmul)]
        try:
            for switch, name, _ in states:
                setattr(switch, name, False if name == "allow_tf32" else "ieee")
            yield
        finally:
            for switch, name, state in states:
                setattr(switch, name, state)


# a switch, its attribute and the state it is in
def _tf32(switch: Any, since_2_9: Callable[[], Any]) -> tuple[Any, str, Any]:
    try:
        return switch, "allow_tf32", switch.allow_tf32
    except RuntimeError:  # where a program has set `fp32_precision`, the older name can be neither read nor set
        return since_2_9(), "fp32_precision", since_2_9().fp32_precision
