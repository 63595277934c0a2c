"""Predicts how long a new image would wait for its batch, and how long that batch would run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from service.batching.engine_protocol import Engine
from service.batching.estimates import ArrivalRate
from service.batching.scheduler import Batch, Bucket, Scheduler
from service.types import Priority


class Prediction(NamedTuple):
    """Predicted times of a new image, in seconds; zeros before the first batch."""

    wait: float  # until its batch begins
    run: float  # of that batch


class WaitPredictor:
    """Predicts from the queues, the engines' batches in flight and the arrival rate."""

    def __init__(self, scheduler: Scheduler, engines: Sequence[Engine]) -> None:
        """Starts without data.

        Args:
            scheduler: its queues are read.
            engines: their states are read.
        """
        self._scheduler = scheduler
        self._engines = engines
        self._arrivals = ArrivalRate()
        self._typical_bucket: Bucket | None = None  # that of the last batch

    def record_arrival(self, now: float) -> None:
        """Records that an image was queued; `now` is in monotonic seconds."""
        self._arrivals.record(now)

    def record_batch(self, batch: Batch) -> None:
        """Records a batch that was sent to an engine."""
        self._typical_bucket = batch.bucket

    def predict(self, now: float, priority: Priority, num_decoding: int) -> Prediction:
        """Predicts the times of an image that arrives now.

        Args:
            now: monotonic seconds.
            priority: of the image.
            num_decoding: number of images being decoded, which will be queued before it.
        """
        engines = [engine for engine in self._engines if engine.ready]
        if not engines or self._typical_bucket is None:
            return Prediction(0.0, 0.0)
        first = min(engines, key=lambda engine: engine.state.busy_until)
        running = max(0.0, first.state.busy_until - now)
        before = self._scheduler.count_before(priority) + num_decoding
        bucket, capacity = self._typical_bucket, self._scheduler.policy.capacity
        pixels, most = bucket[0] * bucket[1], capacity(bucket)
        # The image joins the last batch of those that wait; the full batches run before it.
        full, rest = divmod(before, most)
        wait = running + full * first.predicted_seconds(most * pixels) / len(engines)
        # Images that arrive before its batch begins join the batch and make it longer.
        joining = wait * self._arrivals.per_second(now) / len(engines)
        images = min(most, rest + 1 + round(joining))
        return Prediction(wait, first.predicted_seconds(images * pixels))
