"""The threads that decode images, and the memory limit that they share; used by the Detector.

Decoding needs memory for every pixel, and a file of a few kilobytes can have a hundred million
pixels. Half of the memory is divided evenly among the threads: an image that fits into one share
is decoded at once. A larger image waits for memory of the other half, without delaying smaller
ones.
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
# Freed memory is kept for the next images (see `allocator`) and returned to the kernel this often:
# rarely enough for an unmeasurable cost, often enough to release the memory of large images.
_RELEASE_INTERVAL_SECONDS = 10


class DecodePool:
    """Decodes images in threads, each image into its slot."""

    def __init__(self, threads: int, memory_bytes: int) -> None:
        """Creates a pool; threads are started when they are needed.

        Args:
            threads: maximum number of threads.
            memory_bytes: maximum memory of all decoding. An image that needs more than half of
                it is decoded nevertheless, with no other large image at the same time.
        """
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._share_bytes = memory_bytes // 2 // threads
        self._large = MemoryBudget(memory_bytes - threads * self._share_bytes)
        self._release_timer: asyncio.TimerHandle | None = None

    async def run(self, decode: Callable[[int | None], _Decoded], lease: SlotLease) -> _Decoded:
        """Decodes in a worker thread, which holds the slot until it has finished.

        Args:
            decode: called with the memory that it may use in bytes (None: no limit); raises
                NeedsMemory if that is not enough.
            lease: the slot that it writes to.
        """
        loop = asyncio.get_running_loop()
        if self._release_timer is None:
            self._release_timer = loop.call_later(_RELEASE_INTERVAL_SECONDS, self._release_memory)
        # So that log lines of the thread carry the request's ids.
        context = contextvars.copy_context()
        try:
            work = self._threads.submit(context.run, decode, self._share_bytes)
            return await self._finish(work, lease)
        except NeedsMemory as needs:
            taken = await self._large.take(needs.num_bytes)
        work = self._threads.submit(context.run, _decode_large, decode)
        # When the thread has finished, even if its request was cancelled before.
        work.add_done_callback(lambda _: loop.call_soon_threadsafe(self._large.give_back, taken))
        return await self._finish(work, lease)

    def close(self) -> None:
        """Waits for the running threads; drops the images whose decoding has not begun."""
        if self._release_timer is not None:
            self._release_timer.cancel()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _release_memory(self) -> None:
        self._release_timer = None
        self._threads.submit(release_freed_memory)

    @staticmethod
    async def _finish(work: Future[_Decoded], lease: SlotLease) -> _Decoded:
        """Waits for a thread; does what `asyncio.wrap_future` does in fewer steps."""
        loop = asyncio.get_running_loop()
        finished = loop.create_future()
        work.add_done_callback(lambda _: loop.call_soon_threadsafe(_wake, finished))
        try:
            await finished
        except asyncio.CancelledError:
            if not work.cancel():
                lease.retain()
                work.add_done_callback(lambda _: loop.call_soon_threadsafe(lease.release))
            raise
        if work.cancelled():  # by `close`
            raise asyncio.CancelledError
        return work.result()


def _wake(finished: asyncio.Future[None]) -> None:
    if not finished.done():
        finished.set_result(None)


def _decode_large(decode: Callable[[int | None], _Decoded]) -> _Decoded:
    """Decodes without a memory limit, then returns the freed memory to the kernel."""
    try:
        return decode(None)
    finally:
        release_freed_memory()


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
