"""How many CUDA graphs the next engine may record: fewer after graphs lost the device.

A recording that corrupts the CUDA context takes the engine process with it. Its replacement records
the shapes in the same order, so it stops before the one that failed. If that does not help, or if
engines with graphs keep losing the device while they serve, the next one records none. So graphs
cost at most three restarts, and then batches are launched kernel by kernel.
"""

from __future__ import annotations

from dataclasses import replace

import structlog

from service.ipc.messages import RecordingLost, Start

_MAX_LOSSES = 2  # of the device by engines with graphs, while they serve; a GPU may fail once

_log = structlog.get_logger(__name__)


class GraphLimit:
    """The maximum number of CUDA graphs for the next engine of a device."""

    def __init__(self, most: int) -> None:
        """Starts with the number in the settings."""
        self._most = most
        self._lost_recordings = self._losses = 0

    def apply(self, start: Start) -> Start:
        """`start` with the current maximum."""
        return replace(start, max_cuda_graphs=self._most)

    def recording_lost(self, message: RecordingLost) -> None:
        """Lowers the maximum because a recording lost the device; logs it."""
        self._lost_recordings += 1
        first = self._lost_recordings == 1
        self._lower_to(
            min(self._most, message.recorded) if first else 0,
            f"recording a CUDA graph lost the device: {message.reason}",
            padded=message.padded,
            images=message.images,
        )

    def device_lost(self, graphs: int) -> None:
        """Counts an engine with so many graphs that lost its device while it served."""
        if graphs == 0:
            return
        self._losses += 1
        if self._losses >= _MAX_LOSSES and self._most > 0:
            self._lower_to(0, f"engines with CUDA graphs lost the device {self._losses} times")

    def _lower_to(self, most: int, reason: str, **shape: object) -> None:
        self._most = most
        _log.error("the next engine records fewer CUDA graphs", reason=reason, most=most, **shape)
