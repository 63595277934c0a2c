"""An engine whose batches only take time on the clock of the event loop.

It keeps its batches and its predictions as a real engine's session does (`BatchesInFlight`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from service.batching.engine_protocol import EngineListener
from service.batching.estimates import ServiceTime
from service.batching.scheduler import Batch, EngineState
from service.ipc.messages import BatchDone
from service.supervision.in_flight import BatchesInFlight


class RunTime(NamedTuple):
    """How long a batch runs, in seconds."""

    seconds: float
    explaining: float = 0.0  # in addition, to explain a detection


class SimulatedEngine:
    """Runs batches one after the other; `end` and `begin` are its death and its replacement."""

    live, kernel, last_success = True, "none", 0.0

    def __init__(
        self,
        run_time: Callable[[Batch], RunTime],
        on_complete: Callable[[Batch], None] = lambda _batch: None,
    ) -> None:
        """Creates an engine that is ready; `listener` is set before its first batch.

        Args:
            run_time: of each batch, called when the batch starts.
            on_complete: called with each completed batch, before the listener is.
        """
        self.ready = True
        self.listener: EngineListener | None = None
        self.sizes: list[int] = []  # images of each completed batch
        self.busy_seconds = 0.0
        self._run_time = run_time
        self._on_complete = on_complete
        self._loop = asyncio.get_running_loop()
        self._service_time = ServiceTime()
        self._in_flight = BatchesInFlight(self._loop.time(), self._service_time)
        self._queue: deque[tuple[int, Batch]] = deque()  # the first of them runs
        self._timer: asyncio.TimerHandle | None = None

    @property
    def state(self) -> EngineState:
        """The engine's state, for the scheduler."""
        return self._in_flight.state()

    @property
    def busy_share(self) -> float:
        """The share of the recent time in which it held batches, as in the service's gauge."""
        return self._in_flight.busy_share(self._loop.time())

    def send(self, batch: Batch) -> None:
        """Adds a batch behind those that it holds."""
        self._queue.append((self._in_flight.add(batch, self._loop.time()), batch))
        if self._timer is None:
            self._start()

    def predicted_seconds(self, padded_pixels: int) -> float:
        """Predicted run time of a batch of so many padded pixels."""
        return self._in_flight.predicted_seconds(padded_pixels)

    def end(self) -> None:
        """The engine's process ends; the listener gets back what it held."""
        self.ready = False
        self.cancel()
        lost = self._in_flight.take_all(self._loop.time())
        self._queue.clear()
        assert self.listener is not None
        self.listener.batches_lost(lost[0] if lost else None, lost[1:])

    def begin(self) -> None:
        """The replacement is ready; it has the predictions of its predecessor."""
        self._in_flight = BatchesInFlight(self._loop.time(), self._service_time)
        self.ready = True
        assert self.listener is not None
        self.listener.engine_changed()

    def cancel(self) -> None:
        """Stops the running batch, which is never completed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self) -> None:
        took = self._run_time(self._queue[0][1])
        self._timer = self._loop.call_later(took.seconds + took.explaining, self._complete, took)

    def _complete(self, took: RunTime) -> None:
        self._timer = None
        batch_id, batch = self._queue.popleft()
        self.busy_seconds += took.seconds + took.explaining
        self.sizes.append(len(batch.jobs))
        self._on_complete(batch)
        _, seconds = self._in_flight.complete(batch_id, self._loop.time())
        self._in_flight.learn(batch, seconds, took.explaining)
        if self._queue:
            self._start()
        done = BatchDone(batch_id, 0.0, 0.0, 0.0, explain_ms=took.explaining * 1000)
        assert self.listener is not None
        self.listener.batch_done(batch, done)
