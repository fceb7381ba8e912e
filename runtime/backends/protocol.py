"""The interface between the loop and backends: memory that stays where it is, and calls bound to it.

The loop owns the memory of a request, one block; a bound call reads and writes it in place and returns nothing.  Calls
run in the order in which they were made; on a GPU they only enqueue, and the host waits in ``Block.read`` and
``Backend.wait``.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.backends.memory import Slot
from mmgen.runtime.storage.schema import Bundle, Role

Call = Callable[[], None]


class Block(Protocol):
    """Memory of a request.  The host writes its first bytes and uploads them; graphs write the rest."""

    @property
    def host(self) -> NDArray[np.uint8]:
        """The bytes to write in; waits until a running upload has read them."""
        ...

    def upload(self, end: int | None = None) -> None:
        """Make what was written visible to the calls that follow: the first ``end`` bytes; None: all of them."""
        ...

    def read(self, *slots: Slot) -> tuple[NDArray[Any], ...]:
        """Copy tensors to the host, after everything enqueued before."""
        ...

    def close(self) -> None:
        """Free the memory, after everything enqueued before; closing twice does no harm."""
        ...


class Runner(Protocol):
    """One graph of a bundle, loaded."""

    def bind(self, block: Block, calls: Sequence[Mapping[str, Slot]]) -> list[Call]:
        """Bind calls that run the graph on slots of a block, inputs and outputs by name.

        All calls have the same shapes and share what the graph needs for them, which lives as long as one of the calls.
        A call must not be made after its block or the runner was closed.

        Raises:
            MmgenError: shapes that the graph can't run; names the axis and its range.
        """
        ...

    def close(self) -> None: ...


class Backend(Protocol):
    """Memory and graphs of one device.  Used by one thread at a time."""

    name: str

    def block(self, host_bytes: int, other_bytes: int) -> Block: ...
    def runner(self, bundle: Bundle, role: Role) -> Runner: ...

    def record(self, calls: Sequence[Call]) -> Call | None:
        """Record calls as one, without the host in between; None where the backend can't.

        It is valid as long as the calls and their block are.  Some of the calls may be made while recording.
        """
        ...

    def wait(self) -> None:
        """Return when everything enqueued is done."""
        ...

    def close(self) -> None: ...
