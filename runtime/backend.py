"""The seam between the loop and what executes graphs: buffers that stay where they are, and calls bound to them.

A backend module has one function ``open_backend(threads) -> Backend``.  All
buffers, outputs too, are made and owned by the loop; a bound call reads and
writes them in place and returns nothing.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.errors import MmgenError

NAMES = ("ort-cpu",)


class Buffer(Protocol):
    """Contiguous memory of one dtype; views share it.  numpy arrays are buffers of the CPU backends."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __getitem__(self, index: int, /) -> Any: ...
    def reshape(self, shape: tuple[int, ...], /) -> Any: ...


class Runner(Protocol):
    """One graph."""

    def bind(self, tensors: Mapping[str, Buffer]) -> Callable[[], None]:
        """A call that runs the graph on these buffers, inputs and outputs by name."""
        ...

    def close(self) -> None: ...


class Backend(Protocol):
    """Memory and graphs of one device."""

    name: str

    def empty(self, shape: tuple[int, ...], dtype: str) -> Buffer: ...
    def upload(self, array: NDArray[np.generic]) -> Buffer: ...
    def read(self, buffer: Buffer) -> NDArray[Any]:
        """A copy on the host, after everything enqueued before it."""
        ...

    def runner(self, graph: Path) -> Runner: ...
    def close(self) -> None: ...


def open_backend(name: str, threads: int | None) -> Backend:
    """Open a backend by name; ``auto`` takes the first that works here.

    Raises:
        MmgenError: unknown name, or it can't be had here; never another one in its place.
    """
    match name:
        case "auto" | "ort-cpu":
            from mmgen.runtime import ort

            return ort.open_backend(threads)
    raise MmgenError("backend", got=repr(name), wanted=" or ".join(("auto", *NAMES)))
