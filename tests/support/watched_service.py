"""A running service for tests of faults: waits for its engines, metrics and log lines."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import httpx

from tests.support.running import DEFAULTS, Service


class WatchedService(Service):
    """Settings can be of any type; the defaults are those of tests."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**{name: str(value) for name, value in (DEFAULTS | settings).items()})

    def wait_for_line(
        self, pattern: str, timeout_seconds: float = 300, *, times: int = 1
    ) -> re.Match[str]:
        """Waits until `times` lines match; returns the match of the last of them."""

        def found() -> list[re.Match[str]]:
            return [match for line in self.lines if (match := re.search(pattern, line))]

        with self._changed:
            enough = self._changed.wait_for(lambda: len(found()) >= times, timeout_seconds)
            assert enough, "".join(self.lines)
            return found()[times - 1]

    def count(self, pattern: str) -> int:
        """Number of lines that match."""
        with self._changed:
            return sum(re.search(pattern, line) is not None for line in self.lines)

    def engine_pids(self, engines: int = 1) -> list[int]:
        """Process ids of the engines that serve, the newest last; waits for so many."""

        def serving() -> list[int]:
            ready, ended = (
                [int(match[1]) for line in self.lines if (match := re.search(pattern, line))]
                for pattern in (r'"pid":(\d+).*engine ready', r'"pid":(\d+).*engine exited')
            )
            return [pid for pid in ready if pid not in ended]

        with self._changed:
            enough = self._changed.wait_for(lambda: len(serving()) == engines, 60)
            assert enough, "".join(self.lines)
            return serving()

    def health(self, path: str) -> int:
        return httpx.get(f"{self.url}{path}", timeout=60).status_code

    def metric_or_none(self, name: str) -> float | None:
        """The value of a metric, by its name with labels; None before the first observation."""
        text = httpx.get(f"{self.url}/metrics", timeout=60).text
        found = re.search(rf"^lite_detr_{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return None if found is None else float(found[1])

    def until(self, holds: Callable[[], bool], timeout_seconds: float = 300) -> None:
        """Waits until `holds` returns true; fails with the log of the service."""
        end = time.monotonic() + timeout_seconds
        while not holds():
            assert time.monotonic() < end, "".join(self.lines)
            time.sleep(0.02)
