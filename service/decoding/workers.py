"""The worker processes of a `DecoderPool`: started, listened to, and replaced when they end.

All of them are forked by one template process. A worker that has ended is replaced at once; if it
ended before it was ready, or with its template, after a pause that doubles up to some seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import structlog

from service.decoding.messages import InboxMemory, Message
from service.decoding.processes import TemplateProcess, WorkerProcess
from service.ipc.slots import SlotMemory

_STOPPED_CHECK_SECONDS = 0.5
_RESTART_SECONDS = 0.1, 5.0  # the first pause and the longest

_log = structlog.get_logger(__name__)


class Workers:
    """A fixed number of workers, each with its inbox; for one event loop."""

    def __init__(
        self,
        memory_bytes: int,
        decode: str,
        on_start: Callable[[WorkerProcess], None],
        on_message: Callable[[WorkerProcess, Message], None],
        on_end: Callable[[WorkerProcess], None],
    ) -> None:
        """Creates the object; `start` starts the processes.

        Args:
            memory_bytes: that one worker may take for decoding.
            decode: "module:function" that decodes.
            on_start: called with each new worker, which takes tasks at once.
            on_message: called with each message of a worker.
            on_end: called when a worker has ended, before another one is started.
        """
        self._memory_bytes = memory_bytes
        self._decode = decode
        self._on_start = on_start
        self._on_message = on_message
        self._on_end = on_end
        self._template: TemplateProcess | None = None
        self._inboxes: list[InboxMemory] = []
        self._running: set[WorkerProcess] = set()
        self._next_number = 0
        self._restart_seconds = _RESTART_SECONDS[0]
        self._closed = False

    def start(self, count: int, inbox_bytes: int, is_busy: Callable[[], bool]) -> None:
        """Starts the template and the workers.

        Args:
            count: of the workers.
            inbox_bytes: capacity of each inbox.
            is_busy: whether a worker has a task; if so, a stopped process is looked for.

        Raises:
            OSError: if a process cannot be started.
        """
        self._template = TemplateProcess(self._memory_bytes, self._decode)
        self._inboxes += [InboxMemory.create(inbox_bytes) for _ in range(count)]
        for inbox in self._inboxes:
            self._add(inbox)
        self._check_stopped(is_busy, was_stopped=False)

    def detach(self, slots: SlotMemory) -> None:
        """Makes all workers unmap these slots, so that their memory is freed."""
        for worker in self._running:
            worker.detach(slots)

    def close(self) -> None:
        """Ends all processes at once."""
        self._closed = True
        for worker in self._running:
            worker.close()
        self._running.clear()
        if self._template is not None:
            self._template.close()
        for inbox in self._inboxes:
            inbox.close()

    def _add(self, inbox: InboxMemory) -> None:
        assert self._template is not None
        worker = WorkerProcess(self._next_number, self._template, inbox)
        self._next_number += 1
        self._running.add(worker)
        worker.listen(partial(self._take, worker), partial(self._ended, worker))
        self._on_start(worker)

    def _take(self, worker: WorkerProcess, message: Message) -> None:
        self._restart_seconds = _RESTART_SECONDS[0]
        worker.inbox.release_pages()
        self._on_message(worker, message)

    def _ended(self, worker: WorkerProcess) -> None:
        self._running.discard(worker)
        if self._closed:
            return
        worker.inbox.release_pages()
        self._on_end(worker)
        if worker.ready and worker.template_is_running:
            try:
                self._add(worker.inbox)
                return
            except OSError as error:
                _log.warning("decoder not started", error=str(error))
        self._restart_later(worker.inbox)
        self._restart_seconds = min(2 * self._restart_seconds, _RESTART_SECONDS[1])

    def _restart_later(self, inbox: InboxMemory) -> None:
        asyncio.get_running_loop().call_later(self._restart_seconds, self._restart, inbox)

    def _restart(self, inbox: InboxMemory) -> None:
        """Adds a worker after a pause, with a new template if the old one has ended."""
        if self._closed:
            return
        try:
            if self._template is None or not self._template.running:
                if self._template is not None:
                    self._template.close()
                self._template = TemplateProcess(self._memory_bytes, self._decode)
            self._add(inbox)
        except OSError as error:
            _log.warning("decoder not started", error=str(error))
            self._restart_later(inbox)

    def _check_stopped(self, is_busy: Callable[[], bool], *, was_stopped: bool) -> None:
        """Kills all workers if one is stopped (SIGSTOP) in two checks while images wait for it."""
        if self._closed or self._template is None:
            return
        is_stopped = is_busy() and self._template.is_stopped()
        if is_stopped and was_stopped:
            _log.warning("a decoder is stopped; replacing all of them")
            self._template.kill()
        check = partial(self._check_stopped, is_busy, was_stopped=is_stopped)
        asyncio.get_running_loop().call_later(_STOPPED_CHECK_SECONDS, check)
