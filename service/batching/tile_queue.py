"""The waiting tiles of large images, which run after ordinary images.

    an engine is idle and no other image waits ----> a batch of tiles
    the first tile has waited for its patience ----> a batch of tiles, for a tenth of the time

A batch of tiles is small, because an image that arrives meanwhile waits for it: about 50 ms by the
predicted run time, and at least one tile. It has no other images, which would wait for the tiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from service.batching.queues import Batch, Bucket, Job, JobQueue

MAX_BATCH_SECONDS = 0.05
_TIME_PER_SHARE = 10  # while other images wait, tiles get one part of the time in so many


class TileQueue:
    """Tiles by bucket; within a bucket by urgency."""

    def __init__(self) -> None:
        """Starts empty."""
        self._queues: dict[Bucket, JobQueue] = {}  # none of them is empty
        self._next_share_at = -math.inf

    def __len__(self) -> int:
        """Number of waiting tiles."""
        return sum(map(len, self._queues.values()))

    def __contains__(self, job: Job) -> bool:
        """Whether a tile waits here."""
        return job in self._queues.get(job.bucket, ())

    @property
    def first_urgency(self) -> float:
        """Urgency of the first tile; infinite if there is none."""
        return min((queue.first_urgency for queue in self._queues.values()), default=math.inf)

    @property
    def oldest(self) -> float:
        """Earliest arrival; infinite if there is none."""
        return min((queue.oldest for queue in self._queues.values()), default=math.inf)

    @property
    def next_deadline(self) -> float:
        """The earliest deadline; infinite if there is none."""
        return min((queue.next_deadline for queue in self._queues.values()), default=math.inf)

    def add(self, job: Job, urgency: float) -> None:
        """Adds a tile behind those of the same urgency."""
        self._queues.setdefault(job.bucket, JobQueue()).add(job, urgency)

    def remove(self, job: Job) -> bool:
        """Removes a tile; returns False if it does not wait here."""
        queue = self._queues.get(job.bucket)
        removed = queue is not None and queue.remove(job)
        self._drop_if_empty(job.bucket)
        return removed

    def take_due(self, now: float) -> tuple[Job, ...]:
        """Removes and returns the tiles whose deadline is `now` or earlier."""
        due: list[Job] = []
        for bucket, queue in list(self._queues.items()):
            due += queue.take_due(now)
            self._drop_if_empty(bucket)
        return tuple(due)

    def is_due(self, now: float, others: float) -> bool:
        """Whether tiles run although other images may wait; only if there are tiles.

        Args:
            now: monotonic seconds.
            others: urgency of the first of the other images.
        """
        return now >= self._next_share_at and self.first_urgency <= min(now, others)

    def take_due_batch(
        self, now: float, capacity: Callable[[Bucket], int], seconds: Callable[[int], float]
    ) -> Batch:
        """As `take_batch`; the next tiles are due after several times its run time."""
        batch = self.take_batch(capacity, seconds)
        predicted = seconds(batch.padded_pixels) or MAX_BATCH_SECONDS
        self._next_share_at = now + _TIME_PER_SHARE * predicted
        return batch

    def take_batch(
        self, capacity: Callable[[Bucket], int], seconds: Callable[[int], float]
    ) -> Batch:
        """Removes and returns the next batch; only if a tile waits.

        Args:
            capacity: number of images of a bucket that fill a batch.
            seconds: predicted run time by padded pixels; 0 if unknown.
        """
        bucket = min(self._queues, key=lambda each: self._queues[each].first_urgency)
        pixels, count = bucket[0] * bucket[1], 1
        if seconds(pixels) > 0:
            while count < capacity(bucket) and seconds((count + 1) * pixels) <= MAX_BATCH_SECONDS:
                count += 1
        jobs = self._queues[bucket].take(count)
        self._drop_if_empty(bucket)
        return Batch(bucket, jobs)

    def _drop_if_empty(self, bucket: Bucket) -> None:
        if bucket in self._queues and not self._queues[bucket]:
            del self._queues[bucket]
