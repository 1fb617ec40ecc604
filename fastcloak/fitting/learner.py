"""A surrogate made ready, and a loop that stays captured from pass to pass: what `Fitter` and `Tailor` share."""

from __future__ import annotations

import platform
from importlib.metadata import version
from types import ModuleType
from typing import Any

import numpy as np
import torch

from fastcloak.fitting.loop import Loop
from fastcloak.fitting.options import FitConfig
from fastcloak.fitting.padding import Padding, held
from fastcloak.fitting.run import own_modes
from fastcloak.fitting.state import Learnt, Tailoring
from fastcloak.models import load_model, prepare
from fastcloak.ops.backend import capturable, holds, resolve_backend
from fastcloak.ops.engine import resolve_engine
from fastcloak.system.device import resolve_device, resolve_dtype


def on_device(pictures: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Pictures of the CPU on a device; to a GPU from pinned memory, so that nobody waits for the copy."""
    return (pictures.pin_memory() if device.type == "cuda" else pictures).to(device, non_blocking=True)


class Learner:
    """Learns masks, pass by pass.

    Attributes:
        loaded: the surrogate as `load_model` gave it.
        surrogate: the prepared one.
        device: where it computes.
    """

    def __init__(
        self, model: Any, device: str | torch.device, backend: str, engine: str, dtype: str | torch.dtype
    ) -> None:
        """Load and prepare; the arguments are those of `fastcloak.fit`.

        Raises:
            ValueError, TypeError: a model, device, backend, engine or dtype that cannot be taken.
        """
        self.device = resolve_device(device)
        self._backend_wish, self._engine_wish = backend, engine
        self._ops = resolve_backend(backend, self.device)
        self._engine = resolve_engine(engine, self.device)
        self._ran = self.wished()
        self._loop: Loop | None = None
        with own_modes(self.device):
            self.loaded = load_model(model)
            self.surrogate = prepare(self.loaded, device=self.device, dtype=resolve_dtype(dtype), backend=self._ops[0])

    def run(
        self,
        config: FitConfig,
        persons: int,
        photos: int,
        tailoring: Tailoring | None = None,
        *,
        most: int,
        **arguments: Any,
    ) -> Learnt:
        """Run the loop of P persons with N photos each, out of the most that a pass takes.

        A loop that was compiled or captured serves smaller passes too. The arguments are those of `Loop.learn`.
        """
        backend, ops = self.operations(photos)
        as_wished = self._engine != "cudagraph" or capturable(ops, config.objective)
        engine = self._engine if as_wished else "eager"
        rows = persons if engine == "eager" else held(persons, most)
        loop, wanted = self._loop, (rows, photos, engine, config, tailoring)
        if loop is None or wanted != (loop.persons, loop.photos, loop.launcher.engine, loop.config, loop.tailoring):
            loop = self._loop = None  # its memory is to be free before another's is taken
            fall_back = self._engine_wish == "auto"
            loop = self._loop = Loop(self.surrogate, config, ops, engine, rows, photos, tailoring, fall_back)
        padding = Padding(persons, rows)
        try:
            return padding.cut(loop.learn(**padding.filled(arguments)))
        finally:
            self._ran = {"backend": backend, "engine": loop.launcher.engine}
            if as_wished:
                self._engine = loop.launcher.engine  # where it fell back, later loops need not try again

    def made_by(self) -> dict[str, Any]:
        """Networks, device, dtype, whether all were folded, versions, and the last pass's backend and engine."""
        return {
            "models": [member.name for member in self.surrogate.members],
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type,
            "dtype": str(self.surrogate.dtype).removeprefix("torch."),
            "folded": self.surrogate.folded,
            "versions": {
                "fastcloak": version("fastcloak"),
                "torch": torch.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
            **self._ran,
        }

    def operations(self, photos: int) -> tuple[str, ModuleType]:
        """The backend of people with N photos, by name and as a module: the wished one, or else one that holds them."""
        if self._backend_wish == "auto" and not holds(self._ops[1], photos, self.surrogate.embedding_size):
            return resolve_backend("reference", self.device)
        return self._ops

    def wished(self) -> dict[str, str]:
        """The backend and engine that a pass has, unless its photos are too many for them."""
        return {"backend": self._ops[0], "engine": self._engine}
