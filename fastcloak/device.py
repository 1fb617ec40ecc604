"""Where things run and in what precision: "auto" and names -> torch devices and dtypes."""

from __future__ import annotations

import torch

__all__ = ["has_fast_bfloat16", "resolve_device", "resolve_dtype"]


def resolve_device(device: str | torch.device) -> torch.device:
    """A torch device that this machine has; "auto" is CUDA where there is one, else the CPU.

    Raises:
        ValueError: no such device here.
    """
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        if place.type == "meta":
            raise ValueError("the meta device holds no numbers")
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device must be 'auto' or a device that this machine has, got {device!r}: {reason}") from None
    return place


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


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the processor multiplies bfloat16 numbers faster than float32 ones.

    CUDA from compute capability 8.0 on; x86 with AMX or AVX512-BF16. Elsewhere bfloat16 is emulated, many times slower.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    asked = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(ask() for ask in asked if ask is not None)
