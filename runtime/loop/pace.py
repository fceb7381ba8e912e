"""Time that the parts of a request take on this device, measured, and how many steps fit into a deadline."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mmgen.runtime.request.prepare import Prepared

RECENT = 256  # measurements that count: a device that grows hot grows slower
USUALLY = 0.9  # quantile of the measurements that is expected of each of many evaluations
NEARLY_ALWAYS = 0.99  # the same for the end of a request, when no time is left to make up for what was slow


def _recent() -> deque[float]:
    return deque(maxlen=RECENT)


@dataclass
class Pace:
    """Seconds, measured for requests of one number of samples and of branches."""

    guides: int  # G
    condition: deque[float] = field(default_factory=_recent)
    guided: deque[float] = field(default_factory=_recent)  # an evaluation
    alone: deque[float] = field(default_factory=_recent)  # an evaluation of the first branch alone
    decode: deque[float] = field(default_factory=_recent)

    @property
    def known(self) -> bool:
        """Whether an evaluation and the decoder have been measured."""
        return bool(self.decode and (self.guided or self.alone))

    def evaluation(self, alone: bool, share: float = USUALLY) -> float:
        """Return the seconds to expect of an evaluation; an upper bound where only the other kind was measured."""
        own, other, ratio = (self.alone, self.guided, 1) if alone else (self.guided, self.alone, self.guides)
        return _quantile(own, share) if own else ratio * _quantile(other, share)

    def add_evaluation(self, alone: bool, seconds: float) -> None:
        """Add the time of an evaluation."""
        (self.alone if alone else self.guided).append(seconds)

    def end(self, alone: bool, load: float = 1.0) -> float:
        """Return the seconds to expect from the last evaluation to the media; ``load`` times the usual if more."""
        last = max(self.evaluation(alone, NEARLY_ALWAYS), load * self.evaluation(alone))
        return last + max(_quantile(self.decode, NEARLY_ALWAYS), load * _quantile(self.decode, USUALLY))

    def fixed(self, evaluations: Sequence[bool]) -> float:
        """Return the seconds to expect of all but the evaluations before the last; each is whether it runs alone."""
        return _quantile(self.condition, USUALLY) + self.end(evaluations[-1])

    def need(self, evaluations: Sequence[bool]) -> float:
        """Return the seconds to expect of a whole request."""
        alone = sum(evaluations[:-1])
        guided = len(evaluations) - 1 - alone
        loop = (alone and alone * self.evaluation(True)) + (guided and guided * self.evaluation(False))
        return loop + self.fixed(evaluations)


def _quantile(seconds: deque[float], share: float) -> float:
    """Return a measurement that this share of them don't exceed; 0 if there are none."""
    return sorted(seconds)[math.ceil(share * len(seconds)) - 1] if seconds else 0.0


def fitting(pace: Pace, in_steps: Callable[[int], Prepared], most: int, least: int, seconds: float) -> Prepared:
    """Lay a request out in the most steps that fit, ``most`` or a ``round_number`` below; in the least if none fit.

    Args:
        pace: what was measured.
        in_steps: lays the request out in a number of steps.
        most: steps that were requested.
        least: the fewest that are possible.
        seconds: the time left.
    """
    found = in_steps(most)
    while found.steps > least and (need := pace.need(found.size.alone)) > seconds:
        count, fixed = len(found.size.alone), pace.fixed(found.size.alone)
        share = max(seconds - fixed, 0) / (need - fixed) if need > fixed else 0  # of the evaluations before the last
        fits = int(found.steps * (1 + (count - 1) * share) / count)
        found = in_steps(max(least, round_number(min(found.steps - 1, fits))))
    return found


def round_number(steps: int) -> int:
    """Round down to three binary digits: few different numbers of steps, so that memory laid out for one is reused."""
    drop = max(steps.bit_length() - 3, 0)
    return steps >> drop << drop
