"""What one engine holds: the batch that it runs and the one staged behind, with their times."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from service.batching.estimates import ServiceTime
from service.batching.scheduler import Batch, EngineState


class UnexpectedBatch(ValueError):
    """An answer to a batch that is not the one that runs."""


@dataclass(slots=True)
class _Item:
    """A batch in flight; `began_at` is when the engine could begin it, monotonic seconds."""

    batch_id: int
    batch: Batch
    began_at: float


class BatchesInFlight:
    """The batches of one engine, in the order that it runs them; times are monotonic seconds."""

    def __init__(self, now: float, service_time: ServiceTime | None = None) -> None:
        """An engine without batches.

        Args:
            now: monotonic seconds.
            service_time: what engines before it on the same device taught.
        """
        self._items: deque[_Item] = deque()
        self._last_id = 0
        self._idle_since = now
        self._service_time = service_time or ServiceTime()
        self._state: EngineState | None = None  # until something changes

    def __len__(self) -> int:
        """How many batches are in flight."""
        return len(self._items)

    def state(self) -> EngineState:
        """For the scheduler."""
        if self._state is None:
            self._state = EngineState(
                len(self._items), self._idle_since, self._predicted_end(), self.predicted_seconds
            )
        return self._state

    @property
    def running(self) -> Batch | None:
        """The batch that the engine runs now."""
        return self._items[0].batch if self._items else None

    def add(self, batch: Batch, now: float) -> int:
        """Notes a batch that is sent; returns its id."""
        self._state = None
        self._last_id += 1
        self._items.append(_Item(self._last_id, batch, now))
        return self._last_id

    def answered(self, batch_id: int, now: float) -> tuple[Batch, float]:
        """Notes the answer to a batch.

        Returns:
            The batch and how long the engine had it, seconds, waiting for others excluded.

        Raises:
            UnexpectedBatch: where another batch runs.
        """
        if not self._items or self._items[0].batch_id != batch_id:
            raise UnexpectedBatch(f"an answer to batch {batch_id}, which is not its turn")
        self._state = None
        item = self._items.popleft()
        if self._items:
            self._items[0].began_at = now
        else:
            self._idle_since = now
        return item.batch, now - item.began_at

    def learn(self, batch: Batch, seconds: float) -> None:
        """Takes in how long a batch that went well took."""
        self._state = None
        self._service_time.learn(batch.padded_pixels, seconds)

    def take_all(self, now: float) -> tuple[Batch, ...]:
        """The batches that will not be answered; none is in flight afterwards."""
        self._state = None
        lost = tuple(item.batch for item in self._items)
        self._items.clear()
        self._idle_since = now
        return lost

    def predicted_seconds(self, padded_pixels: int) -> float:
        """Seconds for one batch of so many padded pixels; 0 where nothing was learned yet."""
        return self._service_time.predict(padded_pixels)

    def _predicted_end(self) -> float:
        if not self._items or not self._service_time.known:
            return -math.inf
        seconds = (self._service_time.predict(item.batch.padded_pixels) for item in self._items)
        return self._items[0].began_at + sum(seconds)
