"""The batches that one engine holds: the running one and the staged one, with their start times."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from service.batching.estimates import BusyShare, ServiceTime
from service.batching.scheduler import Batch, EngineState


class UnexpectedBatch(ValueError):
    """A reply to a batch that is not the running one."""


@dataclass(slots=True)
class _Item:
    """A batch in flight; `began_at` is when the engine could start it, monotonic seconds."""

    batch_id: int
    batch: Batch
    began_at: float


class BatchesInFlight:
    """The batches of one engine in execution order; times are monotonic seconds."""

    def __init__(self, now: float, service_time: ServiceTime | None = None) -> None:
        """Starts empty.

        Args:
            now: monotonic seconds.
            service_time: learned from earlier engines on the same device.
        """
        self._items: deque[_Item] = deque()
        self._last_id = 0
        self._idle_since = now
        self._busy_share = BusyShare(now)
        self._service_time = service_time or ServiceTime()
        self._state: EngineState | None = None  # cached until something changes

    def __len__(self) -> int:
        """Number of batches in flight."""
        return len(self._items)

    def state(self) -> EngineState:
        """The engine's state, for the scheduler."""
        if self._state is None:
            self._state = EngineState(
                len(self._items), self._idle_since, self._predicted_end(), self.predicted_seconds
            )
        return self._state

    @property
    def running(self) -> Batch | None:
        """The batch that the engine is running."""
        return self._items[0].batch if self._items else None

    def busy_share(self, now: float) -> float:
        """The share of the recent time in which the engine held batches, 0 to 1."""
        return self._busy_share.value(now)

    def add(self, batch: Batch, now: float) -> int:
        """Adds a batch that is being sent to the engine; returns its id."""
        self._state = None
        self._last_id += 1
        if not self._items:
            self._busy_share.change(True, now)
        self._items.append(_Item(self._last_id, batch, now))
        return self._last_id

    def complete(self, batch_id: int, now: float) -> tuple[Batch, float]:
        """Removes the running batch after the engine's reply.

        Returns:
            The batch and its run time in seconds, without the time it was staged.

        Raises:
            UnexpectedBatch: if another batch is running.
        """
        if not self._items or self._items[0].batch_id != batch_id:
            raise UnexpectedBatch(f"a reply to batch {batch_id}, which is not the running one")
        self._state = None
        item = self._items.popleft()
        if self._items:
            self._items[0].began_at = now
        else:
            self._idle_since = now
            self._busy_share.change(False, now)
        return item.batch, now - item.began_at

    def learn(self, batch: Batch, seconds: float, explain_seconds: float = 0.0) -> None:
        """Updates the predictions with the run time of a successful batch.

        Args:
            batch: that an engine completed.
            seconds: its run time.
            explain_seconds: the part of it in which a detection was explained.
        """
        self._state = None
        if batch.explains:
            self._service_time.learn_explanation(explain_seconds)
        self._service_time.learn(batch.padded_pixels, max(0.0, seconds - explain_seconds))

    def take_all(self, now: float) -> tuple[Batch, ...]:
        """Removes and returns all batches; used when the engine has ended."""
        self._state = None
        lost = tuple(item.batch for item in self._items)
        self._items.clear()
        self._idle_since = now
        self._busy_share.change(False, now)
        return lost

    def predicted_seconds(self, padded_pixels: int) -> float:
        """Predicted run time of a batch of so many padded pixels; 0 before the first batch."""
        return self._service_time.predict(padded_pixels)

    def _predicted_end(self) -> float:
        if not self._items or not self._service_time.known:
            return -math.inf
        return self._items[0].began_at + sum(self._seconds_of(item.batch) for item in self._items)

    def _seconds_of(self, batch: Batch) -> float:
        pixels, times = batch.padded_pixels, self._service_time
        seconds = times.predict(pixels)
        return seconds + times.predict_explanation(pixels) if batch.explains else seconds
