"""When requests arrive: a Poisson process whose rate is constant, follows a day, or has bursts."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import NamedTuple

_STEPS_PER_DAY = 200  # of constant rate
_BURST_FACTOR = 3.0  # rate in a burst / mean rate
_BURST_SHARE = 0.1  # of the time; factor x share is less than 1
_BURST_SECONDS = 2.0  # mean length


class Segment(NamedTuple):
    """A time of constant rate; seconds, requests per second."""

    start: float
    end: float
    rate: float


def steady(rate: float, seconds: float) -> list[Segment]:
    """One rate."""
    return [Segment(0.0, seconds, rate)]


def diurnal(mean_rate: float, seconds: float, swing: float = 0.8) -> list[Segment]:
    """A day in `seconds`: a sine around the mean that begins at its lowest.

    Args:
        mean_rate: requests per second.
        seconds: length of the day.
        swing: the peak is (1 + swing) x the mean, the night (1 - swing) x the mean.
    """
    step = seconds / _STEPS_PER_DAY
    return [
        Segment(
            number * step,
            (number + 1) * step,
            mean_rate * (1 - swing * math.cos(2 * math.pi * (number + 0.5) / _STEPS_PER_DAY)),
        )
        for number in range(_STEPS_PER_DAY)
    ]


def bursty(
    mean_rate: float,
    seconds: float,
    seed: int,
) -> list[Segment]:
    """Bursts of random length at random times.

    Args:
        mean_rate: requests per second, over all time.
        seconds: total length.
        seed: of the times.
    """
    rng = random.Random(seed)
    quiet_rate = mean_rate * (1 - _BURST_FACTOR * _BURST_SHARE) / (1 - _BURST_SHARE)
    quiet_seconds = _BURST_SECONDS * (1 - _BURST_SHARE) / _BURST_SHARE
    segments, now, burst = [], 0.0, False
    while now < seconds:
        length = rng.expovariate(1 / (_BURST_SECONDS if burst else quiet_seconds))
        rate = _BURST_FACTOR * mean_rate if burst else quiet_rate
        segments.append(Segment(now, min(seconds, now + length), rate))
        now, burst = now + length, not burst
    return segments


def arrivals(segments: list[Segment], rng: random.Random) -> Iterator[float]:
    """Yields the times of arrival, in order."""
    need = rng.expovariate(1.0)  # arrivals still to be expected until the next one
    for start, end, rate in segments:
        now = start
        while rate > 0 and now + need / rate <= end:
            now += need / rate
            yield now
            need = rng.expovariate(1.0)
        need -= (end - now) * rate
