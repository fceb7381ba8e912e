"""Figures of samples: what is usual, how far it spreads, and how small a difference could as well be chance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95  # of every interval
DRAWS = 2000  # of the bootstrap: its interval's ends then move by a few percent of its width
FEWEST = 6  # samples of a half: of fewer, not even the least and the greatest are around the median with 95 %
NOISY = 0.05  # a floor above this hides what most changes to a program bring


@dataclass(frozen=True)
class Summary:
    """Of samples, all in their unit."""

    count: int
    p50: float
    p90: float
    p99: float  # of fewer than 100 samples, between the two greatest
    min: float
    max: float
    mean: float
    deviation: float  # of the population that the samples are of: n - 1 below the root; 0 of one sample
    p50_interval: tuple[float, float] | None  # around the median of that population; None: too few samples


@dataclass(frozen=True)
class Ratio:
    """Median of one series over that of another, and the interval around it."""

    ratio: float
    low: float
    high: float

    @property
    def farthest(self) -> float:
        """How far from 1 the interval reaches, as a share: 0.03 for 0.98 to 1.03."""
        return max(self.high, 1 / self.low) - 1


@dataclass(frozen=True)
class Noise:
    """A series against itself: whatever differs is the machine's doing."""

    halves: Ratio  # odd samples over even ones: what chance does within one benchmark
    drift: Ratio  # the second half of the time over the first: what it does between two benchmarks
    floor: float  # a relative difference below this means nothing

    @property
    def noisy(self) -> bool:
        """Whether the machine was too restless for most comparisons."""
        return self.floor > NOISY


def summary(samples: Sequence[float]) -> Summary:
    """Figures of at least one sample; percentiles are interpolated between neighbours."""
    values = np.asarray(samples, np.float64)
    p50, p90, p99 = (float(p) for p in np.percentile(values, (50, 90, 99)))
    deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return Summary(
        len(values), p50, p90, p99, float(values.min()), float(values.max()), float(values.mean()), deviation,
        median_interval(values),
    )  # fmt: skip


def median_interval(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """Find the order statistics between which the median lies with at least 95 %, whatever the distribution.

    Of n samples the number below the median is binomial (n, 1/2): with x sorted, from 0, the median is outside
    [x[k], x[n-1-k]] with probability 2 P(number <= k) (David and Nagaraja, Order Statistics, section 7.1).
    """
    n, below, k = len(values), 0.0, -1
    while k + 1 < n / 2 and 2 * (below := below + math.comb(n, k + 1) / 2**n) <= 1 - CONFIDENCE:
        k += 1
    if k < 0:
        return None
    ordered = np.sort(values)
    return float(ordered[k]), float(ordered[n - 1 - k])


def ratio(first: Sequence[float], second: Sequence[float]) -> Ratio:
    """Median of the second over that of the first, with its percentile bootstrap interval (Efron 1979).

    Both are drawn anew with replacement; the draws are the same on every call.
    """
    draw = np.random.default_rng(0)
    above, below = (_medians(np.asarray(x, np.float64), draw) for x in (second, first))
    low, high = np.percentile(above / below, (50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)))
    return Ratio(float(np.median(second) / np.median(first)), float(low), float(high))


def noise(samples: Sequence[float]) -> Noise | None:
    """A/A: samples, in the order in which they were taken, against themselves; None: there are too few."""
    if len(samples) < 2 * FEWEST:
        return None
    middle = len(samples) // 2
    halves, drift = ratio(samples[::2], samples[1::2]), ratio(samples[:middle], samples[middle:])
    return Noise(halves, drift, max(halves.farthest, drift.farthest))


def _medians(values: NDArray[np.float64], draw: np.random.Generator) -> NDArray[np.float64]:
    """Of each of the draws."""
    medians: NDArray[np.float64] = np.median(values[draw.integers(len(values), size=(DRAWS, len(values)))], axis=1)
    return medians
