"""The waiting jobs: one queue per bucket, and the batches that are retried.

Jobs leave a queue in three ways: in a batch, when their deadline passes, or when their caller has
gone. Each costs logarithmic time per job, and one pass over the queue if many leave at once, so
that thousands of jobs that expire or are cancelled together do not block the event loop.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort_right
from collections import OrderedDict
from collections.abc import Container
from dataclasses import dataclass
from typing import NamedTuple

from service.ipc.messages import ExplainRequest
from service.ipc.slot_pool import SlotLease
from service.types import Priority

Bucket = tuple[int, int]  # padded (height, width), pixels

PATIENCE_SECONDS = 1.0  # waiting time after which images are served in order of arrival
_MANY = 16  # jobs are removed one by one if the queue is more than this many times longer
_MIN_HEAP = 64  # a heap of deadlines is not cleaned up below this size


@dataclass(eq=False, slots=True)
class Job:
    """One image in a slot, to be run; times are monotonic seconds."""

    lease: SlotLease
    bucket: Bucket
    enqueued_at: float
    deadline: float = math.inf
    image_pixels: int = 0  # without padding
    priority: Priority = Priority.NORMAL
    explain: ExplainRequest | None = None  # the detection to explain, if any; then it runs alone
    is_tile: bool = False  # of a large image: runs after ordinary images


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

    @property
    def has_tiles(self) -> bool:
        """Whether its images are tiles."""
        return any(job.is_tile for job in self.jobs)

    @property
    def explains(self) -> bool:
        """Whether a detection is explained, which takes additional time."""
        return any(job.explain is not None for job in self.jobs)


def urgency_of(
    priority: Priority,
    arrived_at: float,
    deadline: float,
    patience_seconds: float = PATIENCE_SECONDS,
) -> float:
    """Returns the time by which an image should be served; the smallest goes first.

    Args:
        priority: high: the image is urgent on arrival.
        arrived_at: monotonic seconds.
        deadline: monotonic seconds.
        patience_seconds: waiting time after which an image of normal priority is urgent.
    """
    if priority is Priority.HIGH:
        patience_seconds = 0.0
    return min(deadline, arrived_at + patience_seconds)


class _Entry(NamedTuple):
    """A job in a sorted list or a heap; `number` is unique, so that jobs are never compared."""

    key: float
    number: int
    job: Job


class JobQueue:
    """The waiting jobs of one bucket, by urgency, then by arrival."""

    def __init__(self) -> None:
        """Starts empty."""
        self._order: list[_Entry] = []  # by urgency
        self._entries: dict[Job, _Entry] = {}  # those of `_order`
        self._deadlines: list[_Entry] = []  # a heap; entries of jobs that left are skipped
        self._last_number = 0

    def __len__(self) -> int:
        """Number of waiting jobs."""
        return len(self._order)

    def __contains__(self, job: Job) -> bool:
        """Whether a job waits here."""
        return job in self._entries

    @property
    def first_urgency(self) -> float:
        """Urgency of the first job; only if there is one."""
        return self._order[0].key

    @property
    def oldest(self) -> float:
        """Earliest arrival; takes time in proportion to the number of jobs."""
        return min((job.enqueued_at for job in self._entries), default=math.inf)

    @property
    def next_deadline(self) -> float:
        """The earliest deadline; infinite if there is none."""
        while self._deadlines and not self._is_waiting(self._deadlines[0]):
            heapq.heappop(self._deadlines)
        return self._deadlines[0].key if self._deadlines else math.inf

    def add(self, job: Job, urgency: float) -> None:
        """Adds a job behind all those of the same urgency; the smallest urgency is first."""
        self._last_number += 1
        entry = self._entries[job] = _Entry(urgency, self._last_number, job)
        insort_right(self._order, entry)
        if job.deadline < math.inf:
            if len(self._deadlines) > max(_MIN_HEAP, 2 * len(self._order)):
                self._deadlines = [item for item in self._deadlines if self._is_waiting(item)]
                heapq.heapify(self._deadlines)
            heapq.heappush(self._deadlines, _Entry(job.deadline, self._last_number, job))

    def remove(self, job: Job) -> bool:
        """Removes a job; returns False if it does not wait here."""
        entry = self._entries.pop(job, None)
        if entry is None:
            return False
        del self._order[bisect_left(self._order, entry)]
        return True

    def take(self, count: int) -> tuple[Job, ...]:
        """Removes and returns the first `count` jobs."""
        taken = tuple(entry.job for entry in self._order[:count])
        del self._order[:count]
        for job in taken:
            del self._entries[job]
        return taken

    def take_due(self, now: float) -> tuple[Job, ...]:
        """Removes and returns the jobs whose deadline is `now` or earlier, earliest first."""
        due = []
        while self._deadlines and self._deadlines[0].key <= now:
            item = heapq.heappop(self._deadlines)
            if self._is_waiting(item):
                due.append(item.job)
        if len(due) * _MANY < len(self._order):
            for job in due:
                self.remove(job)
        elif due:
            for job in due:
                del self._entries[job]
            self._order = [entry for entry in self._order if entry.job in self._entries]
        return tuple(due)

    def _is_waiting(self, item: _Entry) -> bool:
        entry = self._entries.get(item.job)
        return entry is not None and entry.number == item.number


class RetryQueue:
    """Batches that run again unchanged, in order."""

    def __init__(self) -> None:
        """Starts empty."""
        self._batches: OrderedDict[int, Batch] = OrderedDict()
        self._numbers: dict[Job, int] = {}  # keys of `_batches`
        self._last_number = 0

    def __len__(self) -> int:
        """Number of waiting jobs."""
        return len(self._numbers)

    def __contains__(self, job: Job) -> bool:
        """Whether a job waits here."""
        return job in self._numbers

    @property
    def next_deadline(self) -> float:
        """The earliest deadline; infinite if there is none."""
        return min((job.deadline for job in self._numbers), default=math.inf)

    def add(self, batch: Batch) -> None:
        """Adds a batch behind the others."""
        self._last_number += 1
        self._batches[self._last_number] = batch
        self._numbers.update(dict.fromkeys(batch.jobs, self._last_number))

    def take(self) -> Batch:
        """Removes and returns the first batch; only if there is one."""
        _, batch = self._batches.popitem(last=False)
        for job in batch.jobs:
            del self._numbers[job]
        return batch

    def remove(self, job: Job) -> bool:
        """Removes a job from its batch; returns False if it does not wait here."""
        number = self._numbers.get(job)
        if number is None:
            return False
        self._drop(number, (job,))
        return True

    def take_due(self, now: float) -> tuple[Job, ...]:
        """Removes and returns the jobs whose deadline is `now` or earlier."""
        due = tuple(job for job in self._numbers if job.deadline <= now)
        dropped = set(due)
        for number in {self._numbers[job] for job in due}:
            self._drop(number, dropped)
        return due

    def _drop(self, number: int, dropped: Container[Job]) -> None:
        """Removes jobs from a batch, and the batch if none is left."""
        batch = self._batches[number]
        left = tuple(job for job in batch.jobs if job not in dropped)
        if left:
            self._batches[number] = Batch(batch.bucket, left, batch.engine_deaths)
        else:
            del self._batches[number]
        for job in batch.jobs:
            if job in dropped:
                del self._numbers[job]
