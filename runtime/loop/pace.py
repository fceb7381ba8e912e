"""How long the parts of a request take on this device, measured, and how many steps fit into a deadline."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mmgen.runtime.request.prepare import Prepared

RECENT = 256  # measurements that count: a device that grows hot grows slower
USUALLY = 0.9  # the share of them that were faster than what each of many rows is reckoned with
NEARLY_ALWAYS = 0.99  # the same for the end of a request, when no time is left to make up for what was slow


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

    def row(self, alone: bool, share: float = USUALLY) -> float:
        """What to reckon with for a row; where only the other kind was measured, at most as long as that tells."""
        own, other, ratio = (self.alone, self.guided, 1) if alone else (self.guided, self.alone, self.guides)
        return _quantile(own, share) if own else ratio * _quantile(other, share)

    def add_row(self, alone: bool, seconds: float) -> None:
        """Take a row into account."""
        (self.alone if alone else self.guided).append(seconds)

    def end(self, alone: bool, load: float = 1.0) -> float:
        """What to reckon with for the last row and what follows, up to the media; ``load`` times what usually is."""
        row = max(self.row(alone, NEARLY_ALWAYS), load * self.row(alone))
        return row + max(_quantile(self.decode, NEARLY_ALWAYS), load * _quantile(self.decode, USUALLY))

    def fixed(self, rows: Sequence[bool]) -> float:
        """What to reckon with for all but the rows before the last, given for each row whether it runs alone."""
        return _quantile(self.condition, USUALLY) + self.end(rows[-1])

    def need(self, rows: Sequence[bool]) -> float:
        """What to reckon with for a whole request."""
        alone = sum(rows[:-1])
        guided = len(rows) - 1 - alone
        loop = (alone and alone * self.row(True)) + (guided and guided * self.row(False))
        return loop + self.fixed(rows)


def _quantile(seconds: deque[float], share: float) -> float:
    """A measurement that this share of them don't exceed; 0 if there are none."""
    return sorted(seconds)[math.ceil(share * len(seconds)) - 1] if seconds else 0.0


def fitting(pace: Pace, in_steps: Callable[[int], Prepared], most: int, least: int, seconds: float) -> Prepared:
    """Lay a request out in the most steps that fit, ``most`` or a ``round_number`` below; in the least if none do.

    Args:
        pace: what was measured.
        in_steps: lays the request out in a number of steps.
        most: steps that were asked for.
        least: fewer are impossible.
        seconds: what is left.
    """
    found = in_steps(most)
    while found.steps > least and (need := pace.need(found.size.alone)) > seconds:
        rows, fixed = len(found.size.alone), pace.fixed(found.size.alone)
        share = max(seconds - fixed, 0) / (need - fixed) if need > fixed else 0  # of the rows before the last
        fits = int(found.steps * (1 + (rows - 1) * share) / rows)
        found = in_steps(max(least, round_number(min(found.steps - 1, fits))))
    return found


def round_number(steps: int) -> int:
    """At most ``steps``, of three binary digits: few different ones, so that memory laid out for one is met again."""
    drop = max(steps.bit_length() - 3, 0)
    return steps >> drop << drop
