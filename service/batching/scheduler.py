"""The batching rules: which images run next, together. No clock, threads or I/O.

The batcher calls `plan` after every event and sends what it returns. The rules:

- Images of one bucket (padded size) form batches; the bucket depends only on the image.
- A batch is full at `max_batch_size` images or `max_batch_pixels` padded pixels.
- An idle engine gets the waiting images at once, unless other images are being decoded that may
  join: then it waits for them, at most `max_wait_ms`, counted only while it is idle.
- A busy engine has one batch staged: a full one at once, a partial one shortly before the predicted
  end of the running batch (images that arrive in the meantime join it).
- The most urgent image decides which bucket is next. Urgency is the deadline, but at most
  `patience_seconds` after arrival, so that no bucket and no distant deadline starves. An image of
  high priority is urgent on arrival: it overtakes images that have waited less than their patience.
- A batch that is retried after a failure goes first, unchanged.
- An image with a detection to explain runs alone, on an idle engine, when no other image waits: it
  takes longer than others and is never urgent.
- Tiles of large images run in small batches of their own, on an idle engine when no other image
  waits. After their patience they get a share of a busy engine (`service.batching.tile_queue`).
- Expired images are dropped when a batch is formed. So are images that a busy engine would complete
  after their deadline.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from service.batching.queues import (
    PATIENCE_SECONDS,
    Batch,
    Bucket,
    Job,
    JobQueue,
    RetryQueue,
    urgency_of,
)
from service.batching.tile_queue import TileQueue
from service.types import Priority

__all__ = ["Batch", "BatchPolicy", "Bucket", "EngineState", "Job", "Plan", "Scheduler"]


@dataclass(frozen=True)
class BatchPolicy:
    """Limits of batches and waiting times."""

    max_batch_size: int = 8
    max_batch_pixels: int = 8_000_000  # padded; a single image may exceed it
    max_wait_ms: float = 2.0
    patience_seconds: float = PATIENCE_SECONDS
    stage_lead_ms: float = 2.0  # a partial batch is staged this long before the running one ends

    def capacity(self, bucket: Bucket) -> int:
        """Number of images of a bucket that fill a batch."""
        return max(1, min(self.max_batch_size, self.max_batch_pixels // (bucket[0] * bucket[1])))


def _unknown(_padded_pixels: int) -> float:
    return 0.0


class EngineState(NamedTuple):
    """The state of one engine, as far as the scheduler needs it; times are monotonic seconds."""

    in_flight: int  # batches that it has not completed
    idle_since: float  # when it last became idle
    busy_until: float  # predicted end of all its batches; -inf if unknown
    seconds: Callable[[int], float] = _unknown  # predicted run time by padded pixels


class Plan(NamedTuple):
    """The decision: send `batch`, or call `plan` again at `wake_at` or at the next event."""

    batch: Batch | None = None
    wake_at: float = math.inf
    expired: tuple[Job, ...] = ()


class Scheduler:
    """The queues and the rules; no method blocks."""

    def __init__(self, policy: BatchPolicy) -> None:
        """Starts with empty queues."""
        self.policy = policy
        self._queues: dict[Bucket, JobQueue] = {}  # none of them is empty
        self._explained = JobQueue()  # jobs that run alone, after all others; by deadline
        self._tiles = TileQueue()
        self._retries = RetryQueue()
        self._depth = 0  # jobs in `_queues`
        self._num_high = 0  # those of high priority
        self._next_expiry = math.inf  # lower bound of the deadlines of all waiting jobs

    def __len__(self) -> int:
        """Number of waiting jobs, retries included."""
        return self._depth + len(self._retries) + len(self._explained) + len(self._tiles)

    def __contains__(self, job: Job) -> bool:
        """Whether a job is waiting."""
        if job in (self._explained if job.explain is not None else self._tiles):
            return True
        return job in self._queues.get(job.bucket, ()) or job in self._retries

    def urgency(self, job: Job) -> float:
        """The time by which a job should run; the smallest goes first."""
        patience = self.policy.patience_seconds
        priority = Priority.NORMAL if job.is_tile else job.priority
        return urgency_of(priority, job.enqueued_at, job.deadline, patience)

    def count_before(self, priority: Priority) -> int:
        """Number of waiting jobs that a new job of this priority would not overtake."""
        waiting = self._depth if priority is Priority.NORMAL else self._num_high
        return waiting + len(self._retries)

    def add(self, job: Job) -> None:
        """Adds a job to the queue of its bucket, or to that of jobs that run alone."""
        self._next_expiry = min(self._next_expiry, job.deadline)
        if job.explain is not None:
            self._explained.add(job, job.deadline)
            return
        if job.is_tile:
            self._tiles.add(job, self.urgency(job))
            return
        queue = self._queues.get(job.bucket)
        if queue is None:
            queue = self._queues[job.bucket] = JobQueue()
        queue.add(job, self.urgency(job))
        self._depth += 1
        self._num_high += job.priority is Priority.HIGH

    def requeue(self, jobs: Iterable[Job]) -> None:
        """Adds jobs again that were staged on an engine that has ended."""
        for job in jobs:
            self.add(job)

    def retry(self, batches: Iterable[Batch]) -> None:
        """Puts batches before all queues, to run unchanged."""
        for batch in batches:
            if batch.jobs:  # empty if all its callers have gone
                self._retries.add(batch)
                self._next_expiry = min(self._next_expiry, *(job.deadline for job in batch.jobs))

    def remove(self, job: Job) -> bool:
        """Removes a waiting job; returns False if it is not waiting (it runs, or ran)."""
        if job.explain is not None and self._explained.remove(job):
            return True
        if job.is_tile and self._tiles.remove(job):
            return True
        queue = self._queues.get(job.bucket)
        if queue is not None and queue.remove(job):
            self._after_removal(job.bucket, (job,))
            return True
        return self._retries.remove(job)

    def clear(self) -> None:
        """Removes all waiting jobs."""
        self._queues.clear()
        self._explained, self._tiles, self._retries = JobQueue(), TileQueue(), RetryQueue()
        self._depth = self._num_high = 0

    def plan(self, now: float, engine: EngineState, num_decoding: int = 0) -> Plan:
        """Decides what an engine gets next.

        Args:
            now: monotonic seconds.
            engine: state of the engine, which holds one running and at most one staged batch.
            num_decoding: number of images being decoded, which may join soon.

        Returns:
            A batch to send, or when to call again; and the expired jobs, which have been removed
            from the queues.
        """
        expired = self._remove_expired(now)
        if engine.in_flight > 1 or not len(self):
            return Plan(expired=expired)
        if self._retries:
            return Plan(self._retries.take(), expired=expired)
        if self._tiles and self._tiles.is_due(now, self._first_urgency()):
            batch = self._tiles.take_due_batch(now, self.policy.capacity, engine.seconds)
            return Plan(batch, expired=expired)
        while self._queues:
            bucket, wake_at = self._choose_bucket(now, engine, num_decoding)
            if bucket is None:
                return Plan(wake_at=wake_at, expired=expired)
            too_late = self._remove_too_late(bucket, now, engine)
            if not too_late:
                return Plan(self._form_batch(bucket), expired=expired)
            expired += too_late
        return self._plan_last(now, engine, num_decoding)._replace(expired=expired)

    def _plan_last(self, now: float, engine: EngineState, num_decoding: int) -> Plan:
        """The plan for tiles and for an image that runs alone, where no other image waits."""
        queue = self._tiles or self._explained
        if engine.in_flight or not queue:
            return Plan()
        start_at = self._start_at(queue.oldest, engine) if num_decoding else -math.inf
        if now < start_at:
            return Plan(wake_at=start_at)
        if self._tiles:
            return Plan(self._tiles.take_batch(self.policy.capacity, engine.seconds))
        (job,) = self._explained.take(1)
        return Plan(Batch(job.bucket, (job,)))

    def _first_urgency(self) -> float:
        """Urgency of the first ordinary image; infinite if there is none."""
        return min((queue.first_urgency for queue in self._queues.values()), default=math.inf)

    def _choose_bucket(
        self, now: float, engine: EngineState, num_decoding: int
    ) -> tuple[Bucket | None, float]:
        """The bucket to run next, or None and when to call again."""
        by_urgency = sorted(self._queues, key=lambda b: self._queues[b].first_urgency)
        if engine.in_flight:
            first = by_urgency[0]
            stage_at = engine.busy_until - self.policy.stage_lead_ms / 1000
            if self._is_full(first) or now >= stage_at:
                return first, math.inf
            return None, stage_at
        start_at = {}
        for bucket in by_urgency:
            at_once = self._is_full(bucket) or not num_decoding
            start_at[bucket] = (
                -math.inf if at_once else self._start_at(self._queues[bucket].oldest, engine)
            )
            if now >= start_at[bucket]:
                return bucket, math.inf
        return None, min(start_at.values())

    def _start_at(self, oldest: float, engine: EngineState) -> float:
        """When an idle engine runs a queue's images although others are being decoded.

        Args:
            oldest: earliest arrival in the queue.
            engine: that is idle.
        """
        waiting_since = max(oldest, engine.idle_since)
        return waiting_since + self.policy.max_wait_ms / 1000

    def _is_full(self, bucket: Bucket) -> bool:
        return len(self._queues[bucket]) >= self.policy.capacity(bucket)

    def _remove_too_late(self, bucket: Bucket, now: float, engine: EngineState) -> tuple[Job, ...]:
        """Removes jobs that a busy engine would complete after their deadline, even if run alone.

        An idle engine runs them nevertheless; otherwise a prediction that is too high would never
        be corrected.
        """
        if not engine.in_flight:
            return ()
        end = max(now, engine.busy_until) + engine.seconds(bucket[0] * bucket[1])
        too_late = self._queues[bucket].take_due(math.nextafter(end, -math.inf))
        self._after_removal(bucket, too_late)
        return too_late

    def _form_batch(self, bucket: Bucket) -> Batch:
        jobs = self._queues[bucket].take(self.policy.capacity(bucket))
        self._after_removal(bucket, jobs)
        return Batch(bucket, jobs)

    def _after_removal(self, bucket: Bucket, jobs: tuple[Job, ...]) -> None:
        """Updates the counts after jobs were removed from a queue; drops an empty queue."""
        self._depth -= len(jobs)
        self._num_high -= sum(job.priority is Priority.HIGH for job in jobs)
        if not self._queues[bucket]:
            del self._queues[bucket]

    def _remove_expired(self, now: float) -> tuple[Job, ...]:
        if now < self._next_expiry:
            return ()
        expired: list[Job] = []
        for bucket, queue in list(self._queues.items()):
            due = queue.take_due(now)
            self._after_removal(bucket, due)
            expired += due
        last = (self._explained, self._tiles, self._retries)
        for others in last:
            expired += others.take_due(now)
        left = [queue.next_deadline for queue in self._queues.values()]
        self._next_expiry = min([*left, *(others.next_deadline for others in last)])
        return tuple(expired)
