"""The same for many, at once: what waits for files or for a library that leaves Python's lock alone."""

from collections.abc import Callable, Iterable
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")


def at_once(function: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
    """What a function makes of each item, in their order; the first item's error is raised."""
    from concurrent.futures import ThreadPoolExecutor  # not for those who only import mmgen

    with ThreadPoolExecutor() as pool:
        return list(pool.map(function, items))
