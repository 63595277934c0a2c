"""A share of memory that tasks wait for, the most urgent first."""

from __future__ import annotations

import asyncio
from bisect import insort_right
from dataclasses import dataclass
from operator import attrgetter


@dataclass(eq=False)
class _Wait:
    """A task that waits for memory."""

    urgency: float  # the smallest is first
    num_bytes: int
    granted: asyncio.Future[None]


class MemoryBudget:
    """A counting semaphore of bytes, served in order of urgency; for one event loop."""

    def __init__(self, num_bytes: int) -> None:
        """Creates a budget of `num_bytes`, all free."""
        self._capacity = num_bytes
        self._free = num_bytes
        self._waiting: list[_Wait] = []

    async def take(self, num_bytes: int, urgency: float = 0.0) -> int:
        """Waits until `num_bytes` are free and takes them.

        Args:
            num_bytes: how many.
            urgency: the smallest goes first; of equal ones, the first that came.

        Returns:
            The number of bytes taken, to be passed to `give_back`; at most the whole budget.
        """
        granted = asyncio.get_running_loop().create_future()
        wait = _Wait(urgency, min(num_bytes, self._capacity), granted)
        insort_right(self._waiting, wait, key=attrgetter("urgency"))
        self._serve()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.give_back(wait.num_bytes)
            else:
                self._waiting.remove(wait)
                self._serve()
            raise
        return wait.num_bytes

    def give_back(self, num_bytes: int) -> None:
        """Returns bytes that `take` took."""
        self._free += num_bytes
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self._waiting[0].num_bytes <= self._free:
            wait = self._waiting.pop(0)
            self._free -= wait.num_bytes
            wait.granted.set_result(None)
