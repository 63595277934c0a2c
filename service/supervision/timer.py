"""One timer that is wound anew: the watchdog of a batch, the next look at a silent engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context


class Timer:
    """Rings once, unless it is set again or stopped before; event loop thread only."""

    def __init__(self) -> None:
        """Is not set."""
        self._handle: asyncio.TimerHandle | None = None

    def set(self, seconds: float, ring: Callable[[], None]) -> None:
        """Rings after so many seconds; what was set before is forgotten."""
        self.stop()
        loop = asyncio.get_running_loop()
        # Not in the context of the request that set it: what it logs is not that one's.
        self._handle = loop.call_later(max(0.0, seconds), ring, context=Context())

    def stop(self) -> None:
        """Does not ring."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
