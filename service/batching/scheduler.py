"""Which images run next, together: the batching rules, without clock, threads or I/O.

Sits inside the batcher, which asks `plan` after every event and acts on what it says. The rules:

- Images of one bucket (padded size) form batches; a bucket depends on the image alone.
- A batch is full at `max_batch_size` images or `max_batch_pixels` padded pixels.
- An idle engine gets what waits at once, unless images are still being decoded that might join:
  then it waits for them, at most `max_wait_ms`, counted only while it idles.
- A busy engine has one batch staged ahead: a full one at once, another as late as the engine's
  predicted end allows (images that arrive meanwhile still join it).
- Among buckets the most urgent image decides. Urgency is the deadline, but nothing waits more
  than `patience_seconds` behind later arrivals, so no bucket and no far deadline starves. High
  priority is as urgent at once as patience makes everything in the end: it goes before whatever
  waits a shorter time, and starves nobody.
- A batch that must run again after a failure goes first, alone, as it was.
- What has expired is dropped when a batch forms, never sent; so is what a busy engine could not
  answer in time any more.
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
    """The limits that batches keep."""

    max_batch_size: int = 8
    max_batch_pixels: int = 8_000_000  # padded; a single image may pass it
    max_wait_ms: float = 2.0
    patience_seconds: float = 1.0  # after so long in the queue, first come is first served
    stage_lead_ms: float = 2.0  # a partial batch is staged this long before the engine's end

    def capacity(self, bucket: Bucket) -> int:
        """How many images of a bucket fill a batch."""
        return max(1, min(self.max_batch_size, self.max_batch_pixels // (bucket[0] * bucket[1])))


@dataclass(eq=False, slots=True)
class Job:
    """One image that waits for its turn; times are monotonic seconds."""

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
    engine_deaths: int = 0  # how many engines died while they ran these very images

    @property
    def padded_pixels(self) -> int:
        """What the batch costs: padding included."""
        return len(self.jobs) * self.bucket[0] * self.bucket[1]


def _unknown(_padded_pixels: int) -> float:
    return 0.0


class EngineState(NamedTuple):
    """What the scheduler needs to know of one engine; times are monotonic seconds."""

    in_flight: int  # batches that it has not answered yet
    idle_since: float  # when it last had none
    busy_until: float  # when it is predicted to have none; -inf where nobody can tell
    seconds: Callable[[int], float] = _unknown  # predicted, of a batch of so many padded pixels


class Plan(NamedTuple):
    """What to do now: send `batch`, or look again at `wake_at` or at the next event."""

    batch: Batch | None = None
    wake_at: float = math.inf
    expired: tuple[Job, ...] = ()


@dataclass(slots=True)
class _Queue:
    """One bucket's jobs, most urgent first, then first come."""

    jobs: list[Job] = field(default_factory=list)
    oldest: float = math.inf  # when the first of them came


