"""Log lines about requests that are refused before an application sees them.

Such a request has no line of its own: anybody could fill the log. They are counted by client and
code, in at most one line per `_INTERVAL_SECONDS`.
"""

from __future__ import annotations

import asyncio
from collections import Counter

import structlog

_INTERVAL_SECONDS = 10.0
_MAX_CLIENTS = 32  # in one line; further ones are counted together
_OTHERS = "others"

_log = structlog.get_logger(__name__)


class RefusalLog:
    """Counts refusals and logs the counts."""

    def __init__(self, interval_seconds: float = _INTERVAL_SECONDS) -> None:
        """Starts without counts; the first refusal is logged at once."""
        self._interval_seconds = interval_seconds
        self._clients: Counter[str] = Counter()
        self._codes: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, client: str, code: str) -> None:
        """Counts one refusal.

        Args:
            client: the address of the connection's other end.
            code: of the response.
        """
        known = client in self._clients or len(self._clients) < _MAX_CLIENTS
        self._clients[client if known else _OTHERS] += 1
        self._codes[code] += 1
        if self._timer is None:
            self._write_and_wait()

    def close(self) -> None:
        """Logs what was counted since the last line."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._write()

    def _write_and_wait(self) -> None:
        self._timer = None
        if self._codes:
            self._write()
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._interval_seconds, self._write_and_wait)

    def _write(self) -> None:
        if self._codes:
            _log.warning(
                "requests refused by the HTTP server",
                count=self._codes.total(),
                codes=dict(self._codes),
                clients=dict(self._clients),
            )
            self._clients.clear()
            self._codes.clear()
