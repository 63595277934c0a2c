"""What one running engine holds: its batches in flight, its canary, and the watchdog over both.

    Supervisor --send--> EngineSession --RunBatch--> engine
    batcher <--batch_done / batch_failed / batches_lost-- EngineSession <--take-- engine

A session begins when the engine is loaded and ends with its process. The engine takes requests from
its first canary's answer on, and gets another canary whenever it was silent for long or failed a
batch; whose fault that was is known by the next answer (`service.supervision.failed_batches`).
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

_CANARY_RETRY_SECONDS = 0.5  # after one that failed
_MOMENT_SECONDS = 0.001  # rounding must not make it look again and again
_NO_FAULT_OF_A_BATCH = frozenset({"canary", "stopped"})  # reasons for an engine's end

_log = structlog.get_logger(__name__)


class SessionOwner(Protocol):
    """Who decides what becomes of the engine (`service.supervision.supervisor.Supervisor`)."""

    def batch_succeeded(self) -> None:
        """The engine did what it is there for."""

    def canary_succeeded(self) -> None:
        """The engine can take batches."""

    def canary_failed(self) -> None:
        """The engine should take none until the next canary is answered."""

    def kill_engine(self, reason: str, event: str) -> None:
        """The engine is of no use any more: a reason for metrics, an event for the log."""


class EngineSession:
    """The work of one engine process; event loop thread only."""

    def __init__(  # noqa: PLR0913, PLR0917 - whom it works with
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
        """Prepares; `begin` makes the engine show that it works.

        Args:
            engine: loaded and waiting.
            plan: how long things may take.
            canary: of the device; it outlives its engines.
            service_time: what engines before this one taught.
            metrics: where batches are counted.
            owner: is told what the engine is worth.
            listener: is told what became of its batches.
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
        self._watchdog = Timer()
        self._next_canary = Timer()

    def __len__(self) -> int:
        """How many batches the engine holds, canaries included."""
        return len(self._in_flight)

    @property
    def state(self) -> EngineState:
        """For the scheduler."""
        return self._in_flight.state()

    def begin(self) -> None:
        """Sends the first canary."""
        self._canary.reset()
        self._send_canary()

    def send(self, batch: Batch) -> None:
        """Hands a batch to the engine, behind what it holds already."""
        batch_id = self._in_flight.add(batch, self._clock())
        slots = tuple((job.lease.slot, job.lease.generation) for job in batch.jobs)
        self._engine.send(RunBatch(batch_id, batch.bucket, slots))
        if len(self._in_flight) == 1:
            self._wind_watchdog()

    def take(self, message: Message) -> None:
        """Takes an answer of the engine; it answers in the order that it was rung.

        Raises:
            BadMessage: for what is no answer.
            UnexpectedBatch: for an answer to another batch than the one that runs.
        """
        if not isinstance(message, BatchDone | BatchFailed):
            raise BadMessage(f"{type(message).__name__} out of turn")
        batch, seconds = self._in_flight.answered(message.batch_id, self._clock())
        self._wind_watchdog()
        if self._canary.owns(batch):
            self._take_canary(message)
        elif isinstance(message, BatchDone):
            self._owner.batch_succeeded()
            self._on_success()
            self._in_flight.learn(batch, seconds)
            self._metrics.batch_seconds.observe(seconds)
            self._listener.batch_done(batch, message)
        else:
            self._metrics.batch_failures.labels(message.failure).inc()
            self._failed_batches.add(batch, message)
            if not self._canary.in_flight:
                self._send_canary()

    def stop(self) -> None:
        """Asks the engine for nothing more, and waits for nothing."""
        self._watchdog.stop()
        self._next_canary.stop()

    def lose(self, reason: str) -> None:
        """Gives back what the engine held; it has ended for that reason and is reaped."""
        resolution = self._failed_batches.resolve()
        failed = (*resolution.lost, *(batch for batch, _ in resolution.failed))
        held = self._in_flight.take_all(self._clock())
        batches = [b for b in (*failed, *held) if not self._canary.owns(b)]
        if not batches:
            return
        # What it failed comes first; else what it ran then, unless that was a canary, or it was
        # ended for what no batch had done.
        ran = bool(held) and not self._canary.owns(held[0])
        if failed or (ran and reason not in _NO_FAULT_OF_A_BATCH):
            self._listener.batches_lost(batches[0], batches[1:])
        else:
            self._listener.batches_lost(None, batches)

    def _take_canary(self, message: BatchDone | BatchFailed) -> None:
        """The end of a canary: the engine is ready, or it is one failure nearer to its end."""
        if isinstance(message, BatchDone) and self._canary.answered():
            self._on_success()
            self._next_canary.set(self._plan.canary_interval_seconds, self._on_silence)
            self._owner.canary_succeeded()
            return
        reason = message.reason if isinstance(message, BatchFailed) else "its slot holds no answer"
        _log.error("a canary failed", reason=reason)
        if self._canary.failed():
            self._owner.kill_engine("canary", "canaries fail again and again; killing the engine")
        else:
            self._next_canary.set(_CANARY_RETRY_SECONDS, self._send_canary)
        self._failed_batches.mark_device_failed()
        self._owner.canary_failed()

    def _on_success(self) -> None:
        """The device answered; batches that it failed before are judged by that."""
        self._canary.succeeded(self._clock())
        resolution = self._failed_batches.resolve()
        for batch, failed in resolution.failed:
            self._listener.batch_failed(batch, failed)
        if resolution.lost:
            self._listener.batches_lost(resolution.lost[0], resolution.lost[1:])

    def _on_silence(self) -> None:
        """Nothing was heard for some time, unless requests were answered meanwhile."""
        if self._canary.in_flight:  # whose end winds the timer anew
            return
        silent = self._clock() - self._canary.last_success
        if self._in_flight or silent < self._plan.canary_interval_seconds:
            left = self._plan.canary_interval_seconds - silent
            soonest = _CANARY_RETRY_SECONDS if self._in_flight else _MOMENT_SECONDS
            self._next_canary.set(max(left, soonest), self._on_silence)
        else:
            self._send_canary()

    def _send_canary(self) -> None:
        self.send(self._canary.make_batch(self._clock()))

    def _wind_watchdog(self) -> None:
        """Gives the batch that runs now its time."""
        if self._in_flight:
            plan, canary = self._plan, self._canary.owns(self._in_flight.running)
            seconds = plan.canary_timeout_seconds if canary else plan.watchdog_seconds
            self._watchdog.set(seconds, self._on_hang)
        else:
            self._watchdog.stop()

    def _on_hang(self) -> None:
        self._owner.kill_engine("hang", "the engine hangs; killing it")
