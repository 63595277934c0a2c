"""A stream of frames -> a stream of outcomes, in the same order, several in flight.

    reader --(acquire)--> one task per frame --> queue --> writer --(release)--> reader

A frame is in flight until its outcome is written. If a client does not read its outcomes, no more
of its frames are read, and the transport's flow control stops the client.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

_Frame = TypeVar("_Frame")
_Outcome = TypeVar("_Outcome")


class FramePump(Generic[_Frame, _Outcome]):
    """Processes the frames of one stream."""

    def __init__(
        self,
        process: Callable[[int, _Frame], Coroutine[Any, Any, _Outcome]],
        write: Callable[[_Outcome], Awaitable[None]],
        in_flight: int,
    ) -> None:
        """Prepares a pump.

        Args:
            process: returns the outcome of a frame and its index; errors are outcomes too.
            write: sends an outcome to the client; called for one at a time.
            in_flight: maximum number of frames that are read and whose outcome is not written.
        """
        self._process = process
        self._write = write
        self._slots = asyncio.Semaphore(in_flight)
        # The tasks of frames that were read, in their order; None is the end.
        self._tasks: asyncio.Queue[asyncio.Task[_Outcome] | None] = asyncio.Queue()
        self._reader: asyncio.Task[None] | None = None

    async def run(self, frames: AsyncIterator[_Frame]) -> None:
        """Returns when the outcome of every frame that was read is written.

        Raises:
            BaseExceptionGroup: of exceptions of `frames`, `process` or `write`; every task has
                ended by then.
        """
        async with asyncio.TaskGroup() as group:
            self._reader = group.create_task(self._read(frames, group))
            # Not in the reader itself: a task that is cancelled before its first step never runs.
            self._reader.add_done_callback(lambda _: self._tasks.put_nowait(None))
            while (task := await self._tasks.get()) is not None:
                await self._write(await task)
                self._slots.release()

    def stop_reading(self) -> None:
        """Ends the stream after the frames that were read."""
        if self._reader is not None:
            self._reader.cancel()

    async def _read(self, frames: AsyncIterator[_Frame], group: asyncio.TaskGroup) -> None:
        index = 0
        await self._slots.acquire()
        async for frame in frames:
            self._tasks.put_nowait(group.create_task(self._process(index, frame)))
            index += 1
            await self._slots.acquire()
