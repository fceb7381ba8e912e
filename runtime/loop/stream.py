"""A request played evaluation by evaluation, each when the caller asks for it."""

from collections.abc import Generator as Loop
from types import TracebackType

from mmgen.runtime.base.fork import keep_in_children
from mmgen.runtime.loop.results import Progress
from mmgen.runtime.loop.turns import Turns


class Flag:
    """What ``cancel`` sets; unlike ``threading.Event`` it has no lock that a signal handler could wait for."""

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        self._set = True

    def is_set(self) -> bool:
        return self._set


class Stream:
    """Iterates over a request's evaluations of the denoiser; made by ``Generator.stream``.

    An evaluation runs when it is asked for, in any thread, and between two of them the generator serves other requests:
    the stream has its own memory.  Leaving a ``for`` loop ends it, and so does the end of a ``with`` block.
    ``next(stream, None)`` is for callers that can't see ``StopIteration``, such as ``asyncio.to_thread``.
    """

    def __init__(self, turns: Turns, evaluations: Loop[Progress, None, None], cancel: Flag) -> None:
        self._turns, self._evaluations, self._cancel = turns, evaluations, cancel
        self._over = False
        keep_in_children(self)

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Progress:
        """Run the next evaluation.

        Raises:
            StopIteration: after the last evaluation, an error, or ``close``.
            Cancelled: after ``cancel``, also while an evaluation is running or waited for.
            MmgenError: latents that are not finite, a device that fails, or the generator was closed or loaded in the
                process that this one was forked from.
        """
        if self._over:
            self._turns.later(self._evaluations.close)
            raise StopIteration
        progress = self._turns.run(self._run, self._cancel)
        if progress is None:
            raise StopIteration
        return progress

    def cancel(self) -> None:
        """End it before its next evaluation, from any thread: who waits or asks for that one gets ``Cancelled``.

        Never waits: an evaluation that is running ends by itself, and the memory is free after it.
        """
        self._cancel.set()
        self._turns.later(self._evaluations.close)

    def close(self) -> None:
        """Cancel it, and have later calls of ``next`` find that the stream has ended."""
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
        progress = next(self._evaluations, None)
        self._over = progress is None or progress.last
        self._turns.check(self._cancel)  # if cancelled, the result of the evaluation is about to be freed
        return progress
