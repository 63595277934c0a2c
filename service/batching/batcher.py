"""Brings images to engines in batches and answers back to their callers.

    Detector --run--> Scheduler (the rules) --Batch--> Supervisor (one a device)
    Detector <--EngineResult-- slots <-- batch_done --/

Everything happens in callbacks on the event loop: each event (an image came, an engine answered or
died, a timer rang) asks the scheduler for its plan and acts on it. No state is shared with threads.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import NamedTuple

import structlog

from model.detections import Detections
from service.batching.engine_protocol import Engine
from service.batching.estimates import ArrivalRate
from service.batching.recovery import Recovery, after_batch_failure, after_engine_death
from service.batching.scheduler import Batch, Bucket, EngineState, Job, Scheduler
from service.errors import DeadlineExceeded, DetectionError, InferenceFailed, ShuttingDown
from service.ipc.messages import BatchDone, BatchFailed
from service.ipc.slots import StaleSlot
from service.observability.metrics import Metrics
from service.types import Priority
from service.usage import UseCounter

# libuv counts whole milliseconds: of less than half a one its timers ring at once, and would do so
# again and again until it has passed.
_TIMER_SECONDS = 0.001
_OF_NO_REQUEST = Context()  # what is logged from a timer carries no request's names

_log = structlog.get_logger(__name__)


class EngineResult(NamedTuple):
    """What an engine found in one image, and the times of its batch in milliseconds."""

    detections: Detections
    assemble_ms: float
    forward_ms: float
    postprocess_ms: float
    copy_ms: float = 0.0
    started: float = 0.0  # when the engine began with the batch, monotonic seconds


class Prediction(NamedTuple):
    """How long an image would take, in seconds; zeros where nothing was learned yet."""

    wait: float  # until its batch begins
    run: float  # of that batch


class Batcher:
    """The queues in front of the engines."""

    def __init__(
        self,
        scheduler: Scheduler,
        engines: Sequence[Engine],
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts empty.

        Args:
            scheduler: the rules; this object is its only user.
            engines: to the engines.
            metrics: where batches are counted.
            clock: monotonic seconds.
        """
        self._scheduler = scheduler
        self._engines = engines
        self._metrics = metrics
        self._clock = clock
        self._answers: dict[Job, asyncio.Future[EngineResult]] = {}
        self._abandoned: set[Job] = set()  # nobody waits for them, but an engine holds them
        self._arrivals = ArrivalRate()
        self._coming = UseCounter(on_zero=self._pump_soon)
        self._typical_bucket: Bucket | None = None  # that of the last batch
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf  # when it rings, by the clock

    @property
    def ready(self) -> bool:
        """Whether any engine takes batches."""
        return any(engine.ready for engine in self._engines)

    @property
    def live(self) -> bool:
        """Whether any engine can still be kept alive."""
        return any(engine.live for engine in self._engines)

    @property
    def kernel(self) -> str:
        """Which attention implementation the engines run; empty before the first is ready."""
        return next((engine.kernel for engine in self._engines if engine.kernel), "")

    @property
    def num_decoding(self) -> int:
        """Images that are being decoded, or wait for a thread that does."""
        return self._coming.count

    @property
    def queue_depth(self) -> int:
        """Images that wait for an engine."""
        return len(self._scheduler)

    def predict(self, priority: Priority = Priority.NORMAL) -> Prediction:
        """What an image that came now would have before it, as far as batches so far can tell."""
        engines = [engine for engine in self._engines if engine.ready]
        if not engines or self._typical_bucket is None:
            return Prediction(0.0, 0.0)
        now = self._clock()
        first = min(engines, key=lambda engine: engine.state.busy_until)
        running = max(0.0, first.state.busy_until - now)
        before = self._scheduler.count_before(priority) + self._coming.count
        bucket, capacity = self._typical_bucket, self._scheduler.policy.capacity
        pixels, most = bucket[0] * bucket[1], capacity(bucket)
        # It joins the last of the batches that form of what waits; the others run before.
        full, rest = divmod(before, most)
        wait = running + full * first.predicted_seconds(most * pixels) / len(engines)
        # Those that come until its batch begins join it too, and make it longer.
        joining = wait * self._arrivals.per_second(now) / len(engines)
        images = min(most, rest + 1 + round(joining))
        return Prediction(wait, first.predicted_seconds(images * pixels))

    def track_decoding(self) -> UseCounter:
        """Says that an image is being decoded, in a `with` statement: an idle engine may wait."""
        return self._coming

    async def run(self, job: Job) -> EngineResult:
        """Runs one image and waits for its answer.

        Cancelling the caller takes a waiting image out; one that an engine holds already keeps
        its slot until the engine has answered.

        Raises:
            DeadlineExceeded: where its deadline passed in the queue.
            InferenceFailed: where the engine fails on this very image.
            ShuttingDown: where the batcher was closed first.
        """
        answer: asyncio.Future[EngineResult] = asyncio.get_running_loop().create_future()
        self._arrivals.note(self._clock())
        job.lease.retain()
        self._answers[job] = answer
        self._scheduler.add(job)
        self._pump()
        try:
            return await answer
        finally:
            if job in self._answers:
                self._abandon(job)

    def close(self) -> None:
        """Answers everything that still waits with `ShuttingDown`."""
        self._cancel_timer()
        self._scheduler.take_all()
        for job in list(self._answers):
            self._fail(job, ShuttingDown("the service ended before this image had its turn"))
        for job in list(self._abandoned):
            self._forget(job)

    def engine_changed(self) -> None:
        """An engine became ready or ceased to be."""
        self._pump()

    def batch_done(self, batch: Batch, done: BatchDone) -> None:
        """Takes the answers out of the slots, each to its own caller."""
        self._metrics.statistics.record_batch(
            len(batch.jobs),
            done.assemble_ms + done.copy_ms,
            done.forward_ms,
            done.postprocess_ms,
        )
        for job in batch.jobs:
            answer = self._answers.get(job)
            if answer is not None and not answer.done():
                self._answer(job, answer, done)
            else:
                self._forget(job)
        self._pump()

    def batch_failed(self, batch: Batch, failed: BatchFailed) -> None:
        """Isolates the image that fails."""
        _log.warning("a batch failed", reason=failed.reason, images=len(batch.jobs))
        self._carry_out(after_batch_failure(self._still_wanted(batch)))
        self._pump()

    def batches_lost(self, running: Batch | None, staged: Sequence[Batch]) -> None:
        """Runs again what a dead engine held; what it had not begun is not suspect."""
        suspects = [] if running is None else [self._still_wanted(running)]
        innocent = [self._still_wanted(batch) for batch in staged]
        self._metrics.replayed.inc(sum(len(batch.jobs) for batch in (*suspects, *innocent)))
        for batch in suspects:
            self._carry_out(after_engine_death(batch))
        for batch in innocent:
            if batch.engine_deaths:
                self._scheduler.retry([batch])
            else:
                self._scheduler.requeue(batch.jobs)
        self._pump()

    def _pump(self) -> None:
        """Gives every engine what the scheduler has for it."""
        wake_at = math.inf
        hungry = [engine for engine in self._engines if engine.ready]
        while hungry and self._scheduler:
            # An idle engine before one that would only stage, and that before one with more.
            engine = hungry[0] if len(hungry) == 1 else min(hungry, key=_load)
            plan = self._scheduler.plan(self._clock(), engine.state, self._coming.count)
            for job in plan.expired:
                self._fail(
                    job,
                    DeadlineExceeded(
                        "the deadline passed in the queue, or would have before the answer"
                    ),
                )
            if plan.batch is None:
                wake_at = min(wake_at, plan.wake_at)
                hungry.remove(engine)
            else:
                engine.send(plan.batch)
                self._note(plan.batch)
        self._pump_again_at(wake_at)

    def _pump_soon(self) -> None:
        """Nobody is expected any more: what waited for company goes without it."""
        if self._scheduler:
            # Soon, not now: the image that was expected is about to be submitted.
            asyncio.get_running_loop().call_soon(self._pump, context=_OF_NO_REQUEST)

    def _pump_again_at(self, when: float) -> None:
        if self._timer is not None and when == self._timer_at:
            return
        self._cancel_timer()
        if when < math.inf:
            loop, delay = asyncio.get_running_loop(), max(_TIMER_SECONDS, when - self._clock())
            self._timer = loop.call_later(delay, self._on_timer, context=_OF_NO_REQUEST)
            self._timer_at = when

    def _on_timer(self) -> None:
        self._timer = None
        self._pump()

    def _note(self, batch: Batch) -> None:
        self._metrics.batch_size.observe(len(batch.jobs))
        self._typical_bucket = batch.bucket
        pixels = sum(job.image_pixels for job in batch.jobs)
        self._metrics.padding_waste.observe(max(0.0, 1 - pixels / batch.padded_pixels))

    def _still_wanted(self, batch: Batch) -> Batch:
        """The batch without the images that nobody waits for any more, which are let go."""
        wanted = tuple(job for job in batch.jobs if job in self._answers)
        for job in batch.jobs:
            if job not in self._answers:
                self._forget(job)
        return Batch(batch.bucket, wanted, batch.engine_deaths)

    def _carry_out(self, recovery: Recovery) -> None:
        for job in recovery.failed:
            self._fail(job, InferenceFailed("the model failed on this image"))
        self._scheduler.retry(recovery.retries)

    def _answer(self, job: Job, answer: asyncio.Future[EngineResult], done: BatchDone) -> None:
        try:
            detections = job.lease.read_result()
        except (StaleSlot, ValueError):
            _log.exception("an engine left no answer in its slot")
            self._fail(job, InferenceFailed("the model failed on this image"))
            return
        answer.set_result(
            EngineResult(
                detections,
                assemble_ms=done.assemble_ms,
                forward_ms=done.forward_ms,
                postprocess_ms=done.postprocess_ms,
                copy_ms=done.copy_ms,
                started=done.started,
            )
        )
        self._forget(job)

    def _fail(self, job: Job, error: DetectionError) -> None:
        answer = self._answers.get(job)
        if answer is not None and not answer.done():
            answer.set_exception(error)
        self._forget(job)

    def _abandon(self, job: Job) -> None:
        """The caller went away."""
        if self._scheduler.remove(job):
            self._forget(job)
        else:
            del self._answers[job]
            self._abandoned.add(job)

    def _forget(self, job: Job) -> None:
        """The last of a job here: its slot may serve another request."""
        if self._answers.pop(job, None) is not None or job in self._abandoned:
            self._abandoned.discard(job)
            job.lease.release()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _load(engine: Engine) -> tuple[int, float]:
    """How busy an engine is, for comparison."""
    state: EngineState = engine.state
    return state.in_flight, state.busy_until
