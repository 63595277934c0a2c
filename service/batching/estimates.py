"""Running estimates with exponential forgetting: run times, arrival rate, a mean, the busy share.

The scheduler stages batches by the predicted run time. Admission rejects requests that would miss
their deadline, and computes `Retry-After`. Autoscalers read the busy share.
"""

from __future__ import annotations

import math

_FORGETTING = 0.95  # weight of the past at each new value: about the last 20 values count
_RATE_SECONDS = 1.0  # time constant of the arrival rate
_BUSY_SECONDS = 30.0  # time constant of the busy share: two scrapes of Prometheus
_MIN_SPREAD = 1e-3  # relative variance of batch sizes below which no slope is fitted


class RunningMean:
    """An exponentially weighted mean."""

    def __init__(self) -> None:
        """Starts at 0, until the first value."""
        self.value = 0.0
        self._weight = 0.0

    def learn(self, value: float) -> None:
        """Adds a value."""
        self._weight = self._weight * _FORGETTING + 1
        self.value += (value - self.value) / self._weight


class ArrivalRate:
    """Arrivals per second, as a decaying count; times are monotonic seconds."""

    def __init__(self) -> None:
        """Starts with no arrivals."""
        self._count = 0.0
        self._at = 0.0

    def record(self, now: float) -> None:
        """Records one arrival."""
        self._count = self._count * self._decay(now) + 1
        self._at = now

    def per_second(self, now: float) -> float:
        """The recent rate."""
        return self._count * self._decay(now) / _RATE_SECONDS

    def _decay(self, now: float) -> float:
        return math.exp(min(0.0, self._at - now) / _RATE_SECONDS)


class BusyShare:
    """The share of the recent time in which an engine was busy, 0 to 1.

    A mean over all time whose weight falls by 1/e in `_BUSY_SECONDS`, as that of a Unix load
    average. It is exact at any time, however often it is read. Times are monotonic seconds.
    """

    def __init__(self, now: float) -> None:
        """Starts idle, at 0."""
        self._busy = False
        self._value = 0.0
        self._at = now

    def change(self, busy: bool, now: float) -> None:
        """Records that the engine is busy, or idle, from now on."""
        self._value = self.value(now)
        self._at = max(now, self._at)
        self._busy = busy

    def value(self, now: float) -> float:
        """The share until now."""
        target = 1.0 if self._busy else 0.0
        return target + (self._value - target) * math.exp(min(0.0, self._at - now) / _BUSY_SECONDS)


class ServiceTime:
    """A batch's run time, seconds = a + b x padded pixels, fitted by weighted least squares.

    Neither a nor b is negative. So the prediction for the mean size is the mean time, and that for
    other sizes lies between it (b = 0, a device with a constant cost) and a proportional time.
    """

    def __init__(self) -> None:
        """Starts without data."""
        self._weight = 0.0
        self._mean_x = 0.0
        self._mean_y = 0.0
        self._var_x = 0.0
        self._cov = 0.0
        # Share of the mean time that grows with the size. It keeps its value while all batches
        # have about one size, which says nothing about it; until then the cost is proportional.
        self._share = 1.0
        self._explanation = RunningMean()

    @property
    def known(self) -> bool:
        """Whether there was any batch."""
        return self._weight > 0

    def learn(self, padded_pixels: int, seconds: float) -> None:
        """Adds the run time of one batch."""
        x = padded_pixels / 1e6
        weight = self._weight * _FORGETTING + 1
        gain = 1 / weight
        dx, dy = x - self._mean_x, seconds - self._mean_y
        self._mean_x += gain * dx
        self._mean_y += gain * dy
        self._var_x = (1 - gain) * (self._var_x + gain * dx * dx)
        self._cov = (1 - gain) * (self._cov + gain * dx * dy)
        self._weight = weight
        if self._var_x > _MIN_SPREAD * self._mean_x**2 and self._mean_y > 0:
            slope = self._cov / self._var_x
            self._share = min(1.0, max(0.0, slope * self._mean_x / self._mean_y))

    def predict(self, padded_pixels: int) -> float:
        """Seconds for one batch; 0 before the first batch."""
        if not self.known or self._mean_x <= 0:
            return 0.0
        relative = padded_pixels / 1e6 / self._mean_x
        return self._mean_y * (1 + self._share * (relative - 1))

    def learn_explanation(self, seconds: float) -> None:
        """Adds the time that explaining a detection took after its batch."""
        self._explanation.learn(seconds)

    def predict_explanation(self, padded_pixels: int) -> float:
        """Seconds to explain a detection; before the first one, those of another run."""
        return self._explanation.value or self.predict(padded_pixels)
