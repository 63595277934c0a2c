"""Threads that decode, and the memory that they may take together: used by the Detector.

An image takes memory by its pixels, which a file of some kilobytes can claim by the hundred
million. Half the memory is parted among the threads: whatever fits such a share is decoded at
once. A larger image waits for its part of the other half, and holds up no smaller one meanwhile.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from model.images.decode import NeedsMemory
from service.images.allocator import release_freed_memory
from service.ipc.slots import SlotLease

_Decoded = TypeVar("_Decoded")
# What images have freed is kept for the next ones, and the kernel's again after this time: seldom
# enough to cost nothing that could be measured, soon enough to leave nothing of a large image.
_KEEP_FREED_SECONDS = 10


class DecodePool:
    """Runs the decoding of images, each with a lease of the slot it writes to."""

    def __init__(self, threads: int, memory_bytes: int) -> None:
        """Starts threads as they are needed.

        Args:
            threads: how many.
            memory_bytes: that decoding takes at most; an image that needs more than half of it
                is decoded all the same, with no other large one beside it.
        """
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._share_bytes = memory_bytes // 2 // threads
        self._large = MemoryBudget(memory_bytes - threads * self._share_bytes)
        self._giving_back: asyncio.TimerHandle | None = None

    async def run(self, decode: Callable[[int | None], _Decoded], lease: SlotLease) -> _Decoded:
        """Decodes in a worker thread; the slot stays held until the thread is done with it.

        Args:
            decode: is given the bytes of memory it may take (None: as it needs), and raises
                NeedsMemory where they are too few.
            lease: of the slot that it writes to.
        """
        loop = asyncio.get_running_loop()
        if self._giving_back is None:
            self._giving_back = loop.call_later(_KEEP_FREED_SECONDS, self._give_back)
        # Log lines of the thread carry the names of the request, too.
        names = contextvars.copy_context()
        try:
            work = self._threads.submit(names.run, decode, self._share_bytes)
            return await self._finish(work, lease)
        except NeedsMemory as needs:
            taken = await self._large.take(needs.num_bytes)
        work = self._threads.submit(names.run, _decode_large, decode)
        # Not before the thread has ended, though its request may have been given up long ago.
        work.add_done_callback(lambda _: loop.call_soon_threadsafe(self._large.give_back, taken))
        return await self._finish(work, lease)

    def close(self) -> None:
        """Ends the threads; what they have not begun is dropped."""
        if self._giving_back is not None:
            self._giving_back.cancel()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _give_back(self) -> None:
        self._giving_back = None
        self._threads.submit(release_freed_memory)

    @staticmethod
    async def _finish(work: Future[_Decoded], lease: SlotLease) -> _Decoded:
        """Awaits a thread; `asyncio.wrap_future` would do, in several times the steps."""
        loop = asyncio.get_running_loop()
        over = loop.create_future()
        work.add_done_callback(lambda _: loop.call_soon_threadsafe(_wake, over))
        try:
            await over
        except asyncio.CancelledError:
            if not work.cancel():
                lease.retain()
                work.add_done_callback(lambda _: loop.call_soon_threadsafe(lease.release))
            raise
        if work.cancelled():  # `close` dropped it
            raise asyncio.CancelledError
        return work.result()


def _wake(over: asyncio.Future[None]) -> None:
    if not over.done():
        over.set_result(None)


def _decode_large(decode: Callable[[int | None], _Decoded]) -> _Decoded:
    """Decodes with all the memory that it takes, and leaves none of that to this thread's heap."""
    try:
        return decode(None)
    finally:
        release_freed_memory()


class MemoryBudget:
    """So many bytes for all who ask, first come, first served; for one event loop."""

    def __init__(self, num_bytes: int) -> None:
        """Nothing is taken yet."""
        self._capacity = num_bytes
        self._free = num_bytes
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, num_bytes: int) -> int:
        """Waits for a part of the budget.

        Returns:
            What to give back: less than was asked for where that is more than there is.
        """
        wanted = min(num_bytes, self._capacity)
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, turn))
        self._serve()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back(wanted)
            else:
                self._waiting.remove((wanted, turn))
                self._serve()
            raise
        return wanted

    def give_back(self, num_bytes: int) -> None:
        """Returns what was taken."""
        self._free += num_bytes
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            wanted, turn = self._waiting.popleft()
            self._free -= wanted
            turn.set_result(None)
