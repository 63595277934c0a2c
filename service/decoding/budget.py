"""A number of bytes, or of tasks at once, that tasks wait for, the most urgent first."""

from __future__ import annotations

import asyncio
from bisect import insort_right
from collections.abc import Callable
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

    def __init__(self, capacity: int, on_wait: Callable[[], None] = lambda: None) -> None:
        """Creates a budget.

        Args:
            capacity: all of it is free.
            on_wait: called when a task begins to wait.
        """
        self._on_wait = on_wait
        self._capacity = capacity
        self._free = capacity
        self._waiting: list[_Wait] = []

    @property
    def largest_wait(self) -> int:
        """The largest amount that a task waits for; 0 if none waits."""
        return max((wait.amount for wait in self._waiting), default=0)

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
        if not granted.done():
            self._on_wait()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.give_back(wait.amount)
            else:
                self._serve()  # without this one, which may be gone already
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
        # A task that is cancelled runs later than others that are, or that give back.
        self._waiting = [wait for wait in self._waiting if not wait.granted.done()]
        while self._waiting and self._waiting[0].amount <= self._free:
            wait = self._waiting.pop(0)
            self._free -= wait.amount
            wait.granted.set_result(None)
