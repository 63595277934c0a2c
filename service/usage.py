"""How many need something at the moment, and who is told when nobody does any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class UseCounter:
    """A count: each `with` statement is one more while it lasts; event loop thread only.

    Attributes:
        count: how many there are.
    """

    def __init__(self, on_zero: Callable[[], object] | None = None) -> None:
        """Nobody is there yet.

        Args:
            on_zero: called whenever the last one leaves.
        """
        self.count = 0
        self._on_zero = on_zero
        self._gone = asyncio.Event()

    def __enter__(self) -> None:
        """One more."""
        self.count += 1

    def __exit__(self, *exc: object) -> None:
        """One less."""
        self.count -= 1
        if not self.count:
            self._gone.set()
            if self._on_zero is not None:
                self._on_zero()

    async def wait_for_zero(self) -> None:
        """Returns when nobody is there."""
        while self.count:
            self._gone.clear()
            await self._gone.wait()
