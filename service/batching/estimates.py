"""How long a batch will take: seconds = a + b x padded pixels, learned from the batches before.

The batcher stages by it (as late as the engine's end allows); admission refuses by it what would
miss its deadline, and tells clients when to come back.
"""

from __future__ import annotations

import math

_FORGET = 0.95  # weight of the past at each new batch: about the last twenty count
_RATE_SECONDS = 1.0  # arrivals of about so long count
_MIN_SPREAD = 1e-3  # below this relative variance of sizes, a slope cannot be told


class Average:
    """A running mean that forgets."""

    def __init__(self) -> None:
        """Is 0 until something was learned."""
        self.value = 0.0
        self._weight = 0.0

    def learn(self, value: float) -> None:
        """Takes in one value."""
        self._weight = self._weight * _FORGET + 1
        self.value += (value - self.value) / self._weight


class ArrivalRate:
    """How many come in a second: a count that forgets; times are monotonic seconds."""

    def __init__(self) -> None:
        """Nobody came yet."""
        self._count = 0.0
        self._at = 0.0

    def note(self, now: float) -> None:
        """One came."""
        self._count = self._count * self._left(now) + 1
        self._at = now

    def per_second(self, now: float) -> float:
        """The rate of late."""
        return self._count * self._left(now) / _RATE_SECONDS

    def _left(self, now: float) -> float:
        return math.exp(min(0.0, self._at - now) / _RATE_SECONDS)


class ServiceTime:
    """A running least-squares line that forgets."""

    def __init__(self) -> None:
        """Knows nothing yet."""
        self._weight = 0.0
        self._mean_x = 0.0
        self._mean_y = 0.0
        self._var_x = 0.0
        self._cov = 0.0

    @property
    def known(self) -> bool:
        """Whether any batch was seen."""
        return self._weight > 0

    def learn(self, padded_pixels: int, seconds: float) -> None:
        """Takes in one batch that ran."""
        x = padded_pixels / 1e6
        weight = self._weight * _FORGET + 1
        gain = 1 / weight
        dx, dy = x - self._mean_x, seconds - self._mean_y
        self._mean_x += gain * dx
        self._mean_y += gain * dy
        self._var_x = (1 - gain) * (self._var_x + gain * dx * dx)
        self._cov = (1 - gain) * (self._cov + gain * dx * dy)
        self._weight = weight

    def predict(self, padded_pixels: int) -> float:
        """Seconds for one batch; 0 where nothing was learned yet."""
        if not self.known or self._mean_x <= 0:
            return 0.0
        x = padded_pixels / 1e6
        if self._var_x > _MIN_SPREAD * self._mean_x**2 and self._cov > 0:
            slope = self._cov / self._var_x
        else:  # all batches were alike: take the cost as proportional
            slope = self._mean_y / self._mean_x
        intercept = max(0.0, self._mean_y - slope * self._mean_x)
        return intercept + slope * x
