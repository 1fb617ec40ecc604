"""How a step is launched: runs a zero-argument function on static buffers, and knows nothing of faces."""

from __future__ import annotations

import torch

ENGINES = ("auto", "eager")


def resolve_engine(engine: str, device: torch.device) -> str:
    """The engine that will run on `device`.

    Raises:
        ValueError: an unknown name.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)} in this version, got {engine!r}")
    return "eager"
