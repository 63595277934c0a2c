"""Stopping a run by signal without losing its work."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SIGNALLED = 128  # added to the number of a signal in exit statuses, as shells do


class TrainingStopped(Exception):
    """A signal stopped a run; everything is saved, and the run can be continued.

    Args:
        number: of the signal.
        model: the weights so far; None: no file has them.
    """

    def __init__(self, number: int, model: Path | None = None) -> None:
        """Names the signal."""
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
        self.model = model

    @property
    def exit_status(self) -> int:
        """130 after SIGINT, 143 after SIGTERM."""
        return _SIGNALLED + self.number


class StopRequest:
    """A context in which the first SIGINT or SIGTERM sets `number`; the second acts as usual.

    Attributes:
        number: of the signal; None before it.
    """

    def __init__(self) -> None:
        """Requests nothing yet."""
        self.number: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has arrived."""
        return self.number is not None

    def __enter__(self) -> StopRequest:
        """Installs the signal handlers (only the main thread can)."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Restores the signal handlers."""
        self._restore()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
