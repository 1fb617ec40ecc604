"""Threads that work ahead of whoever waits for what they make."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

__all__ = ["in_order"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    executor: Executor | None, function: Callable[[Item], Result], items: Iterable[Item], ahead: Callable[[], int]
) -> Iterator[Result]:
    """What a function gives for each item, in the order of the items.

    Args:
        executor: its threads work ahead. None: each item is done once it is asked for, in the thread that asks.
        function: of one item; what it raises is raised where its result is asked for.
        items: are taken in the thread that asks.
        ahead: how many items may be done before they are asked for, as of now.
    """
    if executor is None:
        yield from map(function, items)
        return
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(executor.submit(function, item))
        while len(waiting) > ahead():
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
