"""A stream of frames -> a stream of outcomes: some at a time, answered in their order.

    reader --(room)--> one task a frame --> queue --> writer --(room back)--> reader

A frame takes room until its outcome is written, so a client that does not read its answers is
not read from either: the transport holds it back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

_Frame = TypeVar("_Frame")
_Outcome = TypeVar("_Outcome")


class FramePump(Generic[_Frame, _Outcome]):
    """Moves the frames of one stream."""

    def __init__(
        self,
        answer: Callable[[int, _Frame], Coroutine[Any, Any, _Outcome]],
        write: Callable[[_Outcome], Awaitable[None]],
        in_flight: int,
    ) -> None:
        """Prepares a pump.

        Args:
            answer: turns a frame and its index into an outcome; tells errors as outcomes.
            write: hands an outcome to the client; called for one at a time.
            in_flight: most frames that are read and not yet written.
        """
        self._answer = answer
        self._write = write
        self._room = asyncio.Semaphore(in_flight)
        # The tasks of frames that were read, in their order; None ends them.
        self._answers: asyncio.Queue[asyncio.Task[_Outcome] | None] = asyncio.Queue()
        self._reader: asyncio.Task[None] | None = None

    async def run(self, frames: AsyncIterator[_Frame]) -> None:
        """Returns when every frame that was read is answered.

        Raises:
            BaseExceptionGroup: of what `frames`, `answer` or `write` raised; every task has
                ended by then.
        """
        async with asyncio.TaskGroup() as group:
            self._reader = group.create_task(self._read(frames, group))
            # Not in the reader itself: one that is cancelled before its first step never runs.
            self._reader.add_done_callback(lambda _: self._answers.put_nowait(None))
            while (answer := await self._answers.get()) is not None:
                await self._write(await answer)
                self._room.release()

    def stop_reading(self) -> None:
        """Ends a running stream after the frames that were read."""
        if self._reader is not None:
            self._reader.cancel()

    async def _read(self, frames: AsyncIterator[_Frame], group: asyncio.TaskGroup) -> None:
        index = 0
        await self._room.acquire()
        async for frame in frames:
            self._answers.put_nowait(group.create_task(self._answer(index, frame)))
            index += 1
            await self._room.acquire()
