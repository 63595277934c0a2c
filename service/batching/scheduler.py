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
- Expired images are dropped when a batch is formed. So are images that a busy engine would complete
  after their deadline.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from service.ipc.slots import SlotLease
from service.types import Priority

Bucket = tuple[int, int]  # padded (height, width), pixels


@dataclass(frozen=True)
class BatchPolicy:
    """Limits of batches and waiting times."""

    max_batch_size: int = 8
    max_batch_pixels: int = 8_000_000  # padded; a single image may exceed it
    max_wait_ms: float = 2.0
    patience_seconds: float = 1.0  # waiting time after which images are served in arrival order
    stage_lead_ms: float = 2.0  # a partial batch is staged this long before the running one ends

    def capacity(self, bucket: Bucket) -> int:
        """Number of images of a bucket that fill a batch."""
        return max(1, min(self.max_batch_size, self.max_batch_pixels // (bucket[0] * bucket[1])))


@dataclass(eq=False, slots=True)
class Job:
    """One image in a slot, to be run; times are monotonic seconds."""

    lease: SlotLease
    bucket: Bucket
    enqueued_at: float
    deadline: float = math.inf
    image_pixels: int = 0  # without padding
    priority: Priority = Priority.NORMAL


@dataclass(frozen=True)
class Batch:
    """Images that run together."""

    bucket: Bucket
    jobs: tuple[Job, ...]
    engine_deaths: int = 0  # number of engines that ended while they ran these images

    @property
    def padded_pixels(self) -> int:
        """Number of pixels, padding included: the cost of the batch."""
        return len(self.jobs) * self.bucket[0] * self.bucket[1]


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


@dataclass(slots=True)
class _Queue:
    """The jobs of one bucket, by urgency, then by arrival."""

    jobs: list[Job] = field(default_factory=list)
    oldest: float = math.inf  # earliest arrival among `jobs`


class Scheduler:
    """The queues and the rules; no method blocks."""

    def __init__(self, policy: BatchPolicy) -> None:
        """Starts with empty queues."""
        self.policy = policy
        self._queues: dict[Bucket, _Queue] = {}
        self._retries: deque[Batch] = deque()
        self._depth = 0
        self._next_expiry = math.inf  # lower bound of the deadlines of all waiting jobs

    def __len__(self) -> int:
        """Number of waiting jobs, retries included."""
        return self._depth + sum(len(batch.jobs) for batch in self._retries)

    def urgency(self, job: Job) -> float:
        """The time by which a job should run; the smallest goes first."""
        if job.priority is Priority.HIGH:
            return min(job.deadline, job.enqueued_at)
        return min(job.deadline, job.enqueued_at + self.policy.patience_seconds)

    def count_before(self, priority: Priority) -> int:
        """Number of waiting jobs that a new job of this priority would not overtake."""
        if priority is Priority.NORMAL:
            return len(self)
        waiting = (job for queue in self._queues.values() for job in queue.jobs)
        high = sum(job.priority is Priority.HIGH for job in waiting)
        return high + sum(len(batch.jobs) for batch in self._retries)

    def add(self, job: Job) -> None:
        """Adds a job to the queue of its bucket."""
        queue = self._queues.setdefault(job.bucket, _Queue())
        bisect.insort_right(queue.jobs, job, key=self.urgency)
        queue.oldest = min(queue.oldest, job.enqueued_at)
        self._next_expiry = min(self._next_expiry, job.deadline)
        self._depth += 1

    def requeue(self, jobs: Iterable[Job]) -> None:
        """Adds jobs again that were staged on an engine that has ended."""
        for job in jobs:
            self.add(job)

    def retry(self, batches: Iterable[Batch]) -> None:
        """Puts batches before all queues, to run unchanged."""
        for batch in batches:
            if batch.jobs:  # empty if all its callers have gone
                self._retries.append(batch)
                self._next_expiry = min(self._next_expiry, *(job.deadline for job in batch.jobs))

    def remove(self, job: Job) -> bool:
        """Removes a waiting job; returns False if it is not waiting (it runs, or ran)."""
        queue = self._queues.get(job.bucket)
        if queue is not None and job in queue.jobs:
            queue.jobs.remove(job)
            self._after_removal(job.bucket, queue, 1)
            return True
        for index, batch in enumerate(self._retries):
            if job in batch.jobs:
                left = tuple(other for other in batch.jobs if other is not job)
                if left:
                    self._retries[index] = Batch(batch.bucket, left, batch.engine_deaths)
                else:
                    del self._retries[index]
                return True
        return False

    def clear(self) -> None:
        """Removes all waiting jobs."""
        self._queues.clear()
        self._retries.clear()
        self._depth = 0

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
        if engine.in_flight > 1 or not (self._queues or self._retries):
            return Plan(expired=expired)
        if self._retries:
            return Plan(self._retries.popleft(), expired=expired)
        while self._queues:
            bucket, wake_at = self._choose_bucket(now, engine, num_decoding)
            if bucket is None:
                return Plan(wake_at=wake_at, expired=expired)
            too_late = self._remove_too_late(bucket, now, engine)
            if not too_late:
                return Plan(self._form_batch(bucket), expired=expired)
            expired += too_late
        return Plan(expired=expired)

    def _choose_bucket(
        self, now: float, engine: EngineState, num_decoding: int
    ) -> tuple[Bucket | None, float]:
        """The bucket to run next, or None and when to call again."""
        by_urgency = sorted(self._queues, key=lambda b: self.urgency(self._queues[b].jobs[0]))
        if engine.in_flight:
            first = by_urgency[0]
            stage_at = engine.busy_until - self.policy.stage_lead_ms / 1000
            if self._is_full(first) or now >= stage_at:
                return first, math.inf
            return None, stage_at
        start_at = {bucket: self._start_at(bucket, engine, num_decoding) for bucket in by_urgency}
        for bucket in by_urgency:
            if now >= start_at[bucket]:
                return bucket, math.inf
        return None, min(start_at.values())

    def _start_at(self, bucket: Bucket, engine: EngineState, num_decoding: int) -> float:
        """When an idle engine may run a bucket's images."""
        if self._is_full(bucket) or not num_decoding:
            return -math.inf
        waiting_since = max(self._queues[bucket].oldest, engine.idle_since)
        return waiting_since + self.policy.max_wait_ms / 1000

    def _is_full(self, bucket: Bucket) -> bool:
        return len(self._queues[bucket].jobs) >= self.policy.capacity(bucket)

    def _remove_too_late(self, bucket: Bucket, now: float, engine: EngineState) -> tuple[Job, ...]:
        """Removes jobs that a busy engine would complete after their deadline, even if run alone.

        An idle engine runs them nevertheless; otherwise a prediction that is too high would never
        be corrected.
        """
        if not engine.in_flight:
            return ()
        end = max(now, engine.busy_until) + engine.seconds(bucket[0] * bucket[1])
        too_late = tuple(job for job in self._queues[bucket].jobs if job.deadline < end)
        for job in too_late:
            self.remove(job)
        return too_late

    def _form_batch(self, bucket: Bucket) -> Batch:
        queue = self._queues[bucket]
        count = self.policy.capacity(bucket)
        jobs, queue.jobs = tuple(queue.jobs[:count]), queue.jobs[count:]
        self._after_removal(bucket, queue, len(jobs))
        return Batch(bucket, jobs)

    def _after_removal(self, bucket: Bucket, queue: _Queue, removed: int) -> None:
        """Updates the count and the oldest arrival after jobs were removed from a queue."""
        self._depth -= removed
        if queue.jobs:
            queue.oldest = min(job.enqueued_at for job in queue.jobs)
        else:
            del self._queues[bucket]

    def _remove_expired(self, now: float) -> tuple[Job, ...]:
        if now < self._next_expiry:
            return ()
        waiting = [job for queue in self._queues.values() for job in queue.jobs]
        waiting += [job for batch in self._retries for job in batch.jobs]
        expired = tuple(job for job in waiting if job.deadline <= now)
        for job in expired:
            self.remove(job)
        left = (job.deadline for job in waiting if job.deadline > now)
        self._next_expiry = min(left, default=math.inf)
        return expired
