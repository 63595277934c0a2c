"""Counts the current users of something."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class UseCounter:
    """Counts the `with` statements in progress; event loop thread only.

    Attributes:
        count: how many there are.
    """

    def __init__(self, on_zero: Callable[[], object] | None = None) -> None:
        """Creates a counter at zero.

        Args:
            on_zero: called whenever the last `with` statement ends.
        """
        self.count = 0
        self._on_zero = on_zero
        self._zero = asyncio.Event()

    def __enter__(self) -> None:
        """Counts up."""
        self.count += 1

    def __exit__(self, *exc: object) -> None:
        """Counts down."""
        self.count -= 1
        if not self.count:
            self._zero.set()
            if self._on_zero is not None:
                self._on_zero()

    async def wait_for_zero(self) -> None:
        """Waits until the count is zero."""
        while self.count:
            self._zero.clear()
            await self._zero.wait()
