"""The supervisor with stand-in engines, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from service.batching.scheduler import Batch, Job
from service.ipc.messages import (
    BatchDone,
    BatchFailed,
    Hello,
    Start,
)
from service.ipc.slot_pool import SlotPool
from service.ipc.slots import SlotMemory, slot_layout
from service.observability.metrics import Metrics
from service.supervision.process import EngineProcess
from service.supervision.supervisor import Supervisor
from tests.support.fake_device import FAKE_MODEL
from tests.support.jobs import BUCKET
from tests.support.standin_process import StandInProcess, engine_plan
from tests.support.virtual_time import run_in_virtual_time

INTERVAL, CANARY_TIMEOUT, WATCHDOG = 10.0, 5.0, 60.0


def _pool() -> SlotPool:
    return SlotPool(SlotMemory.create(slot_layout(FAKE_MODEL.config, 16)))


def _is_ready(bench: Bench) -> bool:
    return bench.supervisor.ready  # in a function, since mypy narrows the property


class Bench:
    """A supervisor with stand-in engines; records the calls of its listener."""

    def __init__(self) -> None:
        self.behaviour = "complete"  # of engines started from now on
        self.engines: list[StandInProcess] = []
        self.events: list[tuple[str, object]] = []
        self.pool = _pool()
        self.metrics = Metrics()
        plan = engine_plan(
            self.pool,
            watchdog_seconds=WATCHDOG,
            canary_interval_seconds=INTERVAL,
            canary_timeout_seconds=CANARY_TIMEOUT,
        )
        self.now = asyncio.get_running_loop().time
        self.supervisor = Supervisor(plan, self.pool, self.metrics, self.now)

    async def start(self, start: Start, memory: SlotMemory) -> StandInProcess:
        """Replaces `EngineProcess.start`."""
        engine = StandInProcess(memory, self.behaviour, pid=1000 + len(self.engines))
        engine.messages.put_nowait(Hello(engine.pid, "fake", FAKE_MODEL.version, "fake"))
        self.engines.append(engine)
        return engine

    def restarts(self, reason: str) -> float | None:
        name = "lite_detr_engine_restarts_total"
        return self.metrics.registry.get_sample_value(name, {"reason": reason})

    def batch(self) -> Batch:
        return Batch(BUCKET, (Job(self.pool.acquire(), BUCKET, self.now()),))

    # EngineListener:

    def engine_changed(self) -> None:
        self.events.append(("ready" if self.supervisor.ready else "unready", None))

    def batch_done(self, batch: Batch, done: BatchDone) -> None:
        self.events.append(("done", batch))

    def batch_failed(self, batch: Batch, failed: BatchFailed) -> None:
        self.events.append(("failed", batch))

    def batches_lost(self, running: Batch | None, staged: object) -> None:
        self.events.append(("lost", (running, tuple(staged))))  # type: ignore[arg-type]

    def events_named(self, name: str) -> list[object]:
        return [value for event, value in self.events if event == name]


Runner = Callable[[Callable[[Bench], Awaitable[None]]], None]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Runs a scenario with a bench, in virtual time."""

    async def with_bench(scenario: Callable[[Bench], Awaitable[None]]) -> None:
        bench = Bench()
        monkeypatch.setattr(EngineProcess, "start", bench.start)
        ready = bench.supervisor.begin(bench)
        try:
            await scenario(bench)
        finally:
            ready.cancel()
            await bench.supervisor.stop()
            bench.pool.close()

    return lambda scenario: run_in_virtual_time(with_bench(scenario))


def test_an_engine_is_ready_after_its_first_canary(run: Runner) -> None:
    async def scenario(bench: Bench) -> None:
        await asyncio.sleep(0.005)
        [engine] = bench.engines
        assert (len(engine.sent), bench.supervisor.ready) == (1, False)
        await asyncio.sleep(0.1)
        assert bench.supervisor.ready
        assert bench.events == [("ready", None)]

    run(scenario)


def test_a_stop_closes_the_doorbell_of_an_engine_that_does_not_exit(run: Runner) -> None:
    async def scenario(bench: Bench) -> None:
        bench.behaviour = "linger"
        await asyncio.sleep(0.1)
        [engine] = bench.engines
        engine.kill()
        await asyncio.sleep(0.1)
        assert not engine.closed
        await bench.supervisor.stop()
        assert engine.closed

    run(scenario)


def test_an_engine_that_completes_no_canary_is_never_ready_and_is_replaced(run: Runner) -> None:
    async def scenario(bench: Bench) -> None:
        bench.behaviour = "hang"
        await asyncio.sleep(CANARY_TIMEOUT + 1)
        assert not bench.events
        assert bench.restarts("hang") == 1
        assert len(bench.engines) == 2

    run(scenario)


def test_an_idle_engine_gets_a_canary_each_interval_and_a_busy_engine_none(run: Runner) -> None:
    async def scenario(bench: Bench) -> None:
        await asyncio.sleep(10.5 * INTERVAL)
        [engine] = bench.engines
        assert len(engine.sent) == 11
        for _ in range(40):
            bench.supervisor.send(bench.batch()) if bench.pool.in_use < 14 else None
            await asyncio.sleep(INTERVAL / 4)
            for _, batch in bench.events:
                if isinstance(batch, Batch):
                    batch.jobs[0].lease.release()
            bench.events.clear()
        assert len(engine.sent) == 11 + 40

    run(scenario)


