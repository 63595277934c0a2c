"""Keeps one engine alive: starts it, rings it, watches it, replaces it.

    batcher --send--> Supervisor --> EngineSession (one a life) --> engine process
    batcher <--engine_changed-- Supervisor

An engine that exits, hangs past its watchdog or talks nonsense is killed, reaped (only then are
its slots safe) and replaced; what it had not answered goes back to the batcher, which decides. One
that has loaded is ready when it has answered a canary.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from service.batching.engine_protocol import EngineListener
from service.batching.estimates import ServiceTime
from service.batching.scheduler import Batch, EngineState
from service.ipc.messages import BadMessage, Hello, Stop
from service.ipc.slots import SlotPool
from service.observability.metrics import Metrics
from service.supervision.backoff import RestartPolicy
from service.supervision.canary import Canary
from service.supervision.in_flight import UnexpectedBatch
from service.supervision.plan import EnginePlan, EngineStartError
from service.supervision.process import EngineProcess
from service.supervision.session import EngineSession
from service.types import EngineFacts

_REAP_SECONDS = 10.0  # a killed process is gone in milliseconds unless the kernel holds it
_STOP_SECONDS = 5.0  # an idle engine ends at once

_log = structlog.get_logger(__name__)


class Supervisor:
    """One engine to one device: at any time at most one engine process behind it."""

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
        self._metrics = metrics
        self._clock = clock
        self._restarts = RestartPolicy(plan.storm_restarts, plan.storm_window_seconds)
        self._service_time = ServiceTime()
        self._listener: EngineListener | None = None
        self._first_ready: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._engine: EngineProcess | None = None
        self._session: EngineSession | None = None  # of that engine, once it is loaded
        self._hello: Hello | None = None  # of the engine that runs, or the one that ran last
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
        return not self._stuck and not self._restarts.is_storm(self._clock())

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
    def state(self) -> EngineState:
        """For the scheduler; only while `ready`."""
        return self._at_work.state

    def predicted_seconds(self, padded_pixels: int) -> float:
        """How long one batch of so many padded pixels takes; 0 where nobody can tell."""
        return self._service_time.predict(padded_pixels)

    def begin(self, listener: EngineListener) -> asyncio.Future[None]:
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
        idle = self._ready and len(self._at_work) == 0
        done, _ = await asyncio.wait([task], timeout=_STOP_SECONDS if idle else 0)
        if not done:
            if self._engine is not None:
                self._engine.kill()
            task.cancel()
            await asyncio.wait([task])
        if self._first_ready is not None:
            self._first_ready.cancel()

    def send(self, batch: Batch) -> None:
        """Hands a batch to the engine, behind what it holds already; only while `ready`."""
        self._at_work.send(batch)

    def batch_succeeded(self) -> None:
        """The engine did what it is there for."""
        self._restarts.record_success()

    def canary_succeeded(self) -> None:
        """The engine can take batches."""
        if self._ready:
            self._restarts.record_success()  # unlike a first canary: it has lived for some time
            return
        self._ready = True
        if self._first_ready is not None and not self._first_ready.done():
            self._first_ready.set_result(None)
        self._tell().engine_changed()

    def canary_failed(self) -> None:
        """The engine should take none until the next canary is answered."""
        self._be_unready()

    def kill_engine(self, reason: str, event: str) -> None:
        """Kills the engine: a reason for metrics, an event for the log."""
        _log.error(event)
        self._death_reason = reason
        if self._engine is not None:
            self._engine.kill()

    @property
    def _at_work(self) -> EngineSession:
        assert self._session is not None, "batches are for a ready engine"
        return self._session

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
            if await self._greet(engine):
                self._session = self._make_session(engine)
                self._session.begin()
                await engine.listen(self._session.take)
        except TimeoutError:
            self._death_reason = "start_timeout"
        except (BadMessage, UnexpectedBatch) as error:
            self._death_reason = "bad_message"
            _log.error("the engine talks nonsense", error=str(error))
        finally:
            self._retire()
            engine.kill()
            try:
                await self._reap(engine)
            finally:  # also where `stop` cuts the wait short
                engine.close()
                self._engine = None

    async def _greet(self, engine: EngineProcess) -> bool:
        """Waits until the engine is warm and runs the right model; False where it is gone.

        Raises:
            EngineStartError, BadMessage: see `EnginePlan.accept`.
            TimeoutError: where it takes too long.
        """
        async with asyncio.timeout(self._plan.start_timeout_seconds):
            message = await engine.receive()
        if message is None:
            return False
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
        return True

    def _make_session(self, engine: EngineProcess) -> EngineSession:
        return EngineSession(
            engine,
            self._plan,
            self._canary,
            self._service_time,
            self._metrics,
            owner=self,
            listener=self._tell(),
            clock=self._clock,
        )

    def _on_stopped(self) -> None:
        self.kill_engine("stopped", "the engine was stopped and does not go on; killing it")

    def _on_start_error(self, error: EngineStartError) -> None:
        self._death_reason = "start_failed"
        _log.error("the engine cannot start", error=str(error))
        if self._first_ready is not None and not self._first_ready.done():
            self._first_ready.set_exception(error)

    def _retire(self) -> None:
        """No more batches to this engine."""
        if self._session is not None:
            self._session.stop()
        self._be_unready()

    def _be_unready(self) -> None:
        was_ready, self._ready = self._ready, False
        if was_ready:
            self._tell().engine_changed()

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
                batches=0 if self._session is None else len(self._session),
            )

    async def _mourn(self) -> None:
        """Gives back what the dead engine held, and waits before the next."""
        self._metrics.engine_restarts.labels(self._death_reason).inc()
        delay = self._restarts.record_exit(self._clock())
        session, self._session = self._session, None
        if session is not None:
            session.lose(self._death_reason)
        await asyncio.sleep(delay)

    def _tell(self) -> EngineListener:
        assert self._listener is not None, "begin() was not called"
        return self._listener
