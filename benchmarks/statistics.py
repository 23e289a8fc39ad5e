"""How much faster, and how certain that is: the ratio of two runners' times with its confidence interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000
DRAWS = 20_000_000  # in all resamples together: the more rounds there are, the fewer resamples are needed
ONE_IN = 40  # an interval misses on either side once in so many runs: 95 % confidence

Rounds = Sequence[Sequence[float]]  # the times of the calls of each round


@dataclass(frozen=True)
class Speed:
    """How many times faster a runner is than a baseline, with the bounds of the 95 % confidence interval."""

    ratio: float
    low: float
    high: float

    @property
    def is_difference(self) -> bool:
        """Whether the interval excludes 1."""
        return not self.low <= 1 <= self.high

    @property
    def width(self) -> float:
        """Width of the interval, as a share of the ratio."""
        return (self.high - self.low) / self.ratio


@dataclass(frozen=True)
class Summary:
    """Percentiles and mean of times, in milliseconds."""

    p50: float
    p90: float
    p99: float
    mean: float

    @classmethod
    def of(cls, ms: Sequence[float]) -> Summary:
        p50, p90, p99 = np.percentile(ms, (50, 90, 99)).tolist()
        return cls(p50, p90, p99, float(np.mean(ms)))


def speed(baseline: Rounds, rounds: Rounds, *, side_by_side: bool) -> Speed:
    """The baseline's time over that of `rounds`; a runner's time is the median of its rounds' medians.

    Rounds are the sample, because the calls of one round are not independent: a disturbance of the machine lasts longer
    than a call.

    Args:
        side_by_side: True if the rounds of both ran in turn. The ratio is then the median of the pairs' ratios, which
            removes the machine's drift. Its interval lies between two of them (see `_rank`), and contains the true
            median with at least 95 % from 6 rounds on. Of fewer rounds it reaches from the smallest to the largest
            ratio, which is 93.75 % with 5, 87.5 % with 4 and 75 % with 3. False for two separate runs: a difference of
            the machine between them stays in the ratio and cannot be seen. The interval is then a bootstrap (Efron
            1979, percentiles).
    """
    a, b = (np.array([np.median(calls) for calls in each]) for each in (baseline, rounds))
    if side_by_side:
        ratios = np.sort(a / b)
        rank = _rank(len(ratios))
        return Speed(float(np.median(ratios)), float(ratios[rank - 1]), float(ratios[-rank]))
    generator = np.random.default_rng(0)  # the same samples give the same interval
    resampled = np.median(_resample(a, generator), axis=1) / np.median(_resample(b, generator), axis=1)
    low, high = np.percentile(resampled, (100 / ONE_IN, 100 - 100 / ONE_IN)).tolist()
    return Speed(float(np.median(a) / np.median(b)), low, high)


@cache
def _rank(count: int) -> int:
    """The largest r for which the median lies below the r-th smallest of so many values once in `ONE_IN`; at least 1.

    It does if fewer than r of the values are below the median, each of which is by one half: a binomial distribution.
    """
    rank, missed = 0, 0.0
    while True:
        missed += math.comb(count, rank) / 2**count  # that `rank` values or fewer are below the median
        if ONE_IN * missed > 1:
            return max(rank, 1)
        rank += 1


def _resample(values: npt.NDArray[np.float64], generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """(resamples, rounds), drawn with replacement; at most `RESAMPLES`."""
    resamples = min(RESAMPLES, max(100, DRAWS // len(values)))
    drawn: npt.NDArray[np.float64] = values[generator.integers(len(values), size=(resamples, len(values)))]
    return drawn


def spread(rounds: Rounds) -> float:
    """Distance between the smallest and the largest median of a round, as a share of the median over all calls."""
    medians = [np.median(calls) for calls in rounds]
    return float((max(medians) - min(medians)) / np.median(np.concatenate(rounds)))


def outliers(ms: Sequence[float]) -> int:
    """Number of calls above the third quartile by more than 1.5 interquartile ranges (Tukey)."""
    low, high = np.percentile(ms, (25, 75))
    return int((np.array(ms) > high + 1.5 * (high - low)).sum())
