"""How soon a dead engine is replaced, and when replacing it is no help any more: pure rules."""

from __future__ import annotations

from collections import deque

_FIRST_DELAY_SECONDS = 0.1
_LONGEST_DELAY_SECONDS = 10.0


class RestartPolicy:
    """Counts the deaths of one engine."""

    def __init__(self, storm_restarts: int, storm_window_seconds: float) -> None:
        """Starts without a death.

        Args:
            storm_restarts: so many restarts within the window are a storm.
            storm_window_seconds: the window.
        """
        self._storm_restarts = storm_restarts
        self._window = storm_window_seconds
        self._restarts: deque[float] = deque(maxlen=storm_restarts)
        self._fruitless = 0

    def record_success(self) -> None:
        """Notes that the engine finished a batch: the next death is answered at once again."""
        self._fruitless = 0

    def record_exit(self, now: float) -> float:
        """Notes a death.

        Args:
            now: monotonic seconds.

        Returns:
            Seconds to wait before the replacement: none at first, doubling while engines die
            without having finished a batch.
        """
        self._restarts.append(now)
        self._fruitless += 1
        if self._fruitless == 1:
            return 0.0
        # The exponent is bounded: 2.0 ** 2000 would overflow after a long night.
        delay: float = _FIRST_DELAY_SECONDS * 2.0 ** min(self._fruitless - 2, 20)
        return min(delay, _LONGEST_DELAY_SECONDS)

    def is_storm(self, now: float) -> bool:
        """Whether there were too many restarts within the window, or in a row without a batch."""
        full = len(self._restarts) == self._storm_restarts
        recent = full and now - self._restarts[0] <= self._window
        return recent or self._fruitless >= self._storm_restarts
