"""How many replicas an autoscaler wants: the rule of Kubernetes' HPA on the mean busy ratio.

    wanted = ceil(sum of the ratios / target), unless the mean is within 10 % of the target

It grows at once, to at most twice as many replicas (or four more) per decision, and shrinks only to
the largest number wanted in the last `down_seconds`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

_TOLERANCE = 0.1
_MOST_ADDED = 4


@dataclass(frozen=True)
class AutoscaleOptions:
    """Settings of an autoscaler."""

    target: float = 0.7  # mean busy ratio
    least: int = 1  # replicas
    most: int = 100
    every_seconds: float = 15.0  # the decisions; each reads the ratios of the one before
    down_seconds: float = 300.0


class Autoscaler:
    """Decides from the busy ratios of the replicas."""

    def __init__(self, options: AutoscaleOptions) -> None:
        """Starts without decisions."""
        self._options = options
        self._wanted: deque[tuple[float, int]] = deque()  # time, and the number of then

    def decide(self, now: float, ratios: Sequence[float], replicas: int) -> int:
        """Returns how many replicas there should be.

        Args:
            now: seconds.
            ratios: busy ratio of each replica with a ready engine.
            replicas: that exist, also those that still start.
        """
        options, wanted = self._options, replicas
        if ratios:
            relative = sum(ratios) / len(ratios) / options.target
            if abs(relative - 1) > _TOLERANCE:
                wanted = math.ceil(sum(ratios) / options.target)
        wanted = min(wanted, max(2 * replicas, replicas + _MOST_ADDED))
        wanted = min(options.most, max(options.least, wanted))
        self._wanted.append((now, wanted))
        while self._wanted[0][0] < now - options.down_seconds:
            self._wanted.popleft()
        if wanted >= replicas:
            return wanted
        return min(replicas, max(number for _, number in self._wanted))
