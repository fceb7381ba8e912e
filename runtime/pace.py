"""How long the parts of a request take on this device, measured, and how many steps fit into a deadline."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mmgen.runtime.options import Course

RECENT = 64  # measurements that count: a device that grows hot grows slower
CAUTION = 0.9  # the share of them that were faster than what is reckoned with


def _recent() -> deque[float]:
    return deque(maxlen=RECENT)


@dataclass
class Pace:
    """Seconds, of requests for so many samples in so many branches."""

    guides: int  # G
    condition: deque[float] = field(default_factory=_recent)
    guided: deque[float] = field(default_factory=_recent)  # a row
    alone: deque[float] = field(default_factory=_recent)  # a row that runs what is asked alone
    decode: deque[float] = field(default_factory=_recent)

    @property
    def known(self) -> bool:
        """Whether a row and the decoder have been measured."""
        return bool(self.decode and (self.guided or self.alone))

    def row(self, alone: bool) -> float:
        """What to reckon with for a row; where only the other kind was measured, at most as long as that tells."""
        own, other, ratio = (self.alone, self.guided, 1) if alone else (self.guided, self.alone, self.guides)
        return _cautious(own) if own else ratio * _cautious(other)

    def add_row(self, alone: bool, seconds: float) -> None:
        """Take a row into account."""
        (self.alone if alone else self.guided).append(seconds)

    @property
    def finish(self) -> float:
        """What to reckon with from the last row to the media."""
        return _cautious(self.decode)

    def need(self, rows: Sequence[bool]) -> float:
        """What to reckon with for a whole request, given for each row whether it runs alone."""
        alone = sum(rows)
        guided = len(rows) - alone
        loop = (alone and alone * self.row(True)) + (guided and guided * self.row(False))
        return _cautious(self.condition) + loop + self.finish


def _cautious(seconds: deque[float]) -> float:
    return float(np.quantile(seconds, CAUTION)) if seconds else 0.0


def fitting(pace: Pace, course: Callable[[int], Course], most: int, least: int, seconds: float) -> Course:
    """The rows of the most steps that fit, ``most`` or a ``round_number`` below; of the least if none do.

    Args:
        pace: what was measured.
        course: the rows of a number of steps.
        most: steps that were asked for.
        least: fewer are impossible.
        seconds: what is left.
    """
    found, fixed = course(most), _cautious(pace.condition) + pace.finish
    while found.steps > least and (need := pace.need(found.alone)) > seconds:
        share = max(seconds - fixed, 0) / (need - fixed) if need > fixed else 0
        found = course(max(least, round_number(min(found.steps - 1, int(found.steps * share)))))
    return found


def round_number(steps: int) -> int:
    """At most ``steps``, of three binary digits: few different ones, so that memory laid out for one is met again."""
    drop = max(steps.bit_length() - 3, 0)
    return steps >> drop << drop
