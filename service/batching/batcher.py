"""Sends images to the engines in batches and returns each result to its caller.

    Detector --run--> Scheduler (the rules) --Batch--> Supervisor (one per device)
    Detector <--EngineResult-- slots <-- batch_done --/

Everything runs in callbacks on the event loop: after each event (an image was queued, an engine
completed a batch or ended, a timer expired) the scheduler decides what to send. No state is shared
with threads.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import Context
from typing import NamedTuple

import structlog

from model.detections import Detections
from model.explanation import Explanation
from service.batching.engine_protocol import Engine
from service.batching.prediction import Prediction, WaitPredictor
from service.batching.recovery import Recovery, after_batch_failure, after_engine_death
from service.batching.scheduler import Batch, EngineState, Job, Scheduler
from service.errors import DeadlineExceeded, DetectionError, InferenceFailed, ShuttingDown
from service.ipc.messages import BatchDone, BatchFailed
from service.observability.metrics import Metrics
from service.types import Priority
from service.usage import UseCounter

# libuv counts whole milliseconds: a timer of less than half of one expires at once, and would be
# restarted in a busy loop until the time has passed.
_MIN_TIMER_SECONDS = 0.001
_ERROR_PAUSE_SECONDS = 1.0  # before batches are formed again after an unexpected error
_EMPTY_CONTEXT = Context()  # so that log lines of a timer do not name the request that started it

_log = structlog.get_logger(__name__)


class EngineResult(NamedTuple):
    """The detections of one image, and the times of its batch in milliseconds."""

    detections: Detections
    assemble_ms: float
    forward_ms: float
    postprocess_ms: float
    copy_ms: float = 0.0
    started: float = 0.0  # when the engine started the batch, monotonic seconds
    explanation: Explanation | None = None  # None: not requested, or there is no such detection
    explain_ms: float = 0.0  # in no other time


class Batcher:
    """The queues in front of the engines."""

    def __init__(
        self,
        scheduler: Scheduler,
        engines: Sequence[Engine],
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts with empty queues.

        Args:
            scheduler: the batching rules; used only by this object.
            engines: the engines, one per device.
            metrics: counts batches.
            clock: monotonic seconds.
        """
        self._scheduler = scheduler
        self._engines = engines
        self._metrics = metrics
        self._clock = clock
        self._results: dict[Job, asyncio.Future[EngineResult]] = {}
        self._abandoned: set[Job] = set()  # their callers have gone, but an engine holds them
        self._predictor = WaitPredictor(scheduler, engines)
        self._decoding = UseCounter(on_zero=self._dispatch_soon)
        self._decoding_high = UseCounter()  # those of high priority
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf  # when it expires, by the clock

    @property
    def ready(self) -> bool:
        """Whether any engine takes batches."""
        return any(engine.ready for engine in self._engines)

    @property
    def live(self) -> bool:
        """Whether any engine is running or can still be restarted."""
        return any(engine.live for engine in self._engines)

    @property
    def kernel(self) -> str:
        """The attention implementation of the engines; empty before the first is ready."""
        return next((engine.kernel for engine in self._engines if engine.kernel), "")

    @property
    def num_decoding(self) -> int:
        """Number of images being decoded, or waiting for a decoder."""
        return self._decoding.count

    def num_decoding_before(self, priority: Priority) -> int:
        """Number of those that a new image of this priority would not overtake."""
        return self._decoding.count if priority is Priority.NORMAL else self._decoding_high.count

    @property
    def queue_depth(self) -> int:
        """Number of images waiting for an engine."""
        return len(self._scheduler)

    def predict(self, priority: Priority = Priority.NORMAL) -> Prediction:
        """Predicts the waiting time of an image that arrives now; zeros before the first batch."""
        decoding = self.num_decoding_before(priority)
        return self._predictor.predict(self._clock(), priority, decoding)

    def track_decoding(self, priority: Priority = Priority.NORMAL) -> AbstractContextManager[None]:
        """Context manager around the decoding of an image, which an idle engine may wait for."""
        if priority is Priority.NORMAL:
            return self._decoding
        return self._track_decoding_high()

    @contextmanager
    def _track_decoding_high(self) -> Iterator[None]:
        with self._decoding, self._decoding_high:
            yield

    async def run(self, job: Job) -> EngineResult:
        """Runs one image and waits for its result.

        Cancelling the caller removes a waiting image. An image that an engine holds keeps its
        slot until the engine has completed it.

        Raises:
            DeadlineExceeded: if its deadline passed in the queue.
            InferenceFailed: if the engine fails on this image, also when it runs alone.
            ShuttingDown: if the batcher was closed first.
        """
        result: asyncio.Future[EngineResult] = asyncio.get_running_loop().create_future()
        if not job.is_tile:
            self._predictor.record_arrival(self._clock())
        job.lease.retain()
        self._results[job] = result
        self._scheduler.add(job)
        self._dispatch()
        try:
            return await result
        finally:
            if job in self._results:
                self._abandon(job)

    def close(self) -> None:
        """Fails all unfinished images with `ShuttingDown`."""
        self._cancel_timer()
        self._scheduler.clear()
        for job in list(self._results):
            self._fail(job, ShuttingDown("the service stopped before it ran this image"))
        for job in list(self._abandoned):
            self._release(job)

    def engine_changed(self) -> None:
        """An engine became ready, or is no longer ready."""
        self._dispatch()

    def batch_done(self, batch: Batch, done: BatchDone) -> None:
        """Reads the results from the slots and returns each to its caller."""
        self._metrics.statistics.record_batch(
            len(batch.jobs),
            done.assemble_ms + done.copy_ms,
            done.forward_ms,
            done.postprocess_ms,
        )
        for job in batch.jobs:
            result = self._results.get(job)
            if result is not None and not result.done():
                self._return_result(job, result, done)
            else:
                self._release(job)
        self._dispatch()

    def batch_failed(self, batch: Batch, failed: BatchFailed) -> None:
        """Retries a failed batch in halves, until the image that fails is alone."""
        _log.warning("batch failed", reason=failed.reason, images=len(batch.jobs))
        self._recover(after_batch_failure(self._without_abandoned(batch)))
        self._dispatch()

    def batches_lost(self, running: Batch | None, staged: Sequence[Batch]) -> None:
        """Retries what an ended engine held; only the running batch can be the cause."""
        suspects = [] if running is None else [self._without_abandoned(running)]
        others = [self._without_abandoned(batch) for batch in staged]
        self._metrics.replayed.inc(sum(len(batch.jobs) for batch in (*suspects, *others)))
        for batch in suspects:
            self._recover(after_engine_death(batch))
        for batch in others:
            self._requeue(batch)
        self._dispatch()

    def _dispatch(self) -> None:
        """Sends to every engine what the scheduler has for it; tries again after an error."""
        try:
            wake_at = self._send_batches()
        except Exception as error:
            # In an empty context: the error is not that of the request that was just queued.
            Context().run(_log.error, "cannot send a batch", exc_info=error)
            wake_at = self._clock() + _ERROR_PAUSE_SECONDS
        self._schedule_dispatch(wake_at)

    def _send_batches(self) -> float:
        """Returns when to call again, at the latest."""
        wake_at = math.inf
        candidates = [engine for engine in self._engines if engine.ready]
        while candidates and self._scheduler:
            # The least busy engine first: an idle one before one that would stage the batch.
            engine = candidates[0] if len(candidates) == 1 else min(candidates, key=_load)
            plan = self._scheduler.plan(self._clock(), engine.state, self._decoding.count)
            for job in plan.expired:
                self._fail(
                    job,
                    DeadlineExceeded(
                        "the deadline passed in the queue, or would have before the result"
                    ),
                )
            if plan.batch is None:
                wake_at = min(wake_at, plan.wake_at)
                candidates.remove(engine)
            else:
                self._send(engine, plan.batch)
        return wake_at

    def _send(self, engine: Engine, batch: Batch) -> None:
        try:
            engine.send(batch)
        except Exception:
            self._requeue(batch)
            raise
        self._record(batch)

    def _dispatch_soon(self) -> None:
        """Runs when no image is being decoded any more, so that waiting for others ends."""
        if self._scheduler:
            # Not at once: the image that was just decoded is about to be queued.
            asyncio.get_running_loop().call_soon(self._dispatch, context=_EMPTY_CONTEXT)

    def _schedule_dispatch(self, when: float) -> None:
        if self._timer is not None and when == self._timer_at:
            return
        self._cancel_timer()
        if when < math.inf:
            loop, delay = asyncio.get_running_loop(), max(_MIN_TIMER_SECONDS, when - self._clock())
            self._timer = loop.call_later(delay, self._on_timer, context=_EMPTY_CONTEXT)
            self._timer_at = when

    def _on_timer(self) -> None:
        self._timer = None
        self._dispatch()

    def _record(self, batch: Batch) -> None:
        self._metrics.batch_size.observe(len(batch.jobs))
        if not batch.has_tiles:
            self._predictor.record_batch(batch)
        pixels = sum(job.image_pixels for job in batch.jobs)
        self._metrics.padding_waste.observe(max(0.0, 1 - pixels / batch.padded_pixels))

    def _without_abandoned(self, batch: Batch) -> Batch:
        """The images of a batch that are to be retried.

        Images whose callers have gone are released. Images that wait already (the engine ended
        while an error kept the batch from being completed) are left out.
        """
        wanted = tuple(
            job for job in batch.jobs if job in self._results and job not in self._scheduler
        )
        for job in batch.jobs:
            if job not in self._results:
                self._release(job)
        return Batch(batch.bucket, wanted, batch.engine_deaths)

    def _requeue(self, batch: Batch) -> None:
        """Puts back a batch that no engine has run."""
        if batch.engine_deaths:
            self._scheduler.retry([batch])
        else:
            self._scheduler.requeue(batch.jobs)

    def _recover(self, recovery: Recovery) -> None:
        for job in recovery.failed:
            self._fail(job, InferenceFailed("the model failed on this image"))
        self._scheduler.retry(recovery.retries)

    def _return_result(
        self, job: Job, result: asyncio.Future[EngineResult], done: BatchDone
    ) -> None:
        explanation = None
        try:
            detections = job.lease.read_result()
            if job.explain is not None and done.explanations is not None:
                found = done.explanations.get(str(job.lease.slot))
                explanation = None if found is None else Explanation.from_dict(found)
        except Exception:
            _log.exception("no valid result in the slot of a completed image")
            self._fail(job, InferenceFailed("the model failed on this image"))
            return
        result.set_result(
            EngineResult(
                detections,
                assemble_ms=done.assemble_ms,
                forward_ms=done.forward_ms,
                postprocess_ms=done.postprocess_ms,
                copy_ms=done.copy_ms,
                started=done.started,
                explanation=explanation,
                explain_ms=done.explain_ms,
            )
        )
        self._release(job)

    def _fail(self, job: Job, error: DetectionError) -> None:
        result = self._results.get(job)
        if result is not None and not result.done():
            result.set_exception(error)
        self._release(job)

    def _abandon(self, job: Job) -> None:
        """The caller of `run` was cancelled."""
        if self._scheduler.remove(job):
            self._release(job)
        else:
            del self._results[job]
            self._abandoned.add(job)

    def _release(self, job: Job) -> None:
        """Forgets a job and releases its slot."""
        if self._results.pop(job, None) is not None or job in self._abandoned:
            self._abandoned.discard(job)
            job.lease.release()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _load(engine: Engine) -> tuple[int, float]:
    """Sort key: how busy an engine is."""
    state: EngineState = engine.state
    return state.in_flight, state.busy_until
