"""Gives tasks to the decoder processes; used by `DecoderPool`.

A task waits for a free worker, the most urgent first. One worker more than are used at once is kept
in reserve: it serves when all others have long tasks, by their cost or by the time they have run
for, so that images that take seconds do not delay others. A task whose worker crashes gets another
one, once. A task whose caller has gone is killed after a grace period, or if others wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from model.images.errors import InvalidImage
from service.decoding.messages import Message
from service.decoding.processes import WorkerProcess
from service.decoding.task_queue import TaskQueue
from service.decoding.tasks import Task
from service.decoding.workers import Workers
from service.ipc.slots import SlotMemory

# An abandoned task may still finish for this long: most do at once, and a fork costs more.
_GRACE_SECONDS = 1.0
_GRACE_STEP_SECONDS = 0.1  # after each, it is killed if other tasks wait for a worker
_RESERVE_SECONDS = 0.1  # after all tasks have run for this long, the reserve serves too
_MAX_CRASHES = 2  # of workers in a row on one file

_log = structlog.get_logger(__name__)


class Dispatcher:
    """The queue of the tasks and the workers, idle and busy; for one event loop."""

    def __init__(
        self, workers: int, memory_bytes: int, decode: str, on_restart: Callable[[str], None]
    ) -> None:
        """Creates a dispatcher; `start` starts the processes.

        Args:
            workers: how many tasks run at once.
            memory_bytes: that one worker may take for decoding.
            decode: "module:function" that the workers call.
            on_restart: called with the reason ("crash" or "killed") for each worker that ended.
        """
        self._count = workers
        self._on_restart = on_restart
        self._workers = Workers(memory_bytes, decode, self._started, self._take, self._ended)
        self._idle: list[WorkerProcess] = []
        self._busy: dict[WorkerProcess, Task] = {}
        self._queue = TaskQueue()
        self._reserve_check: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def worker_count(self) -> int:
        """How many workers there are at the moment, with the one in reserve."""
        return len(self._idle) + len(self._busy)

    def start(self, inbox_bytes: int) -> None:
        """Starts the template and the workers, each with an inbox of that size.

        Raises:
            OSError: if a process cannot be started.
        """
        with_reserve = self._count + 1
        self._workers.start(with_reserve, inbox_bytes, is_busy=lambda: bool(self._busy))

    def detach(self, memory: SlotMemory) -> None:
        """Makes all workers unmap these slots, after their current task."""
        self._workers.detach(memory)

    def close(self) -> None:
        """Ends all processes at once; whatever still waits is cancelled."""
        self._closed = True
        for task in (*self._queue.clear(), *self._busy.values()):
            task.done.cancel()
            task.finish()
        self._idle.clear()
        self._busy.clear()
        self._workers.close()

    async def run(self, task: Task) -> Message:
        """Runs a task in a worker and returns its response.

        If the caller is cancelled while a worker has the task, the slots stay leased until the
        worker has finished or was killed.

        Raises:
            InvalidImage: if workers crash on the file.
        """
        if self._closed:
            task.finish()
            raise asyncio.CancelledError
        if self._queue or not self._idle or self._is_full():
            self._queue.add(task)
            self._check_reserve()
        else:
            self._give(self._idle.pop(), task)
        try:
            return await task.done
        except asyncio.CancelledError:
            self._abandon(task)
            raise

    def _abandon(self, task: Task) -> None:
        """The caller has gone: the task leaves the queue, or its worker gets a little time."""
        task.abandoned = True
        if self._queue.remove(task):
            task.finish()
            return
        for worker, current in self._busy.items():
            if current is task:
                for lease in task.leases:
                    lease.retain()
                    task.release.append(lease.release)
                self._allow(worker, task, _GRACE_SECONDS)
                return

    def _allow(self, worker: WorkerProcess, task: Task, seconds: float) -> None:
        """Lets an abandoned task go on for some time, or until other tasks wait for a worker."""

        def check() -> None:
            if self._busy.get(worker) is not task:
                return
            if self._queue or seconds <= _GRACE_STEP_SECONDS:
                worker.kill()
            else:
                self._allow(worker, task, seconds - _GRACE_STEP_SECONDS)

        asyncio.get_running_loop().call_later(min(seconds, _GRACE_STEP_SECONDS), check)

    def _give(self, worker: WorkerProcess, task: Task) -> None:
        self._busy[worker] = task
        task.started = asyncio.get_running_loop().time()
        try:
            if task.leases:
                worker.attach(task.leases[0].memory)
            worker.inbox.write(*task.content)
            worker.send(task.kind, task.payload)
        except Exception:
            _log.exception("unexpected error; killing the decoder")
            worker.kill()  # another one gets the task

    def _give_waiting(self) -> None:
        """Gives the tasks that wait to idle workers, as many as are used at once."""
        while self._queue and self._idle and not self._is_full():
            task = self._queue.take()
            self._give(self._idle.pop(), task)
        if self._queue:
            self._check_reserve()

    def _is_full(self) -> bool:
        """Whether idle workers are in reserve."""
        if len(self._busy) < self._count:
            return False
        long_since = asyncio.get_running_loop().time() - _RESERVE_SECONDS
        return not all(task.is_long or task.started <= long_since for task in self._busy.values())

    def _check_reserve(self) -> None:
        """Gives a waiting task to the reserve once all running tasks take long."""
        if self._reserve_check is not None or not self._idle:
            return

        def check() -> None:
            self._reserve_check = None
            if not self._closed:
                self._give_waiting()

        self._reserve_check = asyncio.get_running_loop().call_later(_RESERVE_SECONDS / 2, check)

    def _take(self, worker: WorkerProcess, message: Message) -> None:
        """A worker has finished its task."""
        task = self._busy.pop(worker)
        if not task.done.done():
            task.done.set_result(message)
        task.finish()
        self._idle.append(worker)
        self._give_waiting()

    def _started(self, worker: WorkerProcess) -> None:
        self._idle.append(worker)
        self._give_waiting()

    def _ended(self, worker: WorkerProcess) -> None:
        """A worker has died; another one takes its place."""
        task = self._busy.pop(worker, None)
        if worker in self._idle:
            self._idle.remove(worker)
        if task is None:
            self._on_restart("crash")
            _log.warning("decoder ended while idle")
            return
        if task.abandoned:
            self._on_restart("killed")
            task.finish()
            return
        self._on_restart("crash")
        # It is not the image's fault if the worker never ran, or ended with its template.
        task.crashes += worker.ready and worker.template_is_running
        num_bytes = len(task.content[0])
        context = task.log_context
        _log.warning("decoder crashed", num_bytes=num_bytes, crashes=task.crashes, **context)
        if task.crashes < _MAX_CRASHES:
            self._queue.add(task)
            # Later, so that the new worker gets it and not one that died at the same time.
            asyncio.get_running_loop().call_soon(self._give_waiting)
            return
        task.finish()
        if not task.done.done():
            task.done.set_exception(InvalidImage("the image crashes its decoder"))
