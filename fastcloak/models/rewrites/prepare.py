"""`prepare`: a frozen copy of a surrogate, as fast as it gets without another result."""

import copy
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastcloak.models.rewrites.centre import centre
from fastcloak.models.rewrites.conv import FrozenConv2d, freeze_convolutions
from fastcloak.models.rewrites.fold import fold
from fastcloak.models.rewrites.prelu import FrozenPReLU, freeze_prelu, move_biases
from fastcloak.models.rewrites.winograd import WinogradConv2d, use_winograd
from fastcloak.models.surrogate import FACE_SIZE, Ensemble, Surrogate
from fastcloak.ops.backend import resolve_backend
from fastcloak.system.device import has_fast_bfloat16, resolve_device, without_tf32

__all__ = ["prepare"]

# Largest difference between two float32 embeddings of the same thing, over their largest number. Rounding gives about
# 3e-6 on an iResNet-50 or SFace; a network that was traced wrongly gives far more.
_CLOSE = 1e-4

# One trace at a time: two that overlap may put each other's patch of nn.Module back for good.
_TRACING = threading.Lock()


class _Tracer(fx.Tracer):
    """Tracing patches nn.Module for the whole process: calls of other threads pass through."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (FrozenConv2d, FrozenPReLU, WinogradConv2d)) or super().is_leaf_module(
            m, module_qualified_name
        )


def prepare(
    surrogate: Surrogate,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = torch.float32,
    channels_last: bool | None = None,
    backend: str = "auto",
) -> Surrogate:
    """Freeze a copy of a surrogate, fold its batch normalisations, and set its device, dtype and memory layout.

    Its PReLUs compute no gradient of their slope. On a CPU in float32, 3x3 convolutions go by Winograd's algorithm. On
    CUDA, and for backend "triton", convolutions keep nothing for the gradient, and PReLU adds their bias.

    Folding is exact, in float64 arithmetic. It is checked on random pictures all the same, and given up where it would
    change an embedding or where the network cannot be traced; `notes` of the result says so.

    Args:
        surrogate: what `load_model` returns; it is not changed.
        device: where to put it; None leaves it where it is.
        dtype: torch.float32 or torch.bfloat16, what the network computes in; faces and the embeddings that a call
            returns stay float32. None chooses: bfloat16 on CUDA from compute capability 8.0 on, on a CPU with AMX, and
            on one with AVX512-BF16 alone unless the network has grouped (depthwise) convolutions, which lose there;
            else float32.
        channels_last: the memory layout of pictures inside the network; None chooses.
        backend: what computes PReLU, as for `fastcloak.fit`.

    Returns:
        A new Surrogate with `.folded` and `.notes`. A network that is not a torch module is used unchanged.

    Raises:
        ValueError: another dtype, or a device or backend that this machine does not have.
    """
    if dtype not in (None, torch.float32, torch.bfloat16):
        raise ValueError(f"dtype must be torch.float32 or torch.bfloat16, got {dtype}")
    place = surrogate.device if device is None else resolve_device(device)
    if not isinstance(surrogate, Ensemble):
        with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
            return _prepare(surrogate, place, dtype, channels_last, *resolve_backend(backend, place))
    options: dict[str, Any] = {"device": place, "dtype": dtype, "channels_last": channels_last, "backend": backend}
    members = [prepare(member, **options) for member in surrogate.members]
    ensemble = Ensemble(members, name=surrogate.name)
    ensemble.folded = all(member.folded for member in members)
    ensemble.notes = tuple(f"{member.name}: {note}" for member in members for note in member.notes)
    return ensemble.eval().requires_grad_(False)


def _prepare(
    surrogate: Surrogate,
    place: torch.device,
    dtype: torch.dtype | None,
    channels_last: bool | None,
    backend: str,
    ops: ModuleType,
) -> Surrogate:
    # Folding computes in float64, which not every accelerator has.
    prepared = surrogate.copy().to(place if place.type == "cuda" else "cpu").eval().requires_grad_(False)
    if not isinstance(prepared.net, nn.Module):
        prepared.notes = ("not a torch module: used unchanged, in its own dtype and layout",)
        return prepared.to(place)
    generator = torch.Generator().manual_seed(0)
    faces = torch.rand(2, 3, FACE_SIZE, FACE_SIZE, generator=generator, dtype=torch.float32).to(prepared.device)
    # Under TF32, which PyTorch allows convolutions, the folded network differs by 1e-3: every network would stay as is.
    with torch.no_grad(), without_tf32():
        prepared.net.float()
        folded, note = _folded(prepared.net, prepared.net_input(prepared.normalise(faces)))
    notes = [note]
    if folded is not None:
        prepared.net, prepared.folded = folded, True
    # Python calls and separate sums cost a CPU more than what they save it: 9 to 13 % at one picture.
    for_gpu = place.type == "cuda" or backend == "triton"
    freeze_prelu(prepared.net, ops)
    if for_gpu and isinstance(prepared.net, fx.GraphModule):
        move_biases(prepared.net)
    prepared.to(place)
    if dtype is None:
        grouped = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in prepared.net.modules())
        dtype = torch.bfloat16 if has_fast_bfloat16(place, grouped) else torch.float32
    # In float32 it gains a CPU nothing, and may round differently.
    if for_gpu or dtype == torch.bfloat16:
        centre(prepared)
    prepared.net.to(dtype)
    if channels_last is None:
        # GPUs want it for bfloat16 convolutions, CPUs always. Processor time of NCHW over channels_last, one thread,
        # float32, forward and backward to the picture, 1 to 10 faces: dlib 1.11 to 1.14, iResNet-50 1.03 to 1.05,
        # MobileFaceNet 1.02 to 1.03.
        channels_last = place.type == "cpu" or prepared.dtype == torch.bfloat16
    if channels_last:
        prepared.memory_format = torch.channels_last
        # Some networks (a `view` of a picture) only work on contiguous memory.
        if not _works(prepared, faces):
            prepared.memory_format = torch.contiguous_format
            notes.append("contiguous: it does not work on channels_last memory")
    if place.type == "cpu" and prepared.dtype == torch.float32:
        notes += _winograd(prepared, faces)
    if for_gpu or prepared.dtype == torch.bfloat16:
        freeze_convolutions(prepared.net, slow_alone=not for_gpu)
    prepared.notes = tuple(notes)
    return prepared


def _folded(net: nn.Module, pictures: Tensor) -> tuple[nn.Module | None, str]:
    """Return the folded network and a note; None where the given one has to stay."""
    if any(module._forward_hooks or module._forward_pre_hooks for module in net.modules()):
        return None, "not folded: it has forward hooks"
    try:
        expected = net(pictures)
        traced = copy.deepcopy(net)
        if not isinstance(traced, fx.GraphModule):
            with _TRACING:
                tracer = _Tracer()
                graph = tracer.trace(traced)
            traced = fx.GraphModule(tracer.root, graph, type(net).__name__)
        left = fold(traced, pictures[:1])
        got = traced.float()(pictures)
    # A caller's network may do anything when it is traced.
    except Exception as error:
        return None, f"not folded: it cannot be traced ({type(error).__name__}: {str(error)[:120]})"
    difference = float((got - expected).abs().max() / expected.abs().max())
    if not difference <= _CLOSE:
        return None, f"not folded: that would change embeddings by {difference:.1e}"
    return traced.eval().requires_grad_(False), f"folded, {left} batch normalisations left"


def _winograd(prepared: Surrogate, faces: Tensor) -> list[str]:
    assert isinstance(prepared.net, nn.Module)
    with torch.no_grad():
        expected = prepared(faces)
        replaced = use_winograd(prepared.net, prepared.net_input(prepared.normalise(faces)))
        if not replaced:
            return []
        difference = float((prepared(faces) - expected).abs().max() / expected.abs().max())
    if difference <= _CLOSE:
        return [f"{len(replaced)} convolutions by Winograd's algorithm"]
    for parent, name, conv in replaced:
        setattr(parent, name, conv)
    return [f"no Winograd convolutions: they would change embeddings by {difference:.1e}"]


def _works(prepared: Surrogate, faces: Tensor) -> bool:
    try:
        with torch.no_grad():
            return bool(prepared(faces.to(prepared.device)).isfinite().all())
    except RuntimeError:
        return False
