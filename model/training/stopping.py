"""Stopping a run by signal without losing its work."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
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
        """130 after SIGINT, 143 after SIGTERM, 129 after SIGHUP."""
        return _SIGNALLED + self.number


class Interrupted(KeyboardInterrupt):
    """A signal ended a run at once: before it began to train, or as the second one.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        """Names the signal."""
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number

    @property
    def exit_status(self) -> int:
        """As of `TrainingStopped`."""
        return _SIGNALLED + self.number


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Lets SIGINT, SIGTERM and SIGHUP raise `Interrupted`, so that no half-written file remains.

    By default the last two end the process at once, and have no effect on the first process of a
    container. A signal whose exception has not ended the process acts by default when it is
    repeated.
    """

    def handle(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Interrupted(number)

    before = _install(handle)
    try:
        yield
    finally:
        _restore(before)


class StopRequest:
    """A context in which the first signal sets `number`; the second acts as outside of it.

    The signals are SIGINT, SIGTERM and SIGHUP.

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
        self._before = _install(self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Restores the signal handlers."""
        self._end()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.number = number
        self._end()

    def _end(self) -> None:
        _restore(self._before)
        self._before = {}


def _install(handle: Callable[[int, FrameType | None], None]) -> dict[signal.Signals, Any]:
    """Installs a signal handler; returns the handlers before it."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    # nohup ignores SIGHUP for the run that it starts.
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    numbers = [number for number in _SIGNALS if number != signal.SIGHUP or not ignored]
    return {number: signal.signal(number, handle) for number in numbers}


def _restore(before: dict[signal.Signals, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)
