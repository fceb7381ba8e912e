"""The part that CPU backends share: a block is a numpy array, graphs are bound by address, and calls end when done."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.backends.memory import ALIGNMENT, Slot
from mmgen.runtime.backends.protocol import Block, Call
from mmgen.runtime.base.errors import MmgenError


class HostBlock:
    """Memory of the host, where uploading is free and reading is a copy."""

    def __init__(self, size: int) -> None:
        try:
            room = np.empty(size + ALIGNMENT, np.uint8)
        except (MemoryError, ValueError) as error:  # numpy's own limit is the address space
            what = f"a request of {size / 1e9:.3g} GB is larger than the memory"
            raise MmgenError(what, remedy="ask for fewer samples at once") from error
        start = -room.ctypes.data % ALIGNMENT
        self.host: NDArray[np.uint8] = room[start : start + size]

    def upload(self, end: int | None = None) -> None:
        """Do nothing: the memory is the host's."""

    def read(self, *slots: Slot) -> tuple[NDArray[Any], ...]:
        return tuple(slot.of(self.host).copy() for slot in slots)

    def close(self) -> None:
        """Do nothing: the memory is freed with the last call that is bound to it."""


class HostBackend:
    """A backend, except for its graphs."""

    def block(self, host_bytes: int, other_bytes: int) -> Block:
        return HostBlock(host_bytes + other_bytes)

    def record(self, calls: Sequence[Call]) -> Call | None:
        """Return None: a call costs microseconds here, so recording gains nothing."""
        return None

    def wait(self) -> None:
        """Return at once: calls end when they are done."""

    def close(self) -> None:
        """Do nothing: everything is freed with the graphs."""
