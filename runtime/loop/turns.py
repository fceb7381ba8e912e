"""One call at a time: callers wait for a turn, first come, first served, in any thread.

Ctrl-C may end any of this between two instructions, and the garbage collector and signal handlers may cancel a stream
or close a generator there.  So a place in the queue and a turn are locks in ``with`` statements, which are released
however that ends; and what may interrupt a call never waits for a turn.  Python handles signals when a function begins
and after each call.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol, TypeVar

from mmgen.runtime.base.errors import Cancelled, MmgenError, said
from mmgen.runtime.base.fork import check_elsewhere

POLL = 0.05  # seconds between two checks for cancelling or closing, while waiting

log = logging.getLogger("mmgen")
_R = TypeVar("_R")


class Cancel(Protocol):
    """What says whether a request is to end: a ``threading.Event``, or any other object with this method."""

    def is_set(self) -> bool: ...


class Turns:
    """Turns to use what only one caller may use at a time."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._turn = threading.Lock()
        self._queueing = threading.Lock()
        self._last = threading.Lock()  # the place of the last caller in the queue; locked until its call has ended
        self._inside: dict[int, threading.Lock] = {}  # by thread; a lock that isn't locked doesn't count
        self._later: deque[Callable[[], None]] = deque()
        self._closed = self._freed = False

    def run(self, call: Callable[[], _R], cancel: Cancel | None = None) -> _R:
        """Wait for a turn and make a call in it.

        Raises:
            Cancelled: by ``cancel``, also while waiting.
            MmgenError: closed, also while waiting; or called in a forked process, or by a thread that is inside.
            Exception: of the call.
        """
        if self._is_inside():
            raise MmgenError(
                "this call comes in the middle of another one of the same thread, for which it would wait for ever",
                remedy="make it when that has returned, not from a handler of a signal or a finalizer",
            )
        return self._run(call, lambda: self.check(cancel))

    def check(self, cancel: Cancel | None = None) -> None:
        """Check that a call may start or go on.

        Raises:
            Cancelled: by ``cancel``.
            MmgenError: the turns were closed, or this is another process than the one that they were made in.
        """
        check_elsewhere(self._process)
        if self._closed:
            raise MmgenError("this generator is closed", remedy="load the bundle again")
        if cancel is not None and cancel.is_set():
            raise Cancelled("the request was cancelled")

    def later(self, chore: Callable[[], None]) -> None:
        """Run a chore when nobody has the turn: now, or at the end of the current turn.

        In a forked process it never runs.
        """
        if not self._is_elsewhere():
            self._later.append(chore)
            self._tidy()

    def close(self, free: Callable[[], None]) -> None:
        """Give no more turns, and free what they were for when the last one has ended; closing twice does no harm.

        Returns when that is done, but at once in a thread that is inside.  In a forked process it does nothing.
        """
        if self._is_elsewhere():
            return

        def once() -> None:
            if not self._freed:
                self._freed = True
                free()

        self._closed = True  # callers before this one in the queue leave it
        if self._is_inside():
            self.later(once)
        else:
            self._run(once, lambda: None)

    def _run(self, call: Callable[[], _R], check: Callable[[], None]) -> _R:
        check()
        thread, inside, place = threading.get_ident(), threading.Lock(), threading.Lock()
        try:
            with inside, place:
                self._inside[thread] = inside
                with self._queueing:
                    before, self._last = self._last, place
                while not before.acquire(timeout=POLL):
                    check()
                self._wait(check)
                with self._turn:
                    check()
                    try:
                        return call()
                    finally:
                        self._do_chores()
        finally:
            self._tidy()
            self._inside.pop(thread, None)

    def _wait(self, check: Callable[[], None]) -> None:
        """Wait until nobody has the turn: an earlier caller in the queue may have left it without a turn."""
        seconds = 0.001
        while self._turn.locked():
            time.sleep(seconds)
            check()
            seconds = min(2 * seconds, POLL)

    def _tidy(self) -> None:
        """Run the postponed chores, unless somebody has the turn, who runs them at its end."""
        thread, inside = threading.get_ident(), threading.Lock()
        while self._later and not self._is_inside():
            with inside:
                self._inside[thread] = inside
                taken: list[bool] = []
                try:
                    taken.extend(map(self._turn.acquire, (False,)))  # one call: taken and noted, or neither
                    if not taken[0]:
                        return
                    self._do_chores()
                finally:
                    if taken and taken[0]:
                        self._turn.release()

    def _do_chores(self) -> None:
        while self._later:
            try:
                self._later.popleft()()
            except Exception as error:  # there is no caller to raise it to
                log.warning("while freeing: %s", str(error))

    def _is_inside(self) -> bool:
        """Check whether this call interrupts another one of the same thread, which waits for a turn or has it."""
        inside = self._inside.get(threading.get_ident())
        return inside is not None and inside.locked()

    def _is_elsewhere(self) -> bool:
        return os.getpid() != self._process


def check_cancel(cancel: object) -> None:
    """Check that what is to cancel a request is None or a ``Cancel``.

    Raises:
        MmgenError: it isn't.
    """
    if cancel is not None and (isinstance(cancel, type) or not callable(getattr(cancel, "is_set", None))):
        raise MmgenError("cancel", got=said(cancel), wanted="a threading.Event, or another object with is_set()")
