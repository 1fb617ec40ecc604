"""A surrogate made ready, and a loop that stays captured from pass to pass: what `Fitter` and `Tailor` share."""

from __future__ import annotations

import logging
import platform
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from fastcloak.fitting.loop import Loop
from fastcloak.fitting.options import FitConfig
from fastcloak.fitting.run import own_modes
from fastcloak.fitting.state import Learnt, Tailoring
from fastcloak.models import load_model, prepare
from fastcloak.ops.backend import holds, resolve_backend
from fastcloak.ops.engine import resolve_engine
from fastcloak.system.device import resolve_device, resolve_dtype
from fastcloak.system.errors import EngineError

log = logging.getLogger("fastcloak")


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
        self._backend = self._ops[0]
        self._engine = resolve_engine(engine, self.device)
        self._loop: Loop | None = None
        with own_modes(self.device):
            self.loaded = load_model(model)
            self.surrogate = prepare(self.loaded, device=self.device, dtype=resolve_dtype(dtype), backend=self._backend)

    def run(
        self, config: FitConfig, persons: int, photos: int, tailoring: Tailoring | None = None, **arguments: Any
    ) -> Learnt:
        """Run the loop of P persons with N photos each; the arguments are those of `Loop.learn`."""
        loop, wanted = self._loop, (persons, photos, self._engine, config, tailoring)
        if loop is None or wanted != (loop.persons, loop.photos, loop.engine, loop.config, loop.tailoring):
            if loop is not None:
                loop.launchers.clear()  # they hold the loop, whose memory is to be free before another's is taken
            loop = self._loop = None
            self._backend, ops = self._ops
            if self._backend_wish == "auto" and not holds(ops, photos, self.surrogate.embedding_size):
                self._backend, ops = resolve_backend("reference", self.device)
            loop = self._loop = Loop(self.surrogate, config, ops, self._engine, persons, photos, tailoring)
        try:
            return loop.learn(**arguments)
        except EngineError as error:
            if self._engine_wish != "auto" or self._engine == "eager":
                raise
            log.warning("%s; learning goes on with engine 'eager', slower", error)
            self._engine = "eager"
            return self.run(config, persons, photos, tailoring, **arguments)

    def made_by(self) -> dict[str, Any]:
        """Networks, device, dtype, whether all were folded, versions, backend and engine, for JSON."""
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
            "backend": self._backend,
            "engine": self._engine,
        }