class Scheduler:
    """The queues and the rules; every method returns at once."""

    def __init__(self, policy: BatchPolicy) -> None:
        """Starts with empty queues."""
        self.policy = policy
        self._queues: dict[Bucket, _Queue] = {}
        self._again: deque[Batch] = deque()
        self._depth = 0
        self._next_expiry = math.inf  # no waiting job expires before

    def __len__(self) -> int:
        """How many jobs wait, those to be run again included."""
        return self._depth + sum(len(batch.jobs) for batch in self._again)

    def urgency(self, job: Job) -> float:
        """The time by which a job should run: the smaller, the sooner."""
        if job.priority is Priority.HIGH:
            return min(job.deadline, job.enqueued_at)
        return min(job.deadline, job.enqueued_at + self.policy.patience_seconds)

    def count_before(self, priority: Priority) -> int:
        """How many jobs wait that one of this priority would not overtake if it came now."""
        if priority is Priority.NORMAL:
            return len(self)
        waiting = (job for queue in self._queues.values() for job in queue.jobs)
        high = sum(job.priority is Priority.HIGH for job in waiting)
        return high + sum(len(batch.jobs) for batch in self._again)

    def add(self, job: Job) -> None:
        """Queues a job in its bucket."""
        queue = self._queues.setdefault(job.bucket, _Queue())
        bisect.insort_right(queue.jobs, job, key=self.urgency)
        queue.oldest = min(queue.oldest, job.enqueued_at)
        self._next_expiry = min(self._next_expiry, job.deadline)
        self._depth += 1

    def requeue(self, jobs: Iterable[Job]) -> None:
        """Queues jobs again that an engine lost without having begun them."""
        for job in jobs:
            self.add(job)

    def retry(self, batches: Iterable[Batch]) -> None:
        """Puts batches before everything else, to run alone as they are."""
        for batch in batches:
            if batch.jobs:  # else all its callers went away meanwhile
                self._again.append(batch)
                self._next_expiry = min(self._next_expiry, *(job.deadline for job in batch.jobs))

    def remove(self, job: Job) -> bool:
        """Takes a job out; False where it does not wait (it runs, or it ran)."""
        queue = self._queues.get(job.bucket)
        if queue is not None and job in queue.jobs:
            queue.jobs.remove(job)
            self._settle(job.bucket, queue, 1)
            return True
        for index, batch in enumerate(self._again):
            if job in batch.jobs:
                left = tuple(other for other in batch.jobs if other is not job)
                if left:
                    self._again[index] = Batch(batch.bucket, left, batch.engine_deaths)
                else:
                    del self._again[index]
                return True
        return False

    def take_all(self) -> tuple[Job, ...]:
        """Empties every queue."""
        jobs = [job for queue in self._queues.values() for job in queue.jobs]
        jobs += [job for batch in self._again for job in batch.jobs]
        self._queues.clear()
        self._again.clear()
        self._depth = 0
        return tuple(jobs)

    def plan(self, now: float, engine: EngineState, num_decoding: int = 0) -> Plan:
        """Decides what an engine gets next.

        Args:
            now: monotonic seconds.
            engine: the engine; it takes at most one batch beside the one that runs.
            num_decoding: images that are still being decoded and may join soon.

        Returns:
            A batch to send, or when to ask again; and the jobs that expired, which are out of
            the queues and not in the batch.
        """
        expired = self._drop_expired(now)
        if engine.in_flight > 1 or not (self._queues or self._again):
            return Plan(expired=expired)
        if self._again:
            return Plan(self._again.popleft(), expired=expired)
        while self._queues:
            bucket, wake_at = self._choose(now, engine, num_decoding)
            if bucket is None:
                return Plan(wake_at=wake_at, expired=expired)
            hopeless = self._drop_hopeless(bucket, now, engine)
            if not hopeless:
                return Plan(self._form(bucket), expired=expired)
            expired += hopeless
        return Plan(expired=expired)

    def _choose(
        self, now: float, engine: EngineState, num_decoding: int
    ) -> tuple[Bucket | None, float]:
        """The bucket whose turn it is, or None and when to ask again."""
        by_urgency = sorted(self._queues, key=lambda b: self.urgency(self._queues[b].jobs[0]))
        if engine.in_flight:
            first = by_urgency[0]
            stage_at = engine.busy_until - self.policy.stage_lead_ms / 1000
            if self._is_full(first) or now >= stage_at:
                return first, math.inf
            return None, stage_at
        ripe_at = {bucket: self._ripe_at(bucket, engine, num_decoding) for bucket in by_urgency}
        for bucket in by_urgency:
            if now >= ripe_at[bucket]:
                return bucket, math.inf
        return None, min(ripe_at.values())

    def _ripe_at(self, bucket: Bucket, engine: EngineState, num_decoding: int) -> float:
        """When an idle engine may take a bucket."""
        if self._is_full(bucket) or not num_decoding:
            return -math.inf
        began = max(self._queues[bucket].oldest, engine.idle_since)
        return began + self.policy.max_wait_ms / 1000

    def _is_full(self, bucket: Bucket) -> bool:
        return len(self._queues[bucket].jobs) >= self.policy.capacity(bucket)

    def _drop_hopeless(self, bucket: Bucket, now: float, engine: EngineState) -> tuple[Job, ...]:
        """Takes out what a busy engine could not answer in time, not even if it went alone.

        An idle engine tries it nevertheless: a prediction that was too high would else never be
        corrected.
        """
        if not engine.in_flight:
            return ()
        end = max(now, engine.busy_until) + engine.seconds(bucket[0] * bucket[1])
        hopeless = tuple(job for job in self._queues[bucket].jobs if job.deadline < end)
        for job in hopeless:
            self.remove(job)
        return hopeless

    def _form(self, bucket: Bucket) -> Batch:
        queue = self._queues[bucket]
        count = self.policy.capacity(bucket)
        jobs, queue.jobs = tuple(queue.jobs[:count]), queue.jobs[count:]
        self._settle(bucket, queue, len(jobs))
        return Batch(bucket, jobs)

    def _settle(self, bucket: Bucket, queue: _Queue, taken: int) -> None:
        """Keeps count and the oldest arrival true after jobs left a queue."""
        self._depth -= taken
        if queue.jobs:
            queue.oldest = min(job.enqueued_at for job in queue.jobs)
        else:
            del self._queues[bucket]

    def _drop_expired(self, now: float) -> tuple[Job, ...]:
        """Takes out the jobs whose deadline has passed."""
        if now < self._next_expiry:
            return ()
        waiting = [job for queue in self._queues.values() for job in queue.jobs]
        waiting += [job for batch in self._again for job in batch.jobs]
        expired = tuple(job for job in waiting if job.deadline <= now)
        for job in expired:
            self.remove(job)
        left = (job.deadline for job in waiting if job.deadline > now)
        self._next_expiry = min(left, default=math.inf)
        return expired
