"""A function on many items at once, in threads: for reading files, or for libraries that release Python's lock."""

from collections.abc import Callable, Iterable
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")


def at_once(function: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
    """Return the function's result for each item, in order; the first item's error is raised."""
    from concurrent.futures import ThreadPoolExecutor  # slow to import, and not always needed

    with ThreadPoolExecutor() as pool:
        return list(pool.map(function, items))
