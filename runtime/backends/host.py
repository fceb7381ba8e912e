"""What the CPU backends share: a block is a numpy array, graphs are bound to it by address, and calls end when done."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.backends.memory import ALIGNMENT, Slot
from mmgen.runtime.backends.protocol import Block, Call
from mmgen.runtime.base.errors import MmgenError


class HostBlock:
    """Memory of the host, where writing and reading cost nothing but a copy."""

    def __init__(self, size: int) -> None:
        try:
            room = np.empty(size + ALIGNMENT, np.uint8)
        except (MemoryError, ValueError) as error:  # numpy's own limit is the address space
            what = f"a request of {size / 1e9:.3g} GB is larger than the memory"
            raise MmgenError(what, remedy="ask for fewer samples at once") from error
        start = -room.ctypes.data % ALIGNMENT
        self.host: NDArray[np.uint8] = room[start : start + size]

    def upload(self, end: int | None = None) -> None:
        """It is there already."""

    def read(self, *slots: Slot) -> tuple[NDArray[Any], ...]:
        return tuple(slot.of(self.host).copy() for slot in slots)

    def close(self) -> None:
        """It goes with the last call that is bound to it."""


class HostBackend:
    """A backend but for its graphs."""

    def block(self, host_bytes: int, other_bytes: int) -> Block:
        return HostBlock(host_bytes + other_bytes)

    def record(self, calls: Sequence[Call]) -> Call | None:
        """A call costs microseconds here; there is nothing to gain."""
        return None

    def wait(self) -> None:
        """Calls return when they are done."""

    def close(self) -> None:
        """Nothing outlives the graphs."""
