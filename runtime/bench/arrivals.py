"""Requests that are due at fixed times, whether or not the one before is done: an open loop.

A generator serves one request after another, so one thread is the whole queue: it begins each request when that is due,
or as soon as the one before is done.  Latency counts from when a request was due.  Counted from its beginning, what a
slow request costs those behind it would be left out ("coordinated omission").
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.base.numbers import real
from mmgen.runtime.bench.figures import Summary, summary

SLOWEST, FASTEST = 1e-6, 1e6  # requests a second


@dataclass(frozen=True)
class Schedule:
    """When requests are due; seconds."""

    rate: float  # requests a second
    deadline: float  # from when a request is due
    count: int  # requests that are due before the time is up
    seconds: float  # after which none is begun any more

    def due(self) -> Iterator[float]:
        """Yield when each request is due, by ``time.perf_counter``, as soon as it is; end when the time is up.

        There is at least one.  What the system's timer adds is a part of the latency, as it is for a robot.
        """
        began = time.perf_counter()
        for number in range(self.count):
            now, due = time.perf_counter() - began, number / self.rate
            if number and now >= self.seconds:
                return
            if now < due:
                time.sleep(due - now)
            yield began + due


@dataclass(frozen=True)
class Arrivals:
    """How requests that were due at fixed times were served; seconds."""

    rate: float  # requests a second
    deadline: float  # from when a request was due
    due: int  # requests, before the time was up
    done: int  # of them; the one that ran when the time was up is done
    late: int  # of those due: done after their deadline, or waiting beyond it when the last one was done
    queue: int  # of those due: waiting when the last one was done
    latency: Summary  # of those done, from when they were due


def schedule(rate: float, deadline: float | None, runs: int, seconds: float) -> Schedule:
    """Plan requests for as long as it takes until ``runs`` are due, but at most ``seconds``.

    Raises:
        MmgenError: a rate or a deadline that none could be.
    """
    wanted = f"from {SLOWEST:g} to {FASTEST:g} requests a second"
    rate = real("rate", rate, wanted, lambda value: SLOWEST <= value <= FASTEST)
    if deadline is None:
        deadline = 1 / rate
    deadline = real("deadline", deadline, "more than 0", lambda value: 0 < value < math.inf)
    count = max(math.ceil(min(runs, rate * seconds)), 1)
    return Schedule(rate, deadline, count, min(seconds, count / rate))


def no_deadline(deadline: float | None) -> None:
    """Refuse a deadline without a rate.

    Raises:
        MmgenError: there is one.
    """
    if deadline is not None:
        remedy = "give --rate too: without it each request is made when the one before is done, and none is due"
        raise MmgenError("a deadline without a rate", got=f"{deadline:g} s", remedy=remedy)


def arrivals(plan: Schedule, latencies: Sequence[float]) -> Arrivals:
    """Count how a schedule was kept.

    Args:
        plan: what was due.
        latencies: of the requests that are done, in order; at least one.
    """
    done = len(latencies)
    ended = (done - 1) / plan.rate + latencies[-1]
    waiting = [ended - number / plan.rate for number in range(done, plan.count)]
    late = sum(took > plan.deadline for took in (*latencies, *waiting))
    return Arrivals(plan.rate, plan.deadline, plan.count, done, late, len(waiting), summary(latencies))
