"""Keeps one engine alive: starts it, rings it, watches it, replaces it.

    batcher --send--> Supervisor --RunBatch--> engine process
    batcher <--batch_done / batch_failed / batches_lost / lane_changed-- Supervisor

An engine that exits, hangs past its watchdog or talks nonsense is killed, reaped (only then are
its slots safe) and replaced; what it had not answered goes back to the batcher, which decides. One
that has loaded is ready when it has answered a canary, and gets another whenever it was silent
for long or failed a batch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from service.alarm import Alarm
from service.canary import Canary
from service.doubts import Doubts
from service.engine_plan import EnginePlan, EngineStartError
from service.engine_process import EngineProcess
from service.flight import Flight, WrongTurn
from service.lane import LaneListener
from service.messages import (
    BadMessage,
    BatchDone,
    BatchFailed,
    Hello,
    Message,
    RunBatch,
    Stop,
)
from service.metrics import Metrics
from service.restarts import RestartPolicy
from service.scheduler import Batch, LaneState
from service.service_time import ServiceTime
from service.slots import SlotPool
from service.types import EngineFacts

_REAP_SECONDS = 10.0  # a killed process is gone in milliseconds unless the kernel holds it
_STOP_SECONDS = 5.0  # an idle engine ends at once
_CANARY_RETRY_SECONDS = 0.5  # after one that failed
_MOMENT_SECONDS = 0.001  # rounding must not make it look again and again
_NO_FAULT_OF_A_BATCH = frozenset({"canary", "stopped"})  # reasons for an engine's end

_log = structlog.get_logger(__name__)


class Supervisor:
    """One lane to one device: at any time at most one engine process behind it."""

    def __init__(
        self,
        plan: EnginePlan,
        pool: SlotPool,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepares; `begin` starts.

        Args:
            plan: what to run.
            pool: of the slots; one of them becomes the canary's.
            metrics: where batches and deaths are counted.
            clock: monotonic seconds.
        """
        self._plan = plan
        self._memory = pool.memory
        self._canary = Canary(pool, plan.model.config)
        self._doubts = Doubts()
        self._metrics = metrics
        self._clock = clock
        self._restarts = RestartPolicy(plan.storm_restarts, plan.storm_window_seconds)
        self._service_time = ServiceTime()
        self._flight = Flight(clock(), self._service_time)
        self._listener: LaneListener | None = None
        self._first_ready: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._engine: EngineProcess | None = None
        self._hello: Hello | None = None  # of the engine that runs, or the one that ran last
        self._watchdog = Alarm()
        self._next_canary = Alarm()
        self._ready = False
        self._stopping = False
        self._stuck = False
        self._death_reason = "exit"

    @property
    def ready(self) -> bool:
        """Whether the engine takes batches."""
        return self._ready

    @property
    def live(self) -> bool:
        """False where replacing engines does not help any more."""
        return not self._stuck and not self._restarts.storming(self._clock())

    @property
    def kernel(self) -> str:
        """Which attention implementation the engine runs; empty before the first is ready."""
        return "" if self._hello is None else self._hello.implementations.get("kernel", "")

    @property
    def facts(self) -> EngineFacts | None:
        """What the engine computes with; None before the first is ready."""
        if self._hello is None:
            return None
        said = self._hello.implementations
        graphs = int(said.get("cuda_graphs", "0"))
        return EngineFacts(self._hello.device, self.kernel, said.get("precision", ""), graphs)

    @property
    def last_success(self) -> float:
        """When it last answered a batch, monotonic seconds; -inf where it never did."""
        return self._canary.last_success

    @property
    def pid(self) -> int | None:
        """Of the engine that runs, if any."""
        return None if self._engine is None else self._engine.pid

    @property
    def state(self) -> LaneState:
        """For the scheduler."""
        return self._flight.state()

    def predicted_seconds(self, padded_pixels: int) -> float:
        """How long one batch of so many padded pixels takes; 0 where nobody can tell."""
        return self._flight.predicted_seconds(padded_pixels)

    def begin(self, listener: LaneListener) -> asyncio.Future[None]:
        """Starts the engine and keeps one running until `stop`.

        Returns:
            A future that is done when the first engine is ready; it fails with
            `EngineStartError` where that engine said that it cannot start.
        """
        self._listener = listener
        self._first_ready = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(), name="supervisor")
        return self._first_ready

    async def stop(self) -> None:
        """Ends the engine for good; batches that it still holds are given up."""
        self._stopping = True
        task, self._task = self._task, None
        if task is None:
            return
        if self._engine is not None:
            self._engine.send(Stop())
        idle = self._ready and not self._flight
        done, _ = await asyncio.wait([task], timeout=_STOP_SECONDS if idle else 0)
        if not done:
            if self._engine is not None:
                self._engine.kill()
            task.cancel()
            await asyncio.wait([task])
        if self._first_ready is not None:
            self._first_ready.cancel()

    def send(self, batch: Batch) -> None:
        """Hands a batch to the engine, behind what it holds already."""
        assert self._ready, "batches are for a ready engine"
        self._ring(batch)

    def _ring(self, batch: Batch) -> None:
        assert self._engine is not None, "batches are for an engine"
        batch_id = self._flight.add(batch, self._clock())
        slots = tuple((job.lease.slot, job.lease.generation) for job in batch.jobs)
        self._engine.send(RunBatch(batch_id, batch.bucket, slots))
        if len(self._flight) == 1:
            self._wind_watchdog()

    async def _run(self) -> None:
        while not self._stopping:
            self._death_reason = "exit"
            try:
                await self._live_once()
            except EngineStartError as error:
                self._on_start_error(error)
            except OSError as error:
                _log.error("the engine cannot be started", error=str(error))
            if not self._stopping:
                await self._mourn()

    async def _live_once(self) -> None:
        """One engine, from its start to its reaping.

        Raises:
            EngineStartError: where it said that it cannot start.
            OSError: where the system cannot start a process.
        """
        self._engine = engine = await EngineProcess.start(self._plan.start, self._memory)
        engine.watch_stops(self._on_stopped)
        try:
            await self._greet(engine)
            await engine.listen(self._take)
        except TimeoutError:
            self._death_reason = "start_timeout"
        except (BadMessage, WrongTurn) as error:
            self._death_reason = "bad_message"
            _log.error("the engine talks nonsense", error=str(error))
        finally:
            self._retire()
            engine.kill()
            try:
                await self._reap(engine)
            finally:  # also where `stop` cuts the wait short
                engine.hang_up()
                self._engine = None

    async def _greet(self, engine: EngineProcess) -> None:
        """Waits until the engine is warm and runs the right model; sends its first canary.

        Raises:
            EngineStartError, BadMessage: see `EnginePlan.accept`.
            TimeoutError: where it takes too long.
        """
        async with asyncio.timeout(self._plan.start_timeout_seconds):
            message = await engine.receive()
        if message is None:
            return
        self._hello = hello = self._plan.accept(message)
        _log.info(
            "engine ready",
            pid=hello.pid,
            device=hello.device,
            load_seconds=round(hello.load_seconds, 3),
            warm_up_seconds=round(hello.warm_up_seconds, 3),
            warm_up_shapes=hello.warm_up_shapes,
            warm_up_left_out=hello.warm_up_left_out,
            **hello.implementations,
        )
        self._flight = Flight(self._clock(), self._service_time)
        self._canary.reset()
        self._send_canary()

    def _take(self, message: Message) -> None:
        """One answer of the engine; it answers in the order that it was rung."""
        if not isinstance(message, BatchDone | BatchFailed):
            raise BadMessage(f"{type(message).__name__} out of turn")
        batch, seconds = self._flight.answered(message.batch_id, self._clock())
        self._wind_watchdog()
        if self._canary.owns(batch):
            self._take_canary(message)
        elif isinstance(message, BatchDone):
            self._restarts.worked()
            self._on_success()
            self._flight.learn(batch, seconds)
            self._metrics.batch_seconds.observe(seconds)
            self._tell().batch_done(batch, message)
        else:
            self._metrics.batch_failures.labels(message.failure).inc()
            self._doubts.add(batch, message)
            if not self._canary.under_way:
                self._send_canary()

    def _take_canary(self, message: BatchDone | BatchFailed) -> None:
        """The end of a canary: the engine is ready, or it is one failure nearer to its end."""
        if isinstance(message, BatchDone) and self._canary.answered():
            self._on_success()
            self._next_canary.set(self._plan.canary_interval_seconds, self._on_silence)
            if self._ready:
                self._restarts.worked()  # unlike a first canary: it has lived for some time
            else:
                self._on_ready()
            return
        reason = message.reason if isinstance(message, BatchFailed) else "its slot holds no answer"
        _log.error("a canary failed", reason=reason)
        if self._canary.failed():
            self._kill("canary", "canaries fail again and again; killing the engine")
        else:
            self._next_canary.set(_CANARY_RETRY_SECONDS, self._send_canary)
        self._doubts.blame_device()
        self._be_unready()

    def _on_success(self) -> None:
        """The device answered; batches that it failed before are judged by that."""
        self._canary.succeeded(self._clock())
        judgement = self._doubts.judge()
        for batch, failed in judgement.failed:
            self._tell().batch_failed(batch, failed)
        if judgement.lost:
            self._tell().batches_lost(judgement.lost[0], judgement.lost[1:])

    def _on_ready(self) -> None:
        self._ready = True
        if self._first_ready is not None and not self._first_ready.done():
            self._first_ready.set_result(None)
        self._tell().lane_changed()

    def _on_silence(self) -> None:
        """Nothing was heard for some time, unless requests were answered meanwhile."""
        if self._canary.under_way:  # whose end winds the timer anew
            return
        silent = self._clock() - self._canary.last_success
        if self._flight or silent < self._plan.canary_interval_seconds:
            left = self._plan.canary_interval_seconds - silent
            soonest = _CANARY_RETRY_SECONDS if self._flight else _MOMENT_SECONDS
            self._next_canary.set(max(left, soonest), self._on_silence)
        else:
            self._send_canary()

    def _send_canary(self) -> None:
        self._ring(self._canary.make_batch(self._clock()))

    def _wind_watchdog(self) -> None:
        """Gives the batch that runs now its time."""
        if self._flight:
            plan, canary = self._plan, self._canary.owns(self._flight.running)
            seconds = plan.canary_timeout_seconds if canary else plan.watchdog_seconds
            self._watchdog.set(seconds, self._on_hang)
        else:
            self._watchdog.stop()

    def _on_hang(self) -> None:
        self._kill("hang", "the engine hangs; killing it")

    def _on_stopped(self) -> None:
        self._kill("stopped", "the engine was stopped and does not go on; killing it")

    def _kill(self, reason: str, event: str) -> None:
        _log.error(event)
        self._death_reason = reason
        if self._engine is not None:
            self._engine.kill()

    def _on_start_error(self, error: EngineStartError) -> None:
        self._death_reason = "start_failed"
        _log.error("the engine cannot start", error=str(error))
        if self._first_ready is not None and not self._first_ready.done():
            self._first_ready.set_exception(error)

    def _retire(self) -> None:
        """No more batches to this engine."""
        self._watchdog.stop()
        self._next_canary.stop()
        self._be_unready()

    def _be_unready(self) -> None:
        was_ready, self._ready = self._ready, False
        if was_ready:
            self._tell().lane_changed()

    async def _reap(self, engine: EngineProcess) -> None:
        """Waits for the end of a killed engine, however long; being stuck fails liveness."""
        while not await engine.reap(_REAP_SECONDS):
            self._stuck = True
            _log.critical("a killed engine does not go away", pid=engine.pid)
        self._stuck = False
        if not self._stopping:
            _log.warning(
                "engine gone",
                pid=engine.pid,
                exit_status=engine.exit_status,
                reason=self._death_reason,
                batches=len(self._flight),
            )

    async def _mourn(self) -> None:
        """Gives back what the dead engine held, and waits before the next."""
        now = self._clock()
        self._metrics.engine_restarts.labels(self._death_reason).inc()
        running, staged = self._lost(now)
        delay = self._restarts.died(now)
        if running or staged:
            self._tell().batches_lost(running, staged)
        await asyncio.sleep(delay)

    def _lost(self, now: float) -> tuple[Batch | None, list[Batch]]:
        """The batch that may have been the engine's end, if any, and those that were not."""
        judgement = self._doubts.judge()
        failed = (*judgement.lost, *(batch for batch, _ in judgement.failed))
        held = self._flight.take_all(now)
        batches = [b for b in (*failed, *held) if not self._canary.owns(b)]
        # What it failed comes first; else what it ran then, unless that was a canary, or it was
        # ended for what no batch had done.
        ran = bool(held) and not self._canary.owns(held[0])
        if failed or (ran and self._death_reason not in _NO_FAULT_OF_A_BATCH):
            return batches[0], batches[1:]
        return None, batches

    def _tell(self) -> LaneListener:
        assert self._listener is not None, "begin() was not called"
        return self._listener
