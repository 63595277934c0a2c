"""A stand-in for `EngineProcess`, for a supervisor in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from service.ipc.messages import BatchDone, BatchFailed, Message, RunBatch, Start
from service.ipc.slot_pool import SlotPool
from service.ipc.slots import SlotMemory
from service.supervision.plan import EnginePlan
from tests.support.fake_device import FAKE_MODEL
from tests.support.jobs import NO_DETECTIONS


def engine_plan(pool: SlotPool, **limits: Any) -> EnginePlan:
    """A plan for the fake model."""
    defaults = {
        "start_timeout_seconds": 30,
        "watchdog_seconds": 60,
        "canary_interval_seconds": 10,
        "canary_timeout_seconds": 5,
        "storm_restarts": 5,
        "storm_window_seconds": 60,
    }
    start = Start("", "", "cpu", 1, pool.memory.layout, "error", "json")
    return EnginePlan(start=start, model=FAKE_MODEL, weights_name="", **(defaults | limits))


@dataclass
class StandInProcess:
    """An engine process that completes batches after 10 ms, fails them or hangs."""

    memory: SlotMemory
    behaviour: str  # "complete", "fail", "hang", or "linger" after a kill
    pid: int
    exit_status: int = -9
    killed: bool = False
    closed: bool = False
    reply_seconds: float = 0.01  # time per batch
    reply_at: float = 0.0  # of the last batch
    held: list[RunBatch] = field(default_factory=list)  # without a reply
    sent: list[RunBatch] = field(default_factory=list)
    on_stopped: Callable[[], None] = lambda: None
    messages: asyncio.Queue[Message | None] = field(default_factory=asyncio.Queue)

    def send(self, message: Message) -> None:
        if not isinstance(message, RunBatch):
            return
        self.sent.append(message)
        self.held.append(message)
        if self.behaviour != "hang":
            loop = asyncio.get_running_loop()
            # Timers of the same time may run in any order; replies must not.
            self.reply_at = max(loop.time() + self.reply_seconds, self.reply_at + 1e-6)
            loop.call_at(self.reply_at, self._reply, message)

    def _reply(self, message: RunBatch) -> None:
        if self.killed:
            return
        self.held.remove(message)
        if self.behaviour == "fail":
            self.messages.put_nowait(BatchFailed(message.batch_id, "lost"))
            return
        for slot, generation in message.slots:
            self.memory.write_result(slot, generation, NO_DETECTIONS)
        self.messages.put_nowait(BatchDone(message.batch_id, 1.0, 2.0, 3.0))

    def watch_stops(self, on_stopped: Callable[[], None]) -> None:
        self.on_stopped = on_stopped

    async def receive(self) -> Message | None:
        return await self.messages.get()

    async def listen(self, handle: Callable[[Message], None]) -> None:
        while (message := await self.messages.get()) is not None:
            handle(message)

    def kill(self) -> None:
        self.killed = True
        self.messages.put_nowait(None)

    async def reap(self, timeout_seconds: float) -> bool:
        if self.behaviour == "linger":
            await asyncio.sleep(60)
        return True

    def exit(self) -> None:
        """The process ends by itself."""
        self.messages.put_nowait(None)

    def close(self) -> None:
        self.closed = True
        self.messages.put_nowait(None)
