"""Keeps one engine running: starts it, monitors it, replaces it.

    batcher --send--> Supervisor --> EngineSession (one per process) --> engine process
    batcher <--engine_changed-- Supervisor

An engine that exits, hangs past its watchdog or sends an invalid message is killed and reaped
(only then are its slots safe to reuse) and replaced. Batches that it had not completed go back to
the batcher. A loaded engine is ready once it has completed a canary. An unexpected exception in
the supervision of an engine is treated like its death: it is logged, the process is killed and
reaped, and another one is started.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextvars import Context

import structlog

from service.batching.engine_protocol import EngineListener
from service.batching.estimates import ServiceTime
from service.batching.scheduler import Batch, EngineState
from service.ipc.messages import EXIT_DEVICE_LOST, BadMessage, Hello, RecordingLost, Stop
from service.ipc.slot_pool import SlotPool
from service.observability.metrics import Metrics
from service.supervision.backoff import RestartPolicy
from service.supervision.canary import Canary
from service.supervision.facts import describe_engine, log_ready
from service.supervision.graph_limit import GraphLimit
from service.supervision.guard import errors_logged, is_cancellation
from service.supervision.in_flight import UnexpectedBatch
from service.supervision.plan import EnginePlan, EngineStartError
from service.supervision.process import EngineProcess
from service.supervision.session import EngineSession
from service.types import EngineFacts

_REAP_SECONDS = 10.0  # a killed process exits in milliseconds unless blocked in the kernel
_STOP_SECONDS = 5.0  # an idle engine exits much sooner
_ERROR_PAUSE_SECONDS = 1.0  # before a step that failed unexpectedly is repeated
_RETURN_ATTEMPTS = 3  # if the batcher raises; requests whose batch is not returned time out

_log = structlog.get_logger(__name__)


class Supervisor:
    """The engine of one device; has at most one engine process at a time."""

    def __init__(
        self,
        plan: EnginePlan,
        pool: SlotPool,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Creates a supervisor; `begin` starts the engine.

        Args:
            plan: what to run.
            pool: slot pool; one of its slots is reserved for the canary.
            metrics: counts batches and restarts.
            clock: monotonic seconds.
        """
        self._plan = plan
        self._memory = pool.memory
        self._canary = Canary(pool, plan.model.config)
        self._metrics = metrics
        self._clock = clock
        self._restarts = RestartPolicy(plan.storm_restarts, plan.storm_window_seconds)
        self._graph_limit = GraphLimit(plan.start.max_cuda_graphs)
        self._service_time = ServiceTime()
        self._listener: EngineListener | None = None
        self._first_ready: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._engine: EngineProcess | None = None
        self._session: EngineSession | None = None  # of `_engine`, once it has loaded
        self._hello: Hello | None = None  # of the current engine, or of the last one
        self._ready = False
        self._stopping = False
        self._stuck = False
        self._exit_reason = "exit"

    @property
    def ready(self) -> bool:
        """Whether the engine takes batches."""
        return self._ready

    @property
    def live(self) -> bool:
        """Whether replacing engines can still help; see `RestartPolicy.is_storm`."""
        return not self._stuck and not self._restarts.is_storm(self._clock())

    @property
    def kernel(self) -> str:
        """The attention implementation of the engine; empty before the first is ready."""
        return "" if self._hello is None else self._hello.implementations.get("kernel", "")

    @property
    def facts(self) -> EngineFacts | None:
        """Device, kernel and precision of the engine; None before the first is ready."""
        return None if self._hello is None else describe_engine(self._hello)

    @property
    def last_success(self) -> float:
        """When the engine last completed a batch, monotonic seconds; -inf if never."""
        return self._canary.last_success

    @property
    def pid(self) -> int | None:
        """Process id of the current engine; None while there is none."""
        return None if self._engine is None else self._engine.pid

    @property
    def state(self) -> EngineState:
        """The engine's state, for the scheduler; only while `ready`."""
        return self._ready_session.state

    @property
    def busy_share(self) -> float | None:
        """The share of the recent time in which the engine was busy; None while not ready."""
        return self._ready_session.busy_share if self._ready else None

    def predicted_seconds(self, padded_pixels: int) -> float:
        """Predicted run time of a batch of so many padded pixels; 0 before the first batch."""
        return self._service_time.predict(padded_pixels)

    def begin(self, listener: EngineListener) -> asyncio.Future[None]:
        """Starts the engine and keeps one running until `stop`.

        Returns:
            A future that completes when the first engine is ready. It fails with
            `EngineStartError` if that engine reports that it cannot start.
        """
        self._listener = listener
        self._first_ready = asyncio.get_running_loop().create_future()
        # In an empty context: log lines about the engine do not name the request that loaded it.
        self._task = asyncio.create_task(self._run(), name="supervisor", context=Context())
        self._task.add_done_callback(self._on_task_end)
        return self._first_ready

    async def stop(self) -> None:
        """Ends the engine permanently; batches that it holds are dropped."""
        self._stopping = True
        task, self._task = self._task, None
        if task is None:
            return
        if self._engine is not None:
            with errors_logged():
                self._engine.send(Stop())
        idle = self._ready and len(self._ready_session) == 0
        done, _ = await asyncio.wait([task], timeout=_STOP_SECONDS if idle else 0)
        if not done:
            if self._engine is not None:
                with errors_logged():
                    self._engine.kill()
            task.cancel()
            await asyncio.wait([task])
        if self._first_ready is not None:
            self._first_ready.cancel()

    def send(self, batch: Batch) -> None:
        """Sends a batch to the engine, behind those that it holds; only while `ready`."""
        self._ready_session.send(batch)

    def batch_succeeded(self) -> None:
        """The engine completed a batch of requests."""
        self._restarts.record_success()

    def canary_succeeded(self) -> None:
        """The engine can take batches."""
        if self._ready:
            self._restarts.record_success()  # not for the first canary of an engine
            return
        self._ready = True
        if self._first_ready is not None and not self._first_ready.done():
            self._first_ready.set_result(None)
        self._notified.engine_changed()

    def canary_failed(self) -> None:
        """The engine gets no batches until the next canary succeeds."""
        self._set_unready()

    def kill_engine(self, reason: str, event: str, error: Exception | None = None) -> None:
        """Kills the engine: `reason` for metrics, `event` and `error` for the log."""
        # In an empty context: the event is not that of a request in which it was noticed.
        Context().run(_log.error, event, exc_info=error)
        self._exit_reason = reason
        if self._engine is None:
            return
        try:
            self._engine.kill()
        except Exception:
            _log.exception("the engine cannot be killed")
            self._engine.close()  # wakes `_run_engine`, which tries again

    @property
    def _ready_session(self) -> EngineSession:
        assert self._session is not None, "only a ready engine takes batches"
        return self._session

    @property
    def _notified(self) -> EngineListener:
        assert self._listener is not None, "begin() was not called"
        return self._listener

    async def _run(self) -> None:
        """Runs one engine process after the other, until `stop`."""
        while not self._stopping:
            self._exit_reason = "exit"
            try:
                await self._run_engine()
            except (Exception, asyncio.CancelledError) as error:
                if is_cancellation(error):
                    raise
                self._on_error(error)
            if not self._stopping:
                await asyncio.sleep(self._after_exit())

    async def _run_engine(self) -> None:
        """Runs one engine process, from its start until it is reaped.

        Raises:
            Exception: if it is unexpected.
        """
        try:
            start = self._graph_limit.apply(self._plan.start)
            self._engine = engine = await EngineProcess.start(start, self._memory)
        except Exception as error:
            self._exit_reason = "start_failed"
            _log.error("the engine process cannot be started", exc_info=error)
            return
        try:
            engine.watch_stops(self._on_stopped)
            if await self._wait_until_loaded(engine):
                self._session = self._make_session(engine)
                self._session.begin()
                await engine.listen(self._session.handle)
        except EngineStartError as error:
            self._on_start_error(error)
        except TimeoutError:
            self._exit_reason = "start_timeout"
        except (BadMessage, UnexpectedBatch) as error:
            self._exit_reason = "bad_message"
            _log.error("invalid message from the engine", error=str(error))
        except (Exception, asyncio.CancelledError) as error:
            if is_cancellation(error):
                raise
            self._on_error(error)
        finally:
            with errors_logged():
                self._end_session()
            try:
                await self._kill_and_reap(engine)
            finally:  # also if `stop` cancels the wait
                with errors_logged():
                    engine.close()
                self._engine = None

    async def _wait_until_loaded(self, engine: EngineProcess) -> bool:
        """Waits until the engine has loaded the right model; returns False if it ended.

        Raises:
            EngineStartError, BadMessage: see `EnginePlan.check_hello`.
            TimeoutError: if it takes longer than `start_timeout_seconds`.
        """
        async with asyncio.timeout(self._plan.start_timeout_seconds):
            message = await engine.receive()
        if message is None:
            return False
        if isinstance(message, RecordingLost):
            self._exit_reason = "cuda_graphs"
            self._graph_limit.recording_lost(message)
            return False
        self._hello = hello = self._plan.check_hello(message)
        log_ready(hello)
        return True

    def _make_session(self, engine: EngineProcess) -> EngineSession:
        return EngineSession(
            engine,
            self._plan,
            self._canary,
            self._service_time,
            self._metrics,
            owner=self,
            listener=self._notified,
            clock=self._clock,
        )

    def _on_stopped(self) -> None:
        self.kill_engine("stopped", "the engine was stopped (SIGSTOP); killing it")

    def _on_start_error(self, error: EngineStartError) -> None:
        self._exit_reason = "start_failed"
        _log.error("the engine cannot start", error=str(error))
        if self._first_ready is not None and not self._first_ready.done():
            self._first_ready.set_exception(error)

    def _end_session(self) -> None:
        if self._session is not None:
            self._session.stop()
        self._set_unready()

    def _set_unready(self) -> None:
        was_ready, self._ready = self._ready, False
        if was_ready:
            self._notified.engine_changed()

    async def _kill_and_reap(self, engine: EngineProcess) -> None:
        """Kills an engine and waits for its exit; a long wait fails liveness.

        The wait has no limit, since the slots of a running process cannot be leased again, unless
        the service stops.
        """
        while not await self._try_to_reap(engine):
            self._stuck = True
            _log.critical("a killed engine does not exit", pid=engine.pid)
            if self._stopping:
                return
        self._stuck = False
        if engine.exit_status == EXIT_DEVICE_LOST and self._session is not None:
            with errors_logged():
                self._graph_limit.device_lost(0 if self.facts is None else self.facts.cuda_graphs)
        if not self._stopping:
            _log.warning(
                "engine exited",
                pid=engine.pid,
                exit_status=engine.exit_status,
                reason=self._exit_reason,
                batches=0 if self._session is None else len(self._session),
            )

    async def _try_to_reap(self, engine: EngineProcess) -> bool:
        try:
            engine.kill()
            return await engine.reap(_REAP_SECONDS)
        except (Exception, asyncio.CancelledError) as error:
            if is_cancellation(error):
                raise
            self._on_error(error)
            await asyncio.sleep(_ERROR_PAUSE_SECONDS)
            return False

    def _after_exit(self) -> float:
        """Counts the exit and returns the ended engine's batches to the batcher.

        Returns:
            Seconds to wait before the next start.
        """
        delay = _ERROR_PAUSE_SECONDS
        with errors_logged():
            delay = self._restarts.record_exit(self._clock())
        with errors_logged():
            self._metrics.engine_restarts.labels(self._exit_reason).inc()
        session, self._session = self._session, None
        if session is not None:
            for _ in range(_RETURN_ATTEMPTS):
                with errors_logged():
                    session.return_batches(self._exit_reason)
                    break
        return delay

    def _on_error(self, error: BaseException) -> None:
        self._exit_reason = "error"
        _log.error("unexpected error in the supervision of the engine", exc_info=error)

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
        """Without its task the engine is never replaced: liveness fails."""
        if not self._stopping and not task.cancelled():
            self._stuck = True
            _log.critical("the supervision of the engine ended", exc_info=task.exception())
