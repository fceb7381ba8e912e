"""A request row by row, in the hands of whoever asks for the next row."""

from collections.abc import Generator as Loop
from types import TracebackType

from mmgen.runtime.base.fork import keep_in_children
from mmgen.runtime.loop.results import Progress
from mmgen.runtime.loop.turns import Turns


class Flag:
    """What ``cancel`` sets; unlike ``threading.Event`` it has no lock that a handler of a signal could wait for."""

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        self._set = True

    def is_set(self) -> bool:
        return self._set


class Stream:
    """Iterates over a request's rows; made by ``Generator.stream``.

    A row runs when it is asked for, in any thread, and between two rows the generator serves other requests: the stream
    has its own memory.  A ``for`` loop that is left ends it, and so does the end of a ``with`` block.  ``next(stream,
    None)`` is for those who may not see ``StopIteration``, such as ``asyncio.to_thread``.
    """

    def __init__(self, turns: Turns, rows: Loop[Progress, None, None], cancel: Flag) -> None:
        self._turns, self._rows, self._cancel = turns, rows, cancel
        self._over = False
        keep_in_children(self)

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Progress:
        """Run the next row.

        Raises:
            StopIteration: after the last row, an error, or ``close``.
            Cancelled: after ``cancel``, also while a row is running or waited for.
            MmgenError: latents that are not finite, a device that fails, or the generator was closed or loaded in the
                process that this one was forked from.
        """
        if self._over:
            self._turns.later(self._rows.close)
            raise StopIteration
        progress = self._turns.run(self._run, self._cancel)
        if progress is None:
            raise StopIteration
        return progress

    def cancel(self) -> None:
        """End it at its next row, from any thread: who waits for that row, or asks for it, gets ``Cancelled``.

        Never waits: a row that is running ends by itself, and the memory is free after it.
        """
        self._cancel.set()
        self._turns.later(self._rows.close)

    def close(self) -> None:
        """The same, and whoever asks for a row from now on finds that the rows have come to an end."""
        self._over = True
        self.cancel()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _run(self) -> Progress | None:
        progress = next(self._rows, None)
        self._over = progress is None or progress.last
        self._turns.check(self._cancel)  # what the row made is then being taken away
        return progress
