"""Restart policy of an engine: the delay before a restart, and detection of restart storms."""

from __future__ import annotations

from collections import deque

_FIRST_DELAY_SECONDS = 0.1
_LONGEST_DELAY_SECONDS = 10.0


class RestartPolicy:
    """Counts the exits of one engine."""

    def __init__(self, storm_restarts: int, storm_window_seconds: float) -> None:
        """Starts with no exits.

        Args:
            storm_restarts: number of restarts within the window that make a storm.
            storm_window_seconds: length of the window.
        """
        self._storm_restarts = storm_restarts
        self._window = storm_window_seconds
        self._exits: deque[float] = deque(maxlen=storm_restarts)
        self._exits_without_success = 0

    def record_success(self) -> None:
        """Records that the engine finished a batch; the next restart has no delay."""
        self._exits_without_success = 0

    def record_exit(self, now: float) -> float:
        """Records that the engine ended.

        Args:
            now: monotonic seconds.

        Returns:
            Seconds to wait before the restart: 0 for the first exit, doubling for each further
            exit without a finished batch.
        """
        self._exits.append(now)
        self._exits_without_success += 1
        if self._exits_without_success == 1:
            return 0.0
        # The exponent is bounded because 2.0 ** 2000 overflows.
        delay: float = _FIRST_DELAY_SECONDS * 2.0 ** min(self._exits_without_success - 2, 20)
        return min(delay, _LONGEST_DELAY_SECONDS)

    def is_storm(self, now: float) -> bool:
        """Whether there were too many exits within the window, or in a row without a batch."""
        full = len(self._exits) == self._storm_restarts
        recent = full and now - self._exits[0] <= self._window
        return recent or self._exits_without_success >= self._storm_restarts
