"""The files that wait for a decoder process, by urgency.

The order is that of the batches (`service.batching.scheduler`): the earliest deadline first, but an
image of high priority is urgent on arrival and others are after their patience, so that none
starves. A long queue of images that have all lost their patience does not delay those of high
priority either: between two that overtake one of high priority, one of high priority is decoded.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

from service.decoding.tasks import Task
from service.types import Priority

_MIN_HEAP = 64  # a heap is not cleaned up below this size


class _Entry(NamedTuple):
    """A task in a heap; `number` is unique, so that tasks are never compared."""

    urgency: float
    number: int
    task: Task


class TaskQueue:
    """Waiting tasks; each operation takes logarithmic time."""

    def __init__(self) -> None:
        """Starts empty."""
        self._heaps: dict[Priority, list[_Entry]] = {priority: [] for priority in Priority}
        self._waiting: dict[Task, Priority] = {}  # entries of other tasks are skipped
        self._last_number = 0
        self._overtaken = False  # whether the last task overtook one of high priority

    def __len__(self) -> int:
        """Number of waiting tasks."""
        return len(self._waiting)

    def add(self, task: Task) -> None:
        """Adds a task behind those of the same urgency."""
        heap = self._heaps[task.turn.priority]
        if len(heap) > max(_MIN_HEAP, 2 * len(self._waiting)):
            heap[:] = [entry for entry in heap if entry.task in self._waiting]
            heapq.heapify(heap)
        self._last_number += 1
        self._waiting[task] = task.turn.priority
        heapq.heappush(heap, _Entry(task.turn.urgency, self._last_number, task))

    def remove(self, task: Task) -> bool:
        """Removes a task; returns False if it does not wait."""
        return self._waiting.pop(task, None) is not None

    def take(self) -> Task:
        """Removes and returns the next task; only if there is one."""
        high, normal = self._first(Priority.HIGH), self._first(Priority.NORMAL)
        if high is None or normal is None:
            entry, self._overtaken = high or normal, False
        else:
            entry = high if self._overtaken else min(high, normal)
            self._overtaken = entry is normal
        assert entry is not None, "no task waits"
        heapq.heappop(self._heaps[entry.task.turn.priority])
        del self._waiting[entry.task]
        return entry.task

    def clear(self) -> list[Task]:
        """Removes and returns all tasks."""
        tasks = list(self._waiting)
        self._waiting.clear()
        for heap in self._heaps.values():
            heap.clear()
        return tasks

    def _first(self, priority: Priority) -> _Entry | None:
        heap = self._heaps[priority]
        while heap and heap[0].task not in self._waiting:
            heapq.heappop(heap)
        return heap[0] if heap else None
