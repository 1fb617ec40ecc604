"""Checks of arguments that many functions take. NumPy's numbers and 0-d tensors count as plain ones."""

from __future__ import annotations

import operator
from typing import Any


def is_switch(value: Any) -> bool:
    """Whether a value is True or False, also NumPy's."""
    if isinstance(value, bool):
        return True
    import numpy as np  # late, so that the command line answers at once

    return isinstance(value, np.bool_)


def whole(name: str, value: Any, least: int, most: int | None = None, *, other: str = "") -> int:
    """A whole number in [least, most] as Python's own; `other` ends what the message expects.

    Raises:
        ValueError: anything else.
    """
    try:
        number = None if is_switch(value) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        at_most = "" if most is None else f", at most {most}"
        raise ValueError(f"{name} must be a whole number, {least} or more{at_most}{other}, got {value!r}")
    return number
