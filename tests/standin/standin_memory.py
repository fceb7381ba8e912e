"""Memory of the stand-in GPU: real addresses, poisoned, and every range that is used is checked.

``Misuse`` is what a device would answer with wrong data or a crash; it is also kept in a list, so that a program that
catches everything doesn't hide it.
"""

import bisect
import collections
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

POISON = 0xFF  # NaN as float32 and float16, -1 as an integer
GRAIN = 512  # bytes: what cudaMalloc aligns to
GUARD = 512  # bytes before and after an allocation that nobody may write
QUARANTINE = 64 << 20  # bytes of freed memory whose addresses aren't given out again

Kind = Literal["device", "host"]


class Misuse(AssertionError):
    """The real library would be undefined here, or the program relies on what nobody promises."""


@dataclass
class Allocation:
    """A live range, or a freed one in quarantine."""

    start: int
    size: int
    kind: Kind
    room: NDArray[np.uint8]  # with the guards
    live: bool = True

    @property
    def bytes(self) -> NDArray[np.uint8]:
        first = self.start - self.room.ctypes.data
        return self.room[first : first + self.size]

    @property
    def whole(self) -> bool:
        """Whether nobody wrote outside."""
        first = self.start - self.room.ctypes.data
        return bool((self.room[:first] == POISON).all() and (self.room[first + self.size :] == POISON).all())


class Memory:
    """Allocations by address."""

    def __init__(self) -> None:
        self.misuses: list[str] = []
        self._starts: list[int] = []
        self._by_start: dict[int, Allocation] = {}
        self._quarantine: collections.deque[Allocation] = collections.deque()
        self._quarantined = 0  # bytes

    def misuse(self, message: str) -> Misuse:
        """To raise: ``raise memory.misuse(...)``."""
        self.misuses.append(message)
        return Misuse(message)

    def live(self, kind: Kind) -> list[Allocation]:
        """What was allocated and not freed."""
        return [a for a in self._by_start.values() if a.live and a.kind == kind]

    def allocate(self, kind: Kind, size: int) -> int:
        """Poisoned memory of at least one byte."""
        room = np.full(size + GRAIN + 2 * GUARD, POISON, np.uint8)
        start = room.ctypes.data + GUARD
        start += -start % GRAIN
        self._by_start[start] = Allocation(start, size, kind, room)
        bisect.insort(self._starts, start)
        return start

    def free(self, kind: Kind, address: int) -> bool:
        """Whether it was the start of a live allocation of this kind; what stood there is gone."""
        allocation = self._by_start.get(address)
        if allocation is None or allocation.kind != kind:
            return False
        if not allocation.live:
            raise self.misuse(f"{kind} memory {address:#x} is freed twice")
        if not allocation.whole:
            raise self.misuse(f"something wrote outside the {allocation.size} bytes of {kind} memory {address:#x}")
        allocation.live = False
        allocation.bytes[:] = POISON
        self._quarantine.append(allocation)
        self._quarantined += allocation.room.size
        while self._quarantined > QUARANTINE:
            oldest = self._quarantine.popleft()
            self._quarantined -= oldest.room.size
            del self._by_start[oldest.start]
            self._starts.remove(oldest.start)
        return True

    def find(self, address: int) -> Allocation | None:
        """The allocation, live or freed, that an address lies in; its end counts, for empty ranges."""
        i = bisect.bisect_right(self._starts, address) - 1
        if i < 0:
            return None
        allocation = self._by_start[self._starts[i]]
        return allocation if address <= allocation.start + allocation.size else None

    def view(self, address: int, size: int, what: str, kinds: Iterable[Kind] = ("device",)) -> NDArray[np.uint8]:
        """The bytes of a range that lies inside one live allocation.

        Raises:
            Misuse: it doesn't.
        """
        allocation = self.find(address)
        if allocation is None:
            raise self.misuse(f"{what}: {address:#x} isn't memory of this device")
        if not allocation.live:
            raise self.misuse(f"{what}: {address:#x} lies in {allocation.kind} memory that was freed")
        if allocation.kind not in kinds:
            raise self.misuse(f"{what}: {address:#x} is {allocation.kind} memory, wanted {' or '.join(kinds)}")
        first = address - allocation.start
        if first + size > allocation.size:
            raise self.misuse(
                f"{what}: bytes {first} to {first + size} of an allocation of {allocation.size}, {address:#x}"
            )
        return allocation.bytes[first : first + size]
