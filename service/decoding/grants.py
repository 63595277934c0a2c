"""What a decoder may take for one image, so that costly images do not delay cheap ones.

Decoding needs memory for every pixel, and a file of a few kilobytes can have a hundred million
pixels: half of the memory is divided evenly among the workers, and an image that fits into one
share is decoded at once. A larger image waits for memory of the other half. Images that take long
also wait for each other: at most as many of them are decoded at once as the pool has workers
besides its reserve.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from model.images.limits import Cost
from service.decoding.budget import Budget

_LONG_SECONDS = 0.3  # by its header and its length


class Grants:
    """Grants of memory and of turns for long tasks; for one event loop."""

    def __init__(self, memory_bytes: int, max_long_tasks: int) -> None:
        """Divides the memory.

        Args:
            memory_bytes: maximum memory of all decoding. An image that needs more than half of
                it is decoded nevertheless, with no other large image at the same time.
            max_long_tasks: how many long tasks run at once; one worker more is the reserve.
        """
        share = memory_bytes // 2 // (max_long_tasks + 1)
        self.without_asking = Cost(share, _LONG_SECONDS)
        self.for_large_images = memory_bytes - memory_bytes // 2  # bytes
        self._memory = Budget(self.for_large_images)
        self._long_tasks = Budget(max_long_tasks)

    def is_long(self, cost: Cost) -> bool:
        """Whether a task takes long; others may overtake it."""
        return cost.seconds > self.without_asking.seconds

    def try_take_memory(self, num_bytes: int) -> Callable[[], None] | None:
        """Takes memory of the half for large images, unless they need it.

        Returns:
            A function that gives it back; None if so much is not free, or an image waits for it.
        """
        if not self._memory.try_take(num_bytes):
            return None
        return partial(self._memory.give_back, num_bytes)

    async def take(self, cost: Cost, urgency: float) -> list[Callable[[], None]]:
        """Waits until a task of this cost may run.

        Args:
            cost: of the task.
            urgency: the smallest goes first; of equal ones, the first that came.

        Returns:
            Functions to be called when no worker has the task any more.
        """
        release: list[Callable[[], None]] = []
        try:
            for budget, amount in (
                (self._memory, cost.memory_bytes * (cost.memory_bytes > self.without_asking[0])),
                (self._long_tasks, int(self.is_long(cost))),
            ):
                if amount:
                    release.append(partial(budget.give_back, await budget.take(amount, urgency)))
        except BaseException:
            for give_back in release:
                give_back()
            raise
        return release
