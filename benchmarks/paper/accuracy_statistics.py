"""Means and 95 % intervals of the accuracy study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

_LEVEL = 0.95
_FEWEST = 2  # values of an interval


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval; the ends are None for a single value."""

    mean: float
    low: float | None
    high: float | None

    def format(self, digits: int = 3, factor: float = 1.0) -> str:
        """The mean with half of the interval's width, or with its ends."""
        mean = f"{self.mean * factor:.{digits}f}"
        if self.low is None or self.high is None:
            return mean
        return f"{mean} ± {(self.high - self.low) / 2 * factor:.{digits}f}"

    def ends(self, digits: int = 3, factor: float = 1.0) -> str:
        """`mean (low .. high)`."""
        mean = f"{self.mean * factor:.{digits}f}"
        if self.low is None or self.high is None:
            return mean
        return f"{mean} ({self.low * factor:.{digits}f} .. {self.high * factor:.{digits}f})"


def t_interval(values: Sequence[float]) -> Interval:
    """Student's interval of the mean of independent values, at least one."""
    mean = float(np.mean(values))
    if len(values) < _FEWEST:
        return Interval(mean, None, None)
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    half = float(stats.t.ppf((1 + _LEVEL) / 2, len(values) - 1)) * error
    return Interval(mean, mean - half, mean + half)


def percentile_interval(mean: float, values: Sequence[float]) -> Interval:
    """The middle 95 % of bootstrap values around the mean of the whole set."""
    tail = 100 * (1 - _LEVEL) / 2
    low, high = np.percentile(values, (tail, 100 - tail))
    return Interval(mean, float(low), float(high))
