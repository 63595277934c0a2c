"""Canaries, and what a supervisor makes of them; the engine is a stand-in, the time virtual."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from model.detections import Detections
from service.batching.scheduler import Batch, Job
from service.ipc.messages import (
    BatchDone,
    BatchFailed,
    Hello,
    Message,
    RunBatch,
    Start,
)
from service.ipc.slots import SlotMemory, SlotPool, slot_layout
from service.observability.metrics import Metrics
from service.supervision.canary import Canary
from service.supervision.failed_batches import FailedBatches
from service.supervision.plan import EnginePlan
from service.supervision.process import EngineProcess
from service.supervision.supervisor import Supervisor
from tests.support.fake_device import FAKE_MODEL
from tests.support.jobs import BUCKET
from tests.support.virtual_time import run_in_virtual_time

NOTHING = Detections(np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros((0, 4), np.float32))
INTERVAL, CANARY_TIMEOUT, WATCHDOG = 10.0, 5.0, 60.0


def _pool(count: int = 16) -> SlotPool:
    return SlotPool(SlotMemory.create(slot_layout(FAKE_MODEL.config, count)))


def test_a_canary_is_small_and_takes_a_slot_of_its_own() -> None:
    pool = _pool(2)
    canary = Canary(pool, FAKE_MODEL.config)
    assert (pool.count, pool.in_use) == (1, 0)
    batch = canary.make_batch(3.0)
    lease = batch.jobs[0].lease
    image = pool.memory.read_header(lease.slot, lease.generation)
    assert image.size[0] < FAKE_MODEL.config.bucket_stride
    assert image.padded == batch.bucket
    assert canary.owns(batch)
    assert canary.in_flight
    assert not canary.owns(None)


def test_an_answer_to_the_canary_before_proves_nothing() -> None:
    pool = _pool()
    canary = Canary(pool, FAKE_MODEL.config)
    old = canary.make_batch(0.0).jobs[0].lease
    pool.memory.write_result(old.slot, old.generation, NOTHING)
    new = canary.make_batch(1.0).jobs[0].lease
    assert not canary.complete()
    pool.memory.write_result(new.slot, new.generation, NOTHING)
    assert canary.complete()
    assert not canary.in_flight


def test_only_failures_in_a_row_count() -> None:
    canary = Canary(_pool(), FAKE_MODEL.config)
    assert [canary.record_failure() for _ in range(3)] == [False] * 3
    canary.record_success(1.0)
    assert canary.last_success == 1.0
    assert [canary.record_failure() for _ in range(4)] == [False, False, False, True]
    canary.reset()
    assert not canary.record_failure()


def _batch(number: int) -> tuple[Batch, BatchFailed]:
    return Batch(BUCKET, ()), BatchFailed(number, "no")


def test_a_failed_batch_is_to_blame_where_the_device_answers_next() -> None:
    failed_batches, (batch, failed) = FailedBatches(), _batch(1)
    failed_batches.add(batch, failed)
    resolution = failed_batches.resolve()
    assert (resolution.failed, resolution.lost) == (((batch, failed),), ())
    assert failed_batches.resolve().failed == ()


def test_the_device_is_to_blame_where_a_canary_fails() -> None:
    failed_batches, first, second = FailedBatches(), _batch(1), _batch(2)
    failed_batches.add(*first)
    failed_batches.mark_device_failed()
    failed_batches.add(*second)
    resolution = failed_batches.resolve()
    assert (resolution.failed, resolution.lost) == ((), (first[0], second[0]))


@dataclass
class StandInEngine:
    """Answers after 10 ms, fails, or says nothing, as a test wants it."""

    memory: SlotMemory
    does: str
    pid: int
    exit_status: int = -9
    killed: bool = False
    hung_up: bool = False
    rung: list[RunBatch] = field(default_factory=list)
    on_stopped: Callable[[], None] = lambda: None
    words: asyncio.Queue[Message | None] = field(default_factory=asyncio.Queue)

    def send(self, message: Message) -> None:
        if not isinstance(message, RunBatch):
            return
        self.rung.append(message)
        if self.does != "hang":
            asyncio.get_running_loop().call_later(0.01, self._answer, message)

    def _answer(self, message: RunBatch) -> None:
        if self.does == "fail":
            self.words.put_nowait(BatchFailed(message.batch_id, "lost"))
            return
        for slot, generation in message.slots:
            self.memory.write_result(slot, generation, NOTHING)
        self.words.put_nowait(BatchDone(message.batch_id, 1.0, 2.0, 3.0))

    def watch_stops(self, on_stopped: Callable[[], None]) -> None:
        self.on_stopped = on_stopped

    async def receive(self) -> Message | None:
        return await self.words.get()

    async def listen(self, take: Callable[[Message], None]) -> None:
        while (message := await self.words.get()) is not None:
            take(message)

    def kill(self) -> None:
        self.killed = True
        self.words.put_nowait(None)

    async def reap(self, timeout_seconds: float) -> bool:
        if self.does == "linger":
            await asyncio.sleep(60)
        return True

    def close(self) -> None:
        self.hung_up = True


class Bench:
    """A supervisor with stand-in engines; notes what its listener is told."""

    def __init__(self) -> None:
        self.does = "answer"  # what engines that start from now on do
        self.engines: list[StandInEngine] = []
        self.told: list[tuple[str, object]] = []
        self.pool = _pool()
        self.metrics = Metrics()
        start = Start("", "", "cpu", 1, self.pool.memory.layout, "error", "json")
        plan = EnginePlan(
            start=start,
            model=FAKE_MODEL,
            start_timeout_seconds=30,
            watchdog_seconds=WATCHDOG,
            canary_interval_seconds=INTERVAL,
            canary_timeout_seconds=CANARY_TIMEOUT,
            storm_restarts=5,
            storm_window_seconds=60,
            weights_name="",
        )
        self.now = asyncio.get_running_loop().time
        self.supervisor = Supervisor(plan, self.pool, self.metrics, self.now)

    async def start(self, start: Start, memory: SlotMemory) -> StandInEngine:
        """In place of `EngineProcess.start`."""
        engine = StandInEngine(memory, self.does, pid=1000 + len(self.engines))
        engine.words.put_nowait(Hello(engine.pid, "fake", FAKE_MODEL.version, "fake"))
        self.engines.append(engine)
        return engine

    def restarts(self, reason: str) -> float | None:
        name = "lite_detr_engine_restarts_total"
        return self.metrics.registry.get_sample_value(name, {"reason": reason})

    def batch(self) -> Batch:
        return Batch(BUCKET, (Job(self.pool.acquire(), BUCKET, self.now()),))

    # The listener.

    def engine_changed(self) -> None:
        self.told.append(("ready" if self.supervisor.ready else "unready", None))

    def batch_done(self, batch: Batch, done: BatchDone) -> None:
        self.told.append(("done", batch))

    def batch_failed(self, batch: Batch, failed: BatchFailed) -> None:
        self.told.append(("failed", batch))

    def batches_lost(self, running: Batch | None, staged: object) -> None:
        self.told.append(("lost", (running, tuple(staged))))  # type: ignore[arg-type]

    def was_told(self, what: str) -> list[object]:
        return [about for said, about in self.told if said == what]


@pytest.fixture
def tell(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Bench], Awaitable[None]]], None]:
    """Runs a story with a bench, in virtual time."""

    async def run(story: Callable[[Bench], Awaitable[None]]) -> None:
        bench = Bench()
        monkeypatch.setattr(EngineProcess, "start", bench.start)
        ready = bench.supervisor.begin(bench)
        try:
            await story(bench)
        finally:
            ready.cancel()
            await bench.supervisor.stop()
            bench.pool.close()

    return lambda story: run_in_virtual_time(run(story))


Teller = Callable[[Callable[[Bench], Awaitable[None]]], None]


def test_an_engine_is_ready_when_its_first_canary_is_answered(tell: Teller) -> None:
    async def story(bench: Bench) -> None:
        await asyncio.sleep(0.005)
        [engine] = bench.engines
        assert (len(engine.rung), bench.supervisor.ready) == (1, False)
        await asyncio.sleep(0.1)
        assert bench.supervisor.ready
        assert bench.told == [("ready", None)]

    tell(story)


def test_a_stop_hangs_up_on_an_engine_that_does_not_go_away(tell: Teller) -> None:
    async def story(bench: Bench) -> None:
        bench.does = "linger"
        await asyncio.sleep(0.1)
        [engine] = bench.engines
        engine.kill()
        await asyncio.sleep(0.1)
        assert not engine.hung_up
        await bench.supervisor.stop()
        assert engine.hung_up

    tell(story)


def test_an_engine_that_answers_no_canary_is_never_ready_and_replaced(tell: Teller) -> None:
    async def story(bench: Bench) -> None:
        bench.does = "hang"
        await asyncio.sleep(CANARY_TIMEOUT + 1)
        assert not bench.told
        assert bench.restarts("hang") == 1
        assert len(bench.engines) == 2

    tell(story)


def test_an_idle_engine_gets_a_canary_each_interval_and_a_busy_one_none(tell: Teller) -> None:
    async def story(bench: Bench) -> None:
        await asyncio.sleep(10.5 * INTERVAL)
        [engine] = bench.engines
        assert len(engine.rung) == 11
        for _ in range(40):
            bench.supervisor.send(bench.batch()) if bench.pool.in_use < 14 else None
            await asyncio.sleep(INTERVAL / 4)
            for _, batch in bench.told:
                if isinstance(batch, Batch):
                    batch.jobs[0].lease.release()
            bench.told.clear()
        assert len(engine.rung) == 11 + 40

    tell(story)


def test_an_idle_engine_that_falls_silent_is_replaced(tell: Teller) -> None:
    async def story(bench: Bench) -> None:
        await asyncio.sleep(1)
        bench.engines[0].does = "hang"
        await asyncio.sleep(INTERVAL + CANARY_TIMEOUT + 1)
        assert bench.engines[0].killed
        assert bench.restarts("hang") == 1
        assert bench.supervisor.ready
        assert [said for said, _ in bench.told] == ["ready", "unready", "ready"]

    tell(story)


def test_an_idle_engine_that_answers_errors_alone_is_replaced(tell: Teller) -> None:
    async def story(bench: Bench) -> None:
        await asyncio.sleep(1)
        bench.engines[0].does = "fail"
        await asyncio.sleep(INTERVAL)
        assert not bench.supervisor.ready  # with the first canary that fails
        await asyncio.sleep(3)
        assert bench.restarts("canary") == 1
        assert (len(bench.engines), bench.supervisor.ready) == (2, True)

    tell(story)


def test_a_canary_that_fails_once_takes_an_engine_out_for_a_moment(tell: Teller) -> None:
    async def story(bench: Bench) -> None:
        await asyncio.sleep(1)
        bench.engines[0].does = "fail"
        await asyncio.sleep(INTERVAL)
        assert [bench.supervisor.ready] == [False]
        bench.engines[0].does = "answer"
        await asyncio.sleep(1)
        assert bench.supervisor.ready
        assert len(bench.engines) == 1

    tell(story)


def test_a_batch_that_fails_is_told_so_once_a_canary_is_answered(tell: Teller) -> None:
    async def story(bench: Bench) -> None:
        await asyncio.sleep(1)
        [engine] = bench.engines
        engine.does = "fail"
        batch = bench.batch()
        bench.supervisor.send(batch)
        await asyncio.sleep(0.015)
        engine.does = "answer"
        assert not bench.was_told("failed")
        await asyncio.sleep(0.1)
        assert bench.was_told("failed") == [batch]
        assert bench.supervisor.ready

    tell(story)


def test_what_a_lost_device_failed_runs_again_elsewhere(tell: Teller) -> None:
    async def story(bench: Bench) -> None:
        await asyncio.sleep(1)
        bench.engines[0].does = "fail"
        first, second = bench.batch(), bench.batch()
        bench.supervisor.send(first)
        bench.supervisor.send(second)
        await asyncio.sleep(0.1)
        assert bench.told[-1] == ("unready", None)
        await asyncio.sleep(5)
        assert bench.was_told("lost") == [(first, (second,))]
        assert not bench.was_told("failed")
        assert bench.supervisor.ready

    tell(story)


def test_what_was_staged_behind_a_canary_that_hangs_is_not_suspect(tell: Teller) -> None:
    async def story(bench: Bench) -> None:
        await asyncio.sleep(1)
        bench.engines[0].does = "hang"
        await asyncio.sleep(INTERVAL)
        staged = bench.batch()
        bench.supervisor.send(staged)
        await asyncio.sleep(CANARY_TIMEOUT + 1)
        assert bench.was_told("lost") == [(None, (staged,))]

    tell(story)


def test_a_batch_that_hangs_is_suspect_and_one_of_a_stopped_engine_is_not(tell: Teller) -> None:
    async def story(bench: Bench) -> None:
        await asyncio.sleep(1)
        bench.engines[0].does = "hang"
        first, second = bench.batch(), bench.batch()
        bench.supervisor.send(first)
        await asyncio.sleep(WATCHDOG + 1)
        bench.engines[1].does = "hang"
        bench.supervisor.send(second)
        await asyncio.sleep(1)
        bench.engines[1].on_stopped()
        await asyncio.sleep(1)
        assert bench.was_told("lost") == [(first, ()), (None, (second,))]
        assert (bench.restarts("hang"), bench.restarts("stopped")) == (1, 1)

    tell(story)


def test_deaths_of_an_idle_engine_far_apart_are_no_storm(tell: Teller) -> None:
    async def story(bench: Bench) -> None:
        for _ in range(10):
            await asyncio.sleep(10 * INTERVAL)
            bench.engines[-1].kill()
        await asyncio.sleep(1)
        assert len(bench.engines) == 11
        assert bench.supervisor.live

    tell(story)


def test_an_engine_that_runs_other_weights_is_refused(tell: Teller) -> None:
    async def story(bench: Bench) -> None:
        other = replace(FAKE_MODEL, version="f" * 12)
        bench.supervisor._plan = replace(bench.supervisor._plan, model=other)
        await asyncio.sleep(1)
        assert bench.restarts("start_failed")
        assert not bench.supervisor.ready

    tell(story)
