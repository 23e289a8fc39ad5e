"""How much faster, and how certain that is: the ratio of two runners' times with its confidence interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000
DRAWS = 20_000_000  # in all resamples together: the more rounds there are, the fewer resamples are needed
CONFIDENCE = 0.95

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

    The interval is a bootstrap over rounds (Efron 1979, percentiles), because the calls of one round are not
    independent samples: a disturbance of the machine lasts longer than a call.

    Args:
        side_by_side: True if the rounds of both ran in turn. They are then resampled as pairs, and the ratio is the
            median of the pairs' ratios, which removes the machine's drift. False for two separate runs: a difference
            of the machine between them stays in the ratio and cannot be seen.
    """
    a, b = (np.array([np.median(calls) for calls in each]) for each in (baseline, rounds))
    generator = np.random.default_rng(0)  # the same samples give the same interval
    if side_by_side:
        ratios = a / b
        return _interval(float(np.median(ratios)), np.median(_resample(ratios, generator), axis=1))
    resampled = np.median(_resample(a, generator), axis=1) / np.median(_resample(b, generator), axis=1)
    return _interval(float(np.median(a) / np.median(b)), resampled)


def _resample(values: npt.NDArray[np.float64], generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """(resamples, rounds), drawn with replacement; at most `RESAMPLES`."""
    resamples = min(RESAMPLES, max(100, DRAWS // len(values)))
    drawn: npt.NDArray[np.float64] = values[generator.integers(len(values), size=(resamples, len(values)))]
    return drawn


def _interval(ratio: float, resampled: npt.NDArray[np.float64]) -> Speed:
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(resampled, (tail, 100 - tail))
    return Speed(ratio, float(low), float(high))


def spread(rounds: Rounds) -> float:
    """Distance between the smallest and the largest median of a round, as a share of the median over all calls."""
    medians = [np.median(calls) for calls in rounds]
    return float((max(medians) - min(medians)) / np.median(np.concatenate(rounds)))


def outliers(ms: Sequence[float]) -> int:
    """Number of calls above the third quartile by more than 1.5 interquartile ranges (Tukey)."""
    low, high = np.percentile(ms, (25, 75))
    return int((np.array(ms) > high + 1.5 * (high - low)).sum())
