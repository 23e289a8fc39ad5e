"""How much faster, and how sure of it: the ratio of two runners' times with its confidence interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000
DRAWS = 20_000_000  # in all of them: the more rounds, the fewer resamples show how sure the ratio is
CONFIDENCE = 0.95

Blocks = Sequence[Sequence[float]]  # calls of each round


@dataclass(frozen=True)
class Speed:
    """How many times faster than a baseline, and the bounds of that with 95 % confidence."""

    ratio: float
    low: float
    high: float

    @property
    def is_difference(self) -> bool:
        """Whether the interval leaves out 1."""
        return not self.low <= 1 <= self.high

    @property
    def width(self) -> float:
        """Of the interval, as a share of the ratio."""
        return (self.high - self.low) / self.ratio


def speed(baseline: Blocks, blocks: Blocks, *, side_by_side: bool) -> Speed:
    """The baseline's time over that of `blocks`, each a median over rounds of the medians of their calls.

    The interval is a bootstrap of rounds (Efron 1979, percentiles), because calls of one round are no independent
    samples: what the machine does meanwhile lasts longer than a call. Rounds that were `side_by_side` are resampled as
    pairs, and the ratio is the median of theirs, from which the machine's drift is gone; those of two runs apart are
    not, and what the machine was like in one run and not in the other is in the ratio, unseen.
    """
    a, b = (np.array([np.median(block) for block in each]) for each in (baseline, blocks))
    generator = np.random.default_rng(0)  # the same samples give the same interval
    if side_by_side:
        ratios = a / b
        found = np.median(_resampled(ratios, generator), axis=1)
        return _interval(float(np.median(ratios)), found)
    found = np.median(_resampled(a, generator), axis=1) / np.median(_resampled(b, generator), axis=1)
    return _interval(float(np.median(a) / np.median(b)), found)


def compare(baseline: Mapping[str, Any], result: Mapping[str, Any], *, side_by_side: bool) -> Speed:
    """`speed` of two runners' results, per frame."""
    a, b = ([[ms / each["batch"] for ms in block] for block in rounds(each)] for each in (baseline, result))
    return speed(a, b, side_by_side=side_by_side)


def rounds(result: Mapping[str, Any]) -> list[list[float]]:
    """The calls of each round of a result, in milliseconds."""
    found, start = [], 0
    for length in result["blocks"]:
        found.append(result["samples_ms"][start : start + length])
        start += length
    return found


def _resampled(rounds: npt.NDArray[np.float64], generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """(up to RESAMPLES, rounds), drawn with replacement."""
    resamples = min(RESAMPLES, max(100, DRAWS // len(rounds)))
    drawn: npt.NDArray[np.float64] = rounds[generator.integers(len(rounds), size=(resamples, len(rounds)))]
    return drawn


def _interval(ratio: float, found: npt.NDArray[np.float64]) -> Speed:
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(found, (tail, 100 - tail))
    return Speed(ratio, float(low), float(high))


def spread(blocks: Blocks) -> float:
    """How far the medians of rounds lie apart, as a share of the median over all calls."""
    medians = [np.median(block) for block in blocks]
    return float((max(medians) - min(medians)) / np.median(np.concatenate(blocks)))


def summary(ms: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99 and mean."""
    p50, p90, p99 = np.percentile(ms, (50, 90, 99)).tolist()
    return {"p50": p50, "p90": p90, "p99": p99, "mean": float(np.mean(ms))}


def outliers(ms: Sequence[float]) -> int:
    """How many calls took longer than the third quartile and one and a half times the quartiles' distance (Tukey)."""
    low, high = np.percentile(ms, (25, 75))
    return int((np.array(ms) > high + 1.5 * (high - low)).sum())
