"""One call at a time: who asks waits for a turn, first come, first served, whatever thread it is.

Nothing here waits that may come in the middle of a turn of the same thread: the garbage collector and handlers of
signals may end a stream or close a generator at any place.
"""

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from mmgen.runtime import fork
from mmgen.runtime.errors import Cancelled, MmgenError

POLL = 0.05  # seconds from one look at who cancels to the next, while waiting

log = logging.getLogger("mmgen")


class Cancel(Protocol):
    """What tells whether a request is to end: a ``threading.Event``, or anything else that has this."""

    def is_set(self) -> bool: ...


class Turns:
    """Turns at what only one may use at a time."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._changed = threading.Condition()  # its lock may be taken again by the thread that has it
        self._queue: deque[object] = deque()  # one for each that waits
        self._holder: int | None = None  # the thread whose turn it is
        self._later: deque[Callable[[], None]] = deque()
        self._closed, self._freed = False, threading.Event()

    @contextmanager
    def turn(self, cancel: Cancel | None = None) -> Iterator[None]:
        """Wait for a turn, and have it for as long as the block lasts.

        Raises:
            Cancelled: so it was while waiting.
            MmgenError: closed, also while waiting; forked; or asked for inside a turn of the same thread.
        """
        self.check(cancel)
        me, ticket = threading.get_ident(), object()
        if self._holder == me:
            raise MmgenError(
                "this call comes in the middle of another one of the same thread, for which it would wait for ever",
                remedy="make it when that has returned, not from a handler of a signal or a finalizer",
            )
        try:
            with self._changed:
                self._queue.append(ticket)
                try:
                    while self._holder is not None or self._queue[0] is not ticket:
                        self._changed.wait(None if cancel is None else POLL)
                        self.check(cancel)
                    self._holder = me
                finally:
                    self._queue.remove(ticket)
                    self._changed.notify_all()
            self.check(cancel)
            yield
        finally:
            if self._holder == me:
                self._end()
                self._tidy()

    def check(self, cancel: Cancel | None = None) -> None:
        """See that what is about to run, or to go on, may.

        Raises:
            Cancelled: it was.
            MmgenError: the turns were closed, or this is another process than the one that they were made in.
        """
        if self._is_elsewhere():
            raise MmgenError(fork.ELSEWHERE, remedy=fork.REMEDY)
        if self._closed:
            raise MmgenError("this generator is closed", remedy="load the bundle again")
        if cancel is not None and cancel.is_set():
            raise Cancelled("the request was cancelled")

    def later(self, chore: Callable[[], None]) -> None:
        """Have this done in a turn: now if it is nobody's, else at the end of the one that is under way.

        It is never done in a forked process.
        """
        if self._is_elsewhere():
            return
        self._later.append(chore)
        with self._changed:
            self._changed.notify_all()  # who waits may have been cancelled
        self._tidy()

    def close(self, free: Callable[[], None]) -> None:
        """Give no more turns, and free what they were for when the last one has ended; closing twice does no harm.

        Returns when that is done, or in the thread whose turn it is at once.  In a forked process nothing is done.
        """
        if self._is_elsewhere():
            return
        with self._changed:
            first, self._closed = not self._closed, True
        failures: list[Exception] = []

        def chore() -> None:
            try:
                free()
            except Exception as error:
                failures.append(error)
                raise
            finally:
                self._freed.set()

        if first:
            self.later(chore)
        if self._holder != threading.get_ident():
            self._freed.wait()
        if failures:
            raise failures[0]

    def _is_elsewhere(self) -> bool:
        return os.getpid() != self._process

    def _tidy(self) -> None:
        """Do what was put off, unless it is somebody's turn, who does it at the end."""
        while self._later:
            with self._changed:
                if self._holder is not None:
                    return
                self._holder = threading.get_ident()
            self._end()

    def _end(self) -> None:
        """Do what was put off, and end this thread's turn."""
        try:
            while self._later:
                _try(self._later.popleft())
        finally:
            with self._changed:
                self._holder = None
                self._changed.notify_all()


def _try(chore: Callable[[], None]) -> None:
    try:
        chore()
    except Exception as error:  # it is nobody's who could be told
        log.warning("while freeing: %s", str(error))
