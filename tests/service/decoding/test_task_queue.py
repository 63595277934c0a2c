"""The order in which images are decoded, compared with a list."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batching.queues import urgency_of
from service.decoding.task_queue import TaskQueue
from service.decoding.tasks import Task, Turn
from service.types import Priority

HIGH, NORMAL = Priority.HIGH, Priority.NORMAL


def _task(priority: Priority = NORMAL, at: float = 0.0, deadline: float = 1e9) -> Task:
    turn = Turn(priority, urgency_of(priority, at, deadline))
    return Task((), 0, b"", cast(Any, None), turn=turn)


def _take_all(queue: TaskQueue) -> list[Task]:
    return [queue.take() for _ in range(len(queue))]


def _filled(tasks: list[Task]) -> TaskQueue:
    queue = TaskQueue()
    for task in tasks:
        queue.add(task)
    return queue


def test_images_of_one_priority_are_decoded_in_order_of_arrival() -> None:
    tasks = [_task(at=number / 10) for number in range(5)]
    assert _take_all(_filled(tasks)) == tasks


def test_a_shorter_deadline_goes_first() -> None:
    tasks = [_task(deadline=5), _task(deadline=0.5)]
    assert _take_all(_filled(tasks)) == [tasks[1], tasks[0]]


def test_high_priority_goes_before_images_that_have_waited_less_than_their_patience() -> None:
    normal, high = [_task(at=0.1) for _ in range(30)], _task(HIGH, at=0.9)
    assert _filled([*normal, high]).take() is high


def test_many_images_of_high_priority_do_not_starve_others() -> None:
    normal = _task(at=0.0)
    queue, now, taken = _filled([normal]), 0.0, None
    while taken is not normal:
        queue.add(_task(HIGH, at=now))
        taken = queue.take()
        now += 0.1
    assert 1.0 <= now <= 1.3


@pytest.mark.parametrize("at", [0.0, 0.5, 2.0, 29.0])
def test_an_old_queue_delays_high_priority_by_one_image(at: float) -> None:
    normal = [_task() for _ in range(30)]
    high = [_task(HIGH, at=at + number / 100) for number in range(3)]
    order = _take_all(_filled([*normal, *high]))
    for number, task in enumerate(high):
        assert order.index(task) <= 2 * number + 1
    assert [task for task in order if task in normal] == normal


class NaiveQueue:
    """The documented rule over a list."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self.overtaken = False

    def take(self) -> Task:
        firsts = {
            priority: min(waiting, key=lambda task: task.turn.urgency)
            for priority in Priority
            if (waiting := [task for task in self.tasks if task.turn.priority is priority])
        }
        first = min(
            (task for task in self.tasks if task in firsts.values()),
            key=lambda task: task.turn.urgency,
        )
        if len(firsts) > 1 and self.overtaken:
            first = firsts[HIGH]
        self.overtaken = len(firsts) > 1 and first is firsts[NORMAL]
        self.tasks.remove(first)
        return first


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.sampled_from(Priority), st.sampled_from([0.2, 3.0, 99.0])),
            st.tuples(st.just("take")),
            st.tuples(st.just("remove"), st.integers(0, 200)),
        ),
        max_size=200,
    )
)
@settings(deadline=None)
def test_the_order_is_that_of_the_rule_over_a_list(steps: list[tuple[Any, ...]]) -> None:
    queue, naive, tasks = TaskQueue(), NaiveQueue(), []  # type: ignore[var-annotated]
    for now, (kind, *values) in enumerate(steps):
        if kind == "add":
            task = _task(values[0], now / 7, now / 7 + values[1])
            tasks.append(task)
            queue.add(task)
            naive.tasks.append(task)
        elif kind == "take" and naive.tasks:
            assert queue.take() is naive.take()
        elif kind == "remove" and tasks:
            task = tasks[values[0] % len(tasks)]
            assert queue.remove(task) == (task in naive.tasks)
            if task in naive.tasks:
                naive.tasks.remove(task)
        assert len(queue) == len(naive.tasks)
    assert set(queue.clear()) == set(naive.tasks)
    assert len(queue) == 0


def _take_each(queue: TaskQueue, tasks: list[Task]) -> None:
    for task in tasks:
        assert queue.take() is task


def _remove_each(queue: TaskQueue, tasks: list[Task]) -> None:
    for task in tasks:
        assert queue.remove(task)


def _replace_each(queue: TaskQueue, tasks: list[Task]) -> None:
    for task in reversed(tasks):
        assert queue.remove(task)
        queue.add(_task(at=99))
    assert sum(map(len, queue._heaps.values())) < 3 * len(tasks)  # removed ones are forgotten


@pytest.mark.parametrize("leave", [_take_each, _remove_each, _replace_each])
def test_the_cost_of_leaving_does_not_grow_with_the_square_of_the_queue(
    leave: Callable[[TaskQueue, list[Task]], None],
) -> None:
    def cpu_seconds(count: int) -> float:
        times = []
        for _ in range(5):
            tasks = [_task(at=number / 1000) for number in range(count)]
            queue, started = _filled(tasks), time.process_time()
            leave(queue, tasks)
            times.append(time.process_time() - started)
        return min(times)

    assert cpu_seconds(4096) < 25 * cpu_seconds(512)  # 8 times the tasks; the square would be 64
