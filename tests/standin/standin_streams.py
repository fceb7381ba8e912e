"""Queues of the stand-in GPU: work that waits, events that mark it, captures that keep it."""

import collections
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Work:
    """Something a device does; a graph may run it often."""

    label: str
    run: Callable[[], None]
    counts: bool = True  # False: bookkeeping, at which no fault strikes


@dataclass
class Capture:
    """Work that is recorded in place of being queued."""

    mode: str  # "Global", "ThreadLocal" or "Relaxed"
    thread: int
    works: list[Work] = field(default_factory=list)
    invalid: bool = False


@dataclass
class Stream:
    """Work in the order in which it was pushed."""

    queue: collections.deque[Work] = field(default_factory=collections.deque)
    done: int = 0
    capture: Capture | None = None

    @property
    def pushed(self) -> int:
        return self.done + len(self.queue)

    def push(self, work: Work) -> None:
        if self.capture is not None:
            self.capture.works.append(work)
        else:
            self.queue.append(work)


@dataclass
class Event:
    """A mark in a stream."""

    timed: bool
    stream: Stream | None = None
    until: int = 0
    time: float = 0.0  # when the mark was reached
    captured: bool = False

    def record(self, stream: Stream) -> None:
        """Mark what was pushed so far."""
        self.captured = stream.capture is not None
        stream.push(Work("event", self._reached, counts=False))
        if not self.captured:
            self.stream, self.until = stream, stream.pushed

    def _reached(self) -> None:
        self.time = time.perf_counter()


@dataclass
class Graph:
    """Captured work."""

    works: tuple[Work, ...]


@dataclass
class GraphExec(Graph):
    """An executable graph."""

    on: Stream | None = None  # where it was launched last
    until: int = 0

    @property
    def busy(self) -> bool:
        return self.on is not None and self.on.done < self.until
