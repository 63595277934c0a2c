"""What a decoder may take for one image, so that costly images do not delay cheap ones.

Decoding needs memory for every pixel, and a file of a few kilobytes can have a hundred million
pixels: half of the memory is divided evenly among the workers, and an image that fits into one
share is decoded at once. A larger image waits for memory of the other half. Images that take long
also wait for each other: at most as many of them are decoded at once as the pool has workers
besides its reserve.

Decoded tiles (`service.decoding.kept_tiles`) are kept in memory of the second half. They run after
ordinary images, so an image that does not fit into the rest of it gets their memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from model.images.limits import Cost
from service.decoding.budget import Budget

_LONG_SECONDS = 0.3  # by its header and its length


class KeptMemory:
    """Memory that is kept after decoding; it is taken, and given back early if it is needed.

    Attributes:
        num_bytes: how much.
        is_needed: whether an image waits that does not fit next to it.
        on_needed: called when `is_needed` becomes true.
    """

    def __init__(self, num_bytes: int, on_given_back: Callable[[KeptMemory], None]) -> None:
        """Is created by `Grants.try_keep` only."""
        self.num_bytes = num_bytes
        self.is_needed = False
        self.on_needed: Callable[[], None] = lambda: None
        self._on_given_back = on_given_back

    def give_back(self) -> None:
        """Gives the memory back; does nothing if it is not taken."""
        self._on_given_back(self)


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
        self._memory = Budget(self.for_large_images, on_wait=self._check_kept)
        self._kept: set[KeptMemory] = set()  # that is taken
        self._long_tasks = Budget(max_long_tasks)

    def is_long(self, cost: Cost) -> bool:
        """Whether a task takes long; others may overtake it."""
        return cost.seconds > self.without_asking.seconds

    def try_keep(self, num_bytes: int) -> KeptMemory | None:
        """Takes memory of the half for large images; None if so much is not free or needed."""
        if not self._memory.try_take(num_bytes):
            return None
        kept = KeptMemory(num_bytes, self._give_back_kept)
        self._kept.add(kept)
        return kept

    async def take(
        self, cost: Cost, urgency: float, kept: KeptMemory | None = None
    ) -> list[Callable[[], None]]:
        """Waits until a task of this cost may run.

        Args:
            cost: of the task.
            urgency: the smallest goes first; of equal ones, the first that came.
            kept: is given back, and taken together with the memory for the task: a task that
                waited with it could wait for an image that waits for it.

        Returns:
            Functions to be called when no worker has the task any more.
        """
        release: list[Callable[[], None]] = []
        try:
            if memory_bytes := cost.memory_bytes * (cost.memory_bytes > self.without_asking[0]):
                taken = await self._take_memory(memory_bytes, urgency, kept)
                release.append(partial(self._memory.give_back, taken))
            if self.is_long(cost):
                taken = await self._long_tasks.take(1, urgency)
                release.append(partial(self._long_tasks.give_back, taken))
        except BaseException:
            for give_back in release:
                give_back()
            raise
        return release

    async def _take_memory(self, num_bytes: int, urgency: float, kept: KeptMemory | None) -> int:
        """Waits for memory and for that of `kept`; returns how much was taken besides it."""
        if kept is None:
            return await self._memory.take(num_bytes, urgency)
        kept.give_back()
        taken = await self._memory.take(num_bytes + kept.num_bytes, urgency)
        self._kept.add(kept)
        self._check_kept()
        return taken - kept.num_bytes

    def _check_kept(self) -> None:
        """Has kept memory given back if a task waits for more than the rest."""
        room = self.for_large_images - sum(kept.num_bytes for kept in self._kept)
        if self._memory.largest_wait > room:
            for kept in tuple(self._kept):
                kept.is_needed = True
                kept.on_needed()

    def _give_back_kept(self, kept: KeptMemory) -> None:
        if kept in self._kept:
            self._kept.remove(kept)
            self._memory.give_back(kept.num_bytes)
