"""A share of memory that tasks wait for in order of arrival."""

from __future__ import annotations

import asyncio
from collections import deque


class MemoryBudget:
    """A counting semaphore of bytes, served in order of arrival; for one event loop."""

    def __init__(self, num_bytes: int) -> None:
        """Creates a budget of `num_bytes`, all free."""
        self._capacity = num_bytes
        self._free = num_bytes
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, num_bytes: int) -> int:
        """Waits until `num_bytes` are free and takes them.

        Returns:
            The number of bytes taken, to be passed to `give_back`; at most the whole budget.
        """
        wanted = min(num_bytes, self._capacity)
        granted = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, granted))
        self._serve()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.give_back(wanted)
            else:
                self._waiting.remove((wanted, granted))
                self._serve()
            raise
        return wanted

    def give_back(self, num_bytes: int) -> None:
        """Returns bytes that `take` took."""
        self._free += num_bytes
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            wanted, granted = self._waiting.popleft()
            self._free -= wanted
            granted.set_result(None)