def test_an_idle_engine_that_hangs_is_replaced(run: Runner) -> None:
    async def scenario(bench: Bench) -> None:
        await asyncio.sleep(1)
        bench.engines[0].behaviour = "hang"
        await asyncio.sleep(INTERVAL + CANARY_TIMEOUT + 1)
        assert bench.engines[0].killed
        assert bench.restarts("hang") == 1
        assert bench.supervisor.ready
        assert [event for event, _ in bench.events] == ["ready", "unready", "ready"]

    run(scenario)


def test_an_idle_engine_that_only_fails_is_replaced(run: Runner) -> None:
    async def scenario(bench: Bench) -> None:
        await asyncio.sleep(1)
        bench.engines[0].behaviour = "fail"
        await asyncio.sleep(INTERVAL)
        assert not bench.supervisor.ready  # after the first failed canary
        await asyncio.sleep(3)
        assert bench.restarts("canary") == 1
        assert (len(bench.engines), bench.supervisor.ready) == (2, True)

    run(scenario)


def test_an_engine_is_not_ready_until_a_failed_canary_is_repeated_with_success(run: Runner) -> None:
    async def scenario(bench: Bench) -> None:
        await asyncio.sleep(1)
        bench.engines[0].behaviour = "fail"
        await asyncio.sleep(INTERVAL)
        assert not _is_ready(bench)
        bench.engines[0].behaviour = "complete"
        await asyncio.sleep(1)
        assert bench.supervisor.ready
        assert len(bench.engines) == 1

    run(scenario)


def test_a_failed_batch_is_reported_after_a_successful_canary(run: Runner) -> None:
    async def scenario(bench: Bench) -> None:
        await asyncio.sleep(1)
        [engine] = bench.engines
        engine.behaviour = "fail"
        batch = bench.batch()
        bench.supervisor.send(batch)
        await asyncio.sleep(0.015)
        engine.behaviour = "complete"
        assert not bench.events_named("failed")
        await asyncio.sleep(0.1)
        assert bench.events_named("failed") == [batch]
        assert bench.supervisor.ready

    run(scenario)


def test_batches_that_a_lost_device_failed_are_returned_as_lost(run: Runner) -> None:
    async def scenario(bench: Bench) -> None:
        await asyncio.sleep(1)
        bench.engines[0].behaviour = "fail"
        first, second = bench.batch(), bench.batch()
        bench.supervisor.send(first)
        bench.supervisor.send(second)
        await asyncio.sleep(0.1)
        assert bench.events[-1] == ("unready", None)
        await asyncio.sleep(5)
        assert bench.events_named("lost") == [(first, (second,))]
        assert not bench.events_named("failed")
        assert bench.supervisor.ready

    run(scenario)


def test_a_batch_staged_behind_a_hanging_canary_is_not_suspect(run: Runner) -> None:
    async def scenario(bench: Bench) -> None:
        await asyncio.sleep(1)
        bench.engines[0].behaviour = "hang"
        await asyncio.sleep(INTERVAL)
        staged = bench.batch()
        bench.supervisor.send(staged)
        await asyncio.sleep(CANARY_TIMEOUT + 1)
        assert bench.events_named("lost") == [(None, (staged,))]

    run(scenario)


def test_a_hanging_batch_is_suspect_and_a_batch_of_a_stopped_engine_is_not(run: Runner) -> None:
    async def scenario(bench: Bench) -> None:
        await asyncio.sleep(1)
        bench.engines[0].behaviour = "hang"
        first, second = bench.batch(), bench.batch()
        bench.supervisor.send(first)
        await asyncio.sleep(WATCHDOG + 1)
        bench.engines[1].behaviour = "hang"
        bench.supervisor.send(second)
        await asyncio.sleep(1)
        bench.engines[1].on_stopped()
        await asyncio.sleep(1)
        assert bench.events_named("lost") == [(first, ()), (None, (second,))]
        assert (bench.restarts("hang"), bench.restarts("stopped")) == (1, 1)

    run(scenario)


@pytest.mark.parametrize("reply_seconds", [0.01, 0.3, 0.6, 1.5])
def test_there_is_never_more_than_one_canary_in_flight(run: Runner, reply_seconds: float) -> None:
    """Also not if batches fail behind a canary that fails, so that both cause another one."""

    async def scenario(bench: Bench) -> None:
        await asyncio.sleep(0.1)
        [engine] = bench.engines
        canary = engine.sent[0].slots[0][0]
        engine.reply_seconds, engine.behaviour = reply_seconds, "fail"
        while not engine.held:
            await asyncio.sleep(0.005)
        for _ in range(3):
            bench.supervisor.send(bench.batch())
        while not engine.killed:
            assert sum(message.slots[0][0] == canary for message in engine.held) <= 1
            await asyncio.sleep(0.005)
        await asyncio.sleep(1)
        assert bench.restarts("canary") == 1

    run(scenario)


def test_infrequent_exits_of_an_idle_engine_are_no_storm(run: Runner) -> None:
    async def scenario(bench: Bench) -> None:
        for _ in range(10):
            await asyncio.sleep(10 * INTERVAL)
            bench.engines[-1].kill()
        await asyncio.sleep(1)
        assert len(bench.engines) == 11
        assert bench.supervisor.live

    run(scenario)


def test_an_engine_that_runs_other_weights_is_refused(run: Runner) -> None:
    async def scenario(bench: Bench) -> None:
        other = replace(FAKE_MODEL, version="f" * 12)
        bench.supervisor._plan = replace(bench.supervisor._plan, model=other)
        await asyncio.sleep(1)
        assert bench.restarts("start_failed")
        assert not bench.supervisor.ready

    run(scenario)
