"""The batches, canaries and watchdog of one loaded engine process.

    Supervisor --send--> EngineSession --RunBatch--> engine
    batcher <--batch_done / batch_failed / batches_lost-- EngineSession <--replies-- engine

A session begins when the engine has loaded and ends with its process. The engine gets requests
once its first canary has succeeded. It gets another canary whenever it was idle for long or failed
a batch; the next reply decides what caused the failure (`service.supervision.failed_batches`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import structlog

from service.batching.engine_protocol import EngineListener
from service.batching.estimates import ServiceTime
from service.batching.scheduler import Batch, EngineState
from service.ipc.messages import BadMessage, BatchDone, BatchFailed, Message, RunBatch
from service.observability.metrics import Metrics
from service.supervision.canary import Canary
from service.supervision.failed_batches import FailedBatches
from service.supervision.in_flight import BatchesInFlight
from service.supervision.plan import EnginePlan
from service.supervision.process import EngineProcess
from service.supervision.timer import Timer

_CANARY_RETRY_SECONDS = 0.5  # after a failed canary
_MIN_TIMER_SECONDS = 0.001  # prevents a busy loop by rounding
_REASONS_WITHOUT_SUSPECT = frozenset({"canary", "stopped"})  # exits that no batch caused

_log = structlog.get_logger(__name__)


class SessionOwner(Protocol):
    """Receives what a session learns about its engine (implemented by `Supervisor`)."""

    def batch_succeeded(self) -> None:
        """The engine completed a batch of requests."""

    def canary_succeeded(self) -> None:
        """The engine can take batches."""

    def canary_failed(self) -> None:
        """The engine should get no batches until the next canary succeeds."""

    def kill_engine(self, reason: str, event: str, error: Exception | None = None) -> None:
        """The engine must be replaced: `reason` for metrics, `event` and `error` for the log."""


class EngineSession:
    """The batches of one engine process; for use on the event loop thread only."""

    def __init__(  # noqa: PLR0913, PLR0917 - its collaborators
        self,
        engine: EngineProcess,
        plan: EnginePlan,
        canary: Canary,
        service_time: ServiceTime,
        metrics: Metrics,
        owner: SessionOwner,
        listener: EngineListener,
        clock: Callable[[], float],
    ) -> None:
        """Creates a session; `begin` sends the first canary.

        Args:
            engine: a loaded engine.
            plan: time limits.
            canary: of the device; reused by later engines.
            service_time: learned from earlier engines on the device.
            metrics: counts batches.
            owner: notified about the engine's condition.
            listener: notified about the engine's batches.
            clock: monotonic seconds.
        """
        self._engine = engine
        self._plan = plan
        self._canary = canary
        self._failed_batches = FailedBatches()
        self._metrics = metrics
        self._owner = owner
        self._listener = listener
        self._clock = clock
        self._in_flight = BatchesInFlight(clock(), service_time)
        self._unreported: list[Batch] = []  # no longer in flight; the listener does not know yet
        self._watchdog = Timer(self._on_error)
        self._next_canary = Timer(self._on_error)

    def __len__(self) -> int:
        """Number of batches that the engine holds, canaries included."""
        return len(self._in_flight)

    @property
    def state(self) -> EngineState:
        """The engine's state, for the scheduler."""
        return self._in_flight.state()

    @property
    def busy_share(self) -> float:
        """The share of the recent time in which the engine held batches, canaries included."""
        return self._in_flight.busy_share(self._clock())

    def begin(self) -> None:
        """Sends the first canary."""
        self._canary.reset()
        self._send_canary()

    def send(self, batch: Batch) -> None:
        """Sends a batch to the engine, behind those that it holds."""
        batch_id = self._in_flight.add(batch, self._clock())
        try:
            slots = tuple((job.lease.slot, job.lease.generation) for job in batch.jobs)
            explain = {str(j.lease.slot): j.explain for j in batch.jobs if j.explain is not None}
            self._engine.send(RunBatch(batch_id, batch.bucket, slots, explain or None))
            if len(self._in_flight) == 1:
                self._restart_watchdog()
        except Exception as error:  # the batch is returned when the engine has ended
            self._on_error(error)

    def handle(self, message: Message) -> None:
        """Handles a reply of the engine, which replies to batches in the order they were sent.

        Raises:
            BadMessage: if the message is not a reply to a batch.
            UnexpectedBatch: if it replies to a batch other than the running one.
            Exception: of the listener; `return_batches` then returns the batch.
        """
        if not isinstance(message, BatchDone | BatchFailed):
            raise BadMessage(f"unexpected {type(message).__name__}")
        batch, seconds = self._in_flight.complete(message.batch_id, self._clock())
        self._unreported = [batch]
        is_canary = self._canary.owns(batch)
        self._restart_watchdog()
        if is_canary:
            self._handle_canary(message)
        elif isinstance(message, BatchDone):
            self._owner.batch_succeeded()
            self._on_success()
            self._in_flight.learn(batch, seconds, message.explain_ms / 1000)
            self._metrics.batch_seconds.observe(seconds)
            self._listener.batch_done(batch, message)
        else:
            self._metrics.batch_failures.labels(message.failure).inc()
            self._failed_batches.add(batch, message)
            self._send_canary()
        self._unreported.clear()

    def stop(self) -> None:
        """Stops the timers; no further canary is sent."""
        self._watchdog.cancel()
        self._next_canary.cancel()

    def return_batches(self, exit_reason: str) -> None:
        """Returns the engine's batches to the listener; its process must have been reaped."""
        resolution = self._failed_batches.resolve()
        failed = (*resolution.lost, *(batch for batch, _ in resolution.failed), *self._unreported)
        held = self._in_flight.take_all(self._clock())
        batches = [b for b in dict.fromkeys((*failed, *held)) if not self._canary.owns(b)]
        self._unreported = batches  # if the listener raises, another call returns them
        if not batches:
            return
        # The suspect is the first failed batch, else the running one, unless that was a canary or
        # the engine was killed for a reason that no batch causes.
        was_running = bool(held) and not self._canary.owns(held[0])
        if failed or (was_running and exit_reason not in _REASONS_WITHOUT_SUSPECT):
            self._listener.batches_lost(batches[0], batches[1:])
        else:
            self._listener.batches_lost(None, batches)
        self._unreported = []

    def _handle_canary(self, message: BatchDone | BatchFailed) -> None:
        if isinstance(message, BatchDone) and self._canary.complete():
            self._on_success()
            self._next_canary.start(self._plan.canary_interval_seconds, self._on_canary_due)
            self._owner.canary_succeeded()
            return
        reason = message.reason if isinstance(message, BatchFailed) else "its slot holds no result"
        _log.error("canary failed", reason=reason)
        if self._canary.record_failure():
            self._owner.kill_engine("canary", "too many canaries failed; killing the engine")
        else:
            self._next_canary.start(_CANARY_RETRY_SECONDS, self._send_canary)
        self._failed_batches.mark_device_failed()
        self._owner.canary_failed()

    def _on_success(self) -> None:
        """Resolves the failed batches after the engine completed a batch."""
        self._canary.record_success(self._clock())
        resolution = self._failed_batches.resolve()
        self._unreported += (*resolution.lost, *(batch for batch, _ in resolution.failed))
        for batch, failed in resolution.failed:
            self._listener.batch_failed(batch, failed)
            self._unreported.remove(batch)
        if resolution.lost:
            self._listener.batches_lost(resolution.lost[0], resolution.lost[1:])
            for batch in resolution.lost:
                self._unreported.remove(batch)

    def _on_canary_due(self) -> None:
        """Sends a canary if the engine is idle and completed nothing for the interval."""
        if self._canary.in_flight:  # its reply restarts the timer
            return
        age = self._clock() - self._canary.last_success
        if self._in_flight or age < self._plan.canary_interval_seconds:
            left = self._plan.canary_interval_seconds - age
            soonest = _CANARY_RETRY_SECONDS if self._in_flight else _MIN_TIMER_SECONDS
            self._next_canary.start(max(left, soonest), self._on_canary_due)
        else:
            self._send_canary()

    def _send_canary(self) -> None:
        """Sends a canary, unless one is in flight; its reply then schedules the next one."""
        if not self._canary.in_flight:
            self.send(self._canary.make_batch(self._clock()))

    def _restart_watchdog(self) -> None:
        """Starts the watchdog of the batch that the engine now runs, if any."""
        if self._in_flight:
            plan, is_canary = self._plan, self._canary.owns(self._in_flight.running)
            seconds = plan.canary_timeout_seconds if is_canary else plan.watchdog_seconds
            self._watchdog.start(seconds, self._on_hang)
        else:
            self._watchdog.cancel()

    def _on_error(self, error: Exception) -> None:
        self._owner.kill_engine("error", "unexpected error; killing the engine", error)

    def _on_hang(self) -> None:
        self._owner.kill_engine("hang", "the engine hangs; killing it")
