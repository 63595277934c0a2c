"""A restartable timer: the watchdog of a batch, and the schedule of canaries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context


class Timer:
    """Calls a function once after a delay; for use on the event loop thread only."""

    def __init__(self, on_error: Callable[[Exception], None]) -> None:
        """Creates a stopped timer.

        Args:
            on_error: called with an exception of the function; the event loop would only log it.
        """
        self._on_error = on_error
        self._handle: asyncio.TimerHandle | None = None

    def start(self, seconds: float, callback: Callable[[], None]) -> None:
        """Schedules `callback`; replaces what was scheduled before."""
        self.cancel()
        loop = asyncio.get_running_loop()
        # In an empty context: log lines of the callback do not belong to the current request.
        self._handle = loop.call_later(max(0.0, seconds), self._run, callback, context=Context())

    def _run(self, callback: Callable[[], None]) -> None:
        self._handle = None
        try:
            callback()
        except Exception as error:
            self._on_error(error)

    def cancel(self) -> None:
        """Cancels the timer, if it is running."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
