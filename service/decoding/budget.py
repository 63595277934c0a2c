"""A number of bytes, or of tasks at once, that tasks wait for, the most urgent first."""

from __future__ import annotations

import asyncio
from bisect import insort_right
from dataclasses import dataclass
from operator import attrgetter


@dataclass(eq=False)
class _Wait:
    """A task that waits for its part."""

    urgency: float  # the smallest is first
    amount: int
    granted: asyncio.Future[None]


class Budget:
    """A counting semaphore, served in order of urgency; for one event loop."""

    def __init__(self, capacity: int) -> None:
        """Creates a budget of `capacity`, all free."""
        self._capacity = capacity
        self._free = capacity
        self._waiting: list[_Wait] = []

    async def take(self, amount: int, urgency: float = 0.0) -> int:
        """Waits until `amount` are free and takes them.

        Args:
            amount: how many.
            urgency: the smallest goes first; of equal ones, the first that came.

        Returns:
            The amount taken, to be passed to `give_back`; at most the whole budget.
        """
        granted = asyncio.get_running_loop().create_future()
        wait = _Wait(urgency, min(amount, self._capacity), granted)
        insort_right(self._waiting, wait, key=attrgetter("urgency"))
        self._serve()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.give_back(wait.amount)
            else:
                self._waiting.remove(wait)
                self._serve()
            raise
        return wait.amount

    def try_take(self, amount: int) -> bool:
        """Takes `amount` if it is free and nobody waits; returns whether it was taken."""
        if self._waiting or amount > self._free:
            return False
        self._free -= amount
        return True

    def give_back(self, amount: int) -> None:
        """Returns what `take` took."""
        self._free += amount
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self._waiting[0].amount <= self._free:
            wait = self._waiting.pop(0)
            self._free -= wait.amount
            wait.granted.set_result(None)
