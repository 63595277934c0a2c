"""Unexpected exceptions in the supervision of an engine: each is handled like the engine's death.

One call of one function raises, wherever the supervision is at that moment. Afterwards an engine
is ready again, every other one was killed and closed, no request hangs and no slot is lost.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from service.batching.batcher import Batcher
from service.batching.queues import JobQueue, RetryQueue
from service.batching.scheduler import BatchPolicy, Job, Scheduler
from service.errors import DetectionError
from service.ipc.child_process import children_of
from service.ipc.doorbell import EdgeDoorbell
from service.ipc.messages import Hello, Start
from service.ipc.slot_pool import SlotPool
from service.ipc.slots import SlotMemory, slot_layout
from service.observability.metrics import Metrics
from service.supervision import process
from service.supervision.backoff import RestartPolicy
from service.supervision.canary import Canary
from service.supervision.failed_batches import FailedBatches
from service.supervision.in_flight import BatchesInFlight
from service.supervision.plan import EnginePlan
from service.supervision.process import EngineProcess
from service.supervision.session import EngineSession
from service.supervision.supervisor import Supervisor
from service.supervision.timer import Timer
from tests.support.fake_device import FAKE_MODEL
from tests.support.fake_service import detect, fake_settings, open_fake_core, value
from tests.support.images import solid_png
from tests.support.jobs import BUCKET
from tests.support.standin_process import StandInProcess, engine_plan
from tests.support.virtual_time import run_in_virtual_time

_POINTS: tuple[tuple[type, str], ...] = (
    (StandInProcess, "watch_stops"),
    (StandInProcess, "receive"),
    (StandInProcess, "listen"),
    (StandInProcess, "send"),
    (StandInProcess, "kill"),
    (StandInProcess, "reap"),
    (StandInProcess, "close"),
    (EnginePlan, "check_hello"),
    (EngineSession, "begin"),
    (EngineSession, "handle"),
    (EngineSession, "send"),
    (EngineSession, "stop"),
    (EngineSession, "return_batches"),
    (Canary, "make_batch"),
    (Canary, "complete"),
    (Canary, "record_success"),
    (Canary, "record_failure"),
    (Canary, "reset"),
    (Canary, "owns"),
    (BatchesInFlight, "add"),
    (BatchesInFlight, "complete"),
    (BatchesInFlight, "learn"),
    (BatchesInFlight, "take_all"),
    (FailedBatches, "add"),
    (FailedBatches, "resolve"),
    (RestartPolicy, "record_exit"),
    (RestartPolicy, "record_success"),
    (Timer, "start"),
    (Batcher, "engine_changed"),
    (Batcher, "batch_done"),
    (Batcher, "batch_failed"),
    (Batcher, "batches_lost"),
    (Scheduler, "plan"),
    (JobQueue, "take"),
    (RetryQueue, "take"),
)
POINTS = {f"{owner.__name__}.{name}": (owner, name) for owner, name in _POINTS}
ERRORS: tuple[Exception, ...] = (
    RuntimeError("can't start new thread"),
    KeyError("lost"),
    OSError(errno.EMFILE, "Too many open files"),
    MemoryError(),
    AssertionError(),
    TimeoutError(),
    ValueError("impossible"),
)


class Faults:
    """Replaces a method by one that raises at one of its calls."""

    def __init__(self, owner: Any, name: str, call: int, error: BaseException) -> None:
        self.calls, self.raised = 0, False
        self._owner, self._name = owner, name
        self._original = getattr(owner, name)

        def faulty(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == call:
                self.raised = True
                raise error
            return self._original(*args, **kwargs)

        setattr(owner, name, faulty)

    def restore(self) -> None:
        setattr(self._owner, self._name, self._original)


class Service:
    """A batcher and a supervisor with stand-in engines, and clients."""

    def __init__(self) -> None:
        self.pool = SlotPool(SlotMemory.create(slot_layout(FAKE_MODEL.config, 9)))
        self.engines: list[StandInProcess] = []
        self.metrics = Metrics()
        self.outcomes: Counter[str] = Counter()
        self.now = asyncio.get_running_loop().time
        plan = engine_plan(self.pool, watchdog_seconds=2, storm_restarts=50)
        self.supervisor = Supervisor(plan, self.pool, self.metrics, self.now)
        policy = BatchPolicy(max_batch_size=2)
        self.batcher = Batcher(Scheduler(policy), [self.supervisor], self.metrics, self.now)

    async def start(self, start: Start, memory: SlotMemory) -> StandInProcess:
        """Replaces `EngineProcess.start`."""
        engine = StandInProcess(memory, "complete", pid=1000 + len(self.engines))
        engine.messages.put_nowait(Hello(engine.pid, "fake", FAKE_MODEL.version, "fake"))
        self.engines.append(engine)
        return engine

    async def request(self) -> str:
        """Sends an image if a slot is free; returns the outcome."""
        lease = self.pool.acquire()
        try:
            async with asyncio.timeout(15):
                await self.batcher.run(Job(lease, BUCKET, self.now(), self.now() + 15))
        except DetectionError as error:
            return error.code
        except TimeoutError:
            return "timeout"
        finally:
            lease.release()
        return "ok"

    async def client(self, seconds: float) -> None:
        end = self.now() + seconds
        while self.now() < end:
            self.outcomes[await self.request()] += 1
            await asyncio.sleep(0.2)

    async def trouble(self) -> None:
        """An engine that exits, one that fails its batches for a while, and one that hangs."""
        await asyncio.sleep(3)
        self.engines[-1].exit()
        await asyncio.sleep(4)
        self.engines[-1].behaviour = "fail"
        await asyncio.sleep(0.1)
        self.engines[-1].behaviour = "complete"
        await asyncio.sleep(4)
        self.engines[-1].behaviour = "hang"
        await asyncio.sleep(8)


async def _run_service(fault: tuple[Any, ...]) -> bool:
    """Returns whether the fault was met."""
    service, original = Service(), EngineProcess.start
    EngineProcess.start = service.start  # type: ignore[method-assign, assignment]
    faults = Faults(*fault)
    first_ready = service.supervisor.begin(service.batcher)
    try:
        clients = [asyncio.create_task(service.client(20)) for _ in range(4)]
        await service.trouble()
        await asyncio.gather(*clients)
        await asyncio.sleep(30)  # longer than any pause before a restart
        assert service.supervisor.ready
        assert service.supervisor.live
        *others, last = service.engines
        assert not last.killed
        assert all(engine.killed for engine in others)
        closed = sum(engine.closed for engine in others)
        assert closed == len(others) - (fault[:2] == (StandInProcess, "close") and faults.raised)
        assert set(service.outcomes) <= {"ok", "inference_failed"}, service.outcomes
        assert [await service.request() for _ in range(3)] == ["ok"] * 3
        assert service.pool.in_use == 0
    finally:
        faults.restore()
        first_ready.cancel()
        await service.supervisor.stop()
        EngineProcess.start = original  # type: ignore[method-assign]
        service.pool.close()
    return faults.raised


def _meet(point: str, call: int, error: BaseException) -> None:
    with capture_logs() as lines:
        raised = run_in_virtual_time(_run_service((*POINTS[point], call, error)))
    if raised:
        assert any(line["log_level"] in {"error", "critical"} for line in lines), lines


@pytest.mark.parametrize("point", POINTS)
def test_an_unexpected_error_costs_at_most_one_engine(point: str) -> None:
    _meet(point, 1, KeyError("lost"))


@given(st.sampled_from(sorted(POINTS)), st.integers(1, 60), st.sampled_from(ERRORS))
@settings(max_examples=40, deadline=None)
def test_an_unexpected_error_at_any_call_costs_at_most_one_engine(
    point: str, call: int, error: Exception
) -> None:
    _meet(point, call, error)


@pytest.mark.parametrize("point", ["receive", "listen", "reap"])
def test_the_cancellation_of_something_awaited_costs_at_most_one_engine(point: str) -> None:
    """It looks like the cancellation of the supervisor, which nobody has asked for."""
    _meet(f"StandInProcess.{point}", 2, asyncio.CancelledError())


def _engines() -> set[int]:
    """The engine processes that this process has started and not reaped."""
    pids = children_of(os.getpid())
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids}
    return {pid for pid, command in commands.items() if b"service.engine.main" in command}


@pytest.mark.parametrize("call", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("owner", "name", "error"),
    [
        (EngineProcess, "_start_waiting", RuntimeError("can't start new thread")),
        (process, "_spawn", OSError(errno.EAGAIN, "Resource temporarily unavailable")),
        (EdgeDoorbell, "data_received", KeyError("lost")),
        *(
            pytest.param(*rarer, marks=pytest.mark.slow)
            for rarer in (
                (process, "_spawn", MemoryError()),
                (EngineProcess, "send", KeyError("lost")),
                (EdgeDoorbell, "open", OSError(errno.EMFILE, "Too many open files")),
                (os, "waitid", PermissionError()),
            )
        ),
    ],
    ids=lambda value: getattr(value, "__name__", None) or str(value),
)
async def test_after_an_error_in_the_start_of_a_process_another_one_serves(
    owner: Any, name: str, call: int, error: Exception
) -> None:
    with capture_logs():
        async with open_fake_core(fake_settings()) as core:
            faults = Faults(owner, name, call, error)
            try:
                await asyncio.wait_for(asyncio.shield(core.first_ready), 60)
                [first] = core.detector.served.engine_pids
                assert first is not None
                os.kill(first, signal.SIGKILL)
                await _until(lambda: core.detector.served.engine_pids not in ((first,), (None,)))
                await _until(lambda: core.detector.ready)
            finally:
                faults.restore()
            result = await detect(core.detector, solid_png((1, 2, 3)))
            assert result.model_version == FAKE_MODEL.version
            assert _engines() == set(core.detector.served.engine_pids)
            restarts = sum(
                value(core.detector, "engine_restarts_total", reason=reason) or 0
                for reason in ("exit", "start_failed", "error")
            )
            assert restarts >= 1 + (faults.raised and name != "waitid")


async def _until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.01)
