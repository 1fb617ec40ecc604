"""`load_model`: whatever a caller has of a network -> Surrogate."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastcloak.models.dlib import dlib_surrogate
from fastcloak.models.onnx.reader import OnnxNet, load_onnx_net
from fastcloak.models.surrogate import FACE_SIZE, MAX_SIDE, Ensemble, Surrogate
from fastcloak.system import packages
from fastcloak.system.checks import whole
from fastcloak.system.device import check_fork, resolve_device

__all__ = ["load_model", "load_models"]

_log = logging.getLogger("fastcloak")

# A file's own normalisation that leaves less than this between black and white expects 0..255.
_NARROW = 0.1

# Largest distance between a picture's embeddings alone and in a batch, over their length, that counts as rounding.
# SFace and dlib give 2e-6 in float32 and 0 in bfloat16 on a CPU; other devices may use other kernels for other batches.
_ROUNDING = 1e-2

_DEFAULTS = {"input_size": None, "scale": 1.0, "shift": 0.0, "bgr": False, "mean_embedding": None}
_ACCEPTED = "'sface', 'dlib', the path of an .onnx file, a torch module, a callable, a Surrogate, or a list of these"

Model = str | Path | nn.Module | Callable[[Tensor], Tensor]


def load_model(
    what: Model | Sequence[Any],
    device: str | torch.device | None = None,
    *,
    name: str | None = None,
    input_size: int | None = None,
    scale: float | Sequence[float] = 1.0,
    shift: float | Sequence[float] = 0.0,
    bgr: bool = False,
    mean_embedding: Sequence[float] | Tensor | None = None,
) -> Surrogate:
    """Load a face-embedding network.

    The network gets faces * scale + shift, faces being RGB in [0, 1]. What is published as (x - 127.5) / 128 for
    pictures in 0..255 is scale=255 / 128, shift=-127.5 / 128.

    An .onnx file that takes uint8 pictures gets faces * 255 unless `scale` is given, as floats without rounding: a
    gradient has to get through.

    Args:
        what: "sface" or "dlib" (real networks of the extra `faces`); the path of an .onnx file; a torch module, of
            which a frozen copy in eval mode is taken; any callable [n, 3, S, S] -> [n, D], used unchanged; a Surrogate,
            returned unchanged unless it has to move; or a list of these: an ensemble, whose cosine is the mean of the
            members' cosines.
        device: where to put it; "auto" is CUDA where there is one. None leaves modules and surrogates where they are;
            files load on the CPU.
        name: what to call it; by default its own name, the file's, the class's or the function's.
        input_size: S, the side in pixels that the network takes, 112 by default; files usually say it themselves.
        scale: one number, or three in RGB order; for a file that takes uint8 pictures 255 by default.
        shift: one number, or three in RGB order.
        bgr: whether the network takes blue, green, red.
        mean_embedding: [D], subtracted from every embedding.

    Returns:
        A Surrogate: faces [n, 3, 112, 112] float RGB in [0, 1], 112-aligned -> raw embeddings [n, D].

    Raises:
        ValueError: an unknown name, an unusable file, a network that fails on a picture or returns something else than
            [n, D], or mixes the pictures of a batch, unusable options, or options where the network has its own.
        TypeError: `what` is none of the above.
        OSError: the file cannot be read.
        MissingExtraError: the package that holds the network or reads the file is not installed.
    """
    check_fork()
    if input_size is not None:
        input_size = whole("input_size", input_size, 1, MAX_SIDE)
    if not isinstance(bgr, bool):
        raise ValueError(f"bgr must be True or False, got {bgr!r}; True is for networks that take blue, green, red")
    place = None if device is None else resolve_device(device)
    options = {"input_size": input_size, "scale": scale, "shift": shift, "bgr": bgr, "mean_embedding": mean_embedding}
    given = [key for key, default in _DEFAULTS.items() if not _is(options[key], default)]
    # Building modules and trying networks may draw random numbers: the caller's sequence goes on as if nothing had.
    with torch.random.fork_rng(devices=[place] if place is not None and place.type == "cuda" else []):
        if isinstance(what, (list, tuple)):
            _refuse("an ensemble", given)
            return _ensemble(what, place, name)
        if isinstance(what, Surrogate):
            _refuse("a Surrogate", given)
            return _placed(what, place, name)
        if isinstance(what, str) and what in ("sface", "dlib"):
            _refuse(repr(what), given)
            return _frozen(_sface() if what == "sface" else dlib_surrogate(packages.dlib_file()), place, name)
        if isinstance(what, type):
            raise TypeError(f"what must be a network, got the class {what.__name__}; pass an instance of it")
        if isinstance(what, Path) or (isinstance(what, str) and what.lower().endswith(".onnx")):
            file = load_onnx_net(what, input_size)
            options["input_size"] = file.input_size
            if file.uint8 and "scale" not in given:
                options["scale"] = 255.0
            elif not {"scale", "shift"}.intersection(given):
                _warn_of_range(what, file)
            return _measured(file.net, place, name or Path(what).stem, options)
        if isinstance(what, nn.Module):
            return _measured(*_frozen_copy(what, place), name or type(what).__name__, options)
        if callable(what):
            return _measured(what, place, name or str(getattr(what, "__name__", type(what).__name__)), options)
    if isinstance(what, str):
        raise ValueError(f"unknown model {what!r}; expected {_ACCEPTED}")
    raise TypeError(f"what must be {_ACCEPTED}, got {type(what).__name__}")


def load_models(models: Any, device: torch.device | str | None) -> list[Surrogate]:
    """Load one network or a list of them, each with a name of its own.

    Args:
        models: what `load_model` takes, or a list or tuple of that.
        device: as in `load_model`.

    Raises:
        ValueError: none, or two of one name.
    """
    surrogates = [load_model(what, device) for what in (models if isinstance(models, list | tuple) else [models])]
    names = [surrogate.name for surrogate in surrogates]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"models must be one or more, each with a name of its own, got {names}; rename or drop some")
    return surrogates


def _is(value: Any, default: Any) -> bool:
    return value is default or (isinstance(value, (int, float)) and value == default)


def _refuse(what: str, given: list[str]) -> None:
    if given:
        raise ValueError(f"{what} has its own {', '.join(given)}; leave that out")


def _sface() -> Surrogate:
    # The file's own graph begins with (x - 127.5) / 128.
    return Surrogate(load_onnx_net(packages.sface_file()).net, name="sface", embedding_size=128, scale=255.0)


def _ensemble(what: Sequence[Any], device: torch.device | None, name: str | None) -> Surrogate:
    if not what:
        raise ValueError("an ensemble must have at least one member, got an empty list")
    members: list[Surrogate] = []
    for one in what:
        member = load_model(one, device if device is not None or not members else members[0].device)
        members.append(member.copy() if member is one else member)
    return _placed(members[0], None, name) if len(members) == 1 else _frozen(Ensemble(members, name=name))


def _placed(surrogate: Surrogate, device: torch.device | None, name: str | None) -> Surrogate:
    here = surrogate.device
    stays = device is None or (here.type == device.type and device.index in (None, here.index))
    if stays and name in (None, surrogate.name):
        return surrogate
    moved = surrogate.copy()
    moved.name = name or surrogate.name
    return moved.to(device or here)


def _frozen(surrogate: Surrogate, device: torch.device | None = None, name: str | None = None) -> Surrogate:
    surrogate.name = name or surrogate.name
    # A callable that is no module is not registered, and so not touched here.
    return surrogate.to(device or surrogate.device).eval().requires_grad_(False)


def _frozen_copy(module: nn.Module, device: torch.device | None) -> tuple[nn.Module, torch.device]:
    kind = type(module).__name__
    tensors = [*module.parameters(), *module.buffers()]
    if any(is_lazy(tensor) for tensor in tensors):
        raise ValueError(f"{kind} must have its weights, got lazy layers without; run it once on a picture first")
    try:
        # The copy of a scripted module is computed, and would remember from what.
        with torch.no_grad():
            copied = copy.deepcopy(module).eval()
    # A module may hold anything: what cannot be copied raises anything.
    except Exception as error:
        raise ValueError(f"{kind} cannot be copied ({error}); pass a function that calls it instead") from error
    # Module.requires_grad_ does not exist on scripted modules.
    for parameter in copied.parameters():
        parameter.requires_grad_(False)
    return copied, device or resolve_device(tensors[0].device if tensors else "cpu")


def _measured(
    net: Callable[[Tensor], Tensor], device: torch.device | None, name: str, options: dict[str, Any]
) -> Surrogate:
    size = options["input_size"] or FACE_SIZE
    trial_options = {**options, "input_size": size, "mean_embedding": None}
    trial = _frozen(Surrogate(net, name=name, embedding_size=0, **trial_options), device)
    # Coarse noise, one reddish and one bluish, so that they differ much.
    noise = torch.rand(2, 3, 7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    noise *= torch.tensor([[1.0, 0.6, 0.2], [0.2, 0.6, 1.0]])[..., None, None]
    pictures = noise.repeat_interleave(FACE_SIZE // 7, 2).repeat_interleave(FACE_SIZE // 7, 3).to(trial.device)
    try:
        embedding = _tried(trial, pictures[:1])
    # The network is the caller's: it may raise anything.
    except Exception as error:
        raise ValueError(
            f"{name} fails on a picture [1, 3, {size}, {size}] {trial.dtype} on {trial.device} "
            f"({type(error).__name__}: {error}); if it takes another size say so with input_size=, and with "
            "device= if it is on another device"
        ) from error
    if not isinstance(embedding, Tensor):
        raise ValueError(
            f"{name} must return a tensor [n, D], got {type(embedding).__name__}; pass a function that picks the "
            "embedding, such as lambda x: net(x)[0]"
        )
    if embedding.ndim < 2 or len(embedding) != 1 or embedding.numel() != embedding.shape[1]:
        raise ValueError(f"{name} must return [1, D] for one picture, got {list(embedding.shape)}")
    if embedding.is_complex():
        raise ValueError(f"{name} must return real numbers, got {embedding.dtype}; pass a function that makes them so")
    _refuse_mixing(trial, pictures, embedding)
    options["input_size"] = size
    return _frozen(Surrogate(net, name=name, embedding_size=embedding.shape[1], **options), device)


def _tried(trial: Surrogate, pictures: Tensor) -> Any:  # what the network returns, which may be anything
    with torch.no_grad():
        return trial.net(trial.net_input(trial.normalise(pictures)))


def _refuse_mixing(trial: Surrogate, pictures: Tensor, first: Tensor) -> None:  # two pictures, embedding of the first
    try:
        both = _tried(trial, pictures)
        second = _tried(trial, pictures[1:])
    # Some networks take one picture at a time, and say so themselves where they get more.
    except Exception:
        return
    alone = torch.cat([first.flatten(1), second.flatten(1)]).float()
    if isinstance(both, Tensor) and both.ndim >= 2 and len(both) == 2 and both[0].numel() == first.numel():
        if _alike(both.flatten(1).float(), alone) or not alone.isfinite().all():
            return
        # A network that draws random numbers gives one picture two embeddings: nothing can be told from these.
        again = (_tried(trial, pictures[:1]).flatten(1).float() for _ in range(8))
        if not all(_alike(one, alone[:1]) for one in again):
            return
        got = "two that change with it"
    else:
        got = f"{list(both.shape) if isinstance(both, Tensor) else type(both).__name__} for 2"
    raise ValueError(
        f"{trial.name} must give every picture its own embedding, whatever else is in the batch, got {got}; return "
        "[n, D] for n pictures, and use no statistics of the batch (such as a batch normalisation in training mode)"
    )


def _alike(a: Tensor, b: Tensor) -> bool:
    length = torch.maximum(torch.linalg.vector_norm(a, dim=1), torch.linalg.vector_norm(b, dim=1))
    return bool((torch.linalg.vector_norm(a - b, dim=1) <= _ROUNDING * length).all())


def _warn_of_range(path: str | Path, file: OnnxNet) -> None:
    if float((file.white - file.black).abs().max()) < _NARROW:
        _log.warning(
            "%s: turns [0, 1] into [%.3g, %.3g] itself, so it seems to expect 0..255; say so with scale=255",
            path, float(file.black.min()), float(file.white.max()),
        )  # fmt: skip
    elif (file.black == 0).all() and (file.white == 1).all():
        _log.warning(
            "%s: gets RGB in [0, 1]; if it expects something else say so with scale=, shift= and bgr=: "
            "(x - 127.5) / 128 of 0..255 is scale=255 / 128, shift=-127.5 / 128",
            path,
        )
