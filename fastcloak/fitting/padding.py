"""A pass of few people on a loop that holds more: it is filled up with its last one, so that one graph serves both.

People of a pass do not influence each other: the masks are those of a pass without the copies, but for the rounding of
another batch size. In an album copies are kept apart from nobody, and nobody from them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from fastcloak.fitting.state import Album, Learnt, Tensors

Rows = Callable[[torch.Tensor, int], torch.Tensor]


def held(persons: int, most: int) -> int:
    """How many a loop holds for a pass of P: the most that a pass takes, or a half, a quarter ... of it."""
    while most // 2 >= persons:
        most //= 2
    return max(most, persons)


class Padding:
    """P persons among the rows of a loop, which are the first."""

    def __init__(self, persons: int, rows: int) -> None:
        self.persons, self.rows = persons, rows

    def filled(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments of `Loop.learn`, with all rows; what it hands on has those of the persons."""
        if self.rows == self.persons:
            return arguments
        arguments = dict(arguments)
        for name in ("faces", "features"):
            arguments[name] = self._fill(arguments[name], 0)
        if arguments.get("alike") is not None:
            arguments["alike"] = self._fill(arguments["alike"], 0)
        if saved := arguments.get("saved"):
            arguments["saved"] = _each(saved, self._fill)
        if keep := arguments.get("keep"):
            arguments["keep"] = lambda learnt, state: keep(self.cut(learnt), lambda: _each(state(), self._cut))
        if album := arguments.get("album"):
            more = self.rows - self.persons
            together = F.pad(album.together, (0, more, 0, more))
            arguments["album"] = Album(self._fill(album.bound, 0), self._fill(album.place, 0), together)
        return arguments

    def cut(self, learnt: Learnt) -> Learnt:
        """What was learnt of the persons."""
        delta, gap, moved = (self._cut(rows, 0) for rows in (learnt.delta, learnt.gap, learnt.moved))
        return Learnt(learnt.steps, delta, self._cut(learnt.losses, 1), gap, moved)

    def _fill(self, rows: torch.Tensor, dim: int) -> torch.Tensor:
        index = torch.arange(self.rows, device=rows.device).clamp_max(self.persons - 1)
        return rows.index_select(dim, index)

    def _cut(self, rows: torch.Tensor, dim: int) -> torch.Tensor:
        return rows.narrow(dim, 0, self.persons)


def _each(state: Tensors, change: Rows) -> Tensors:
    """A saved state with other rows; the state of a random number generator has none."""
    return {
        name: tensor if name.startswith("random") else change(tensor, 1 if name == "losses" else 0)
        for name, tensor in state.items()
    }
