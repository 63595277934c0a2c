from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import numpy as np
import pytest

from model.detections import Detections
from service.batching.batcher import Batcher, EngineResult
from service.batching.prediction import Prediction
from service.batching.scheduler import Batch, BatchPolicy, EngineState, Job, Scheduler
from service.errors import DeadlineExceeded, InferenceFailed, ShuttingDown
from service.ipc.messages import BatchDone, BatchFailed
from service.ipc.slot_pool import SlotPool
from service.ipc.slots import SlotImage
from service.observability.metrics import Metrics
from service.supervision.in_flight import BatchesInFlight
from service.types import Priority
from tests.support.jobs import BUCKET, JobMaker, small_pool


class StandInEngine:
    """An engine that completes a batch when the test says so; each result is its slot's number."""

    def __init__(self, pool: SlotPool) -> None:
        self.ready = True
        self.live = True
        self.kernel = "none"
        self.held: list[Batch] = []
        self._pool = pool
        self._in_flight = BatchesInFlight(0.0)

    @property
    def state(self) -> EngineState:
        return EngineState(len(self.held), 0.0, float("-inf"))

    def send(self, batch: Batch) -> None:
        self.held.append(batch)

    @property
    def last_success(self) -> float:
        return 0.0

    def predicted_seconds(self, padded_pixels: int) -> float:
        return padded_pixels / 1e6

    def complete(self, batcher: Batcher) -> None:
        batch = self.held.pop(0)
        for job in batch.jobs:
            slot, generation = job.lease.slot, job.lease.generation
            self._pool.memory.write_result(slot, generation, result_of(slot))
        batcher.batch_done(batch, BatchDone(0, 1.0, 2.0, 3.0))

    def fail(self, batcher: Batcher) -> None:
        batcher.batch_failed(self.held.pop(0), BatchFailed(0, "no"))

    def die(self, batcher: Batcher) -> None:
        (running, *staged), self.held = self.held, []
        batcher.batches_lost(running, staged)


def result_of(slot: int) -> Detections:
    box = np.full((1, 4), slot, dtype=np.float32)
    return Detections(np.ones(1, np.float32), np.array([slot]), box)


class Bench:
    """A batcher with one stand-in engine."""

    def __init__(self, max_wait_ms: float = 60_000) -> None:
        self.pool = small_pool()
        self.job = JobMaker(self.pool)
        self.engine = StandInEngine(self.pool)
        self.metrics = Metrics()
        policy = BatchPolicy(max_batch_size=4, max_wait_ms=max_wait_ms)
        self.batcher = Batcher(Scheduler(policy), [self.engine], self.metrics)

    def submit(
        self, count: int, deadline: float = float("inf")
    ) -> list[asyncio.Task[EngineResult]]:
        tasks = []
        for _ in range(count):
            job = self.job(time.monotonic(), BUCKET, deadline)
            image = SlotImage((2, 2), BUCKET, (2, 2))
            job.lease.write_image(np.zeros((2, 2, 3), np.uint8), image)
            tasks.append(asyncio.create_task(self._one(job)))
        return tasks

    async def _one(self, job: Job) -> EngineResult:
        try:
            result = await self.batcher.run(job)
            assert result.detections.labels[0] == job.lease.slot
            return result
        finally:
            job.lease.release()

    def value(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"lite_detr_{name}")


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.pool.close()


async def test_each_caller_gets_its_own_result(bench: Bench) -> None:
    tasks = bench.submit(9)
    await asyncio.sleep(0)
    while bench.engine.held:
        bench.engine.complete(bench.batcher)
    results = await asyncio.gather(*tasks)
    assert {(r.assemble_ms, r.forward_ms, r.postprocess_ms) for r in results} == {(1.0, 2.0, 3.0)}
    assert bench.pool.in_use == 0


async def test_a_busy_engine_holds_two_batches_and_other_images_wait(bench: Bench) -> None:
    tasks = bench.submit(12)
    await asyncio.sleep(0)
    assert len(bench.engine.held) == 2
    assert bench.batcher.queue_depth == 12 - sum(len(batch.jobs) for batch in bench.engine.held)
    while bench.engine.held:
        bench.engine.complete(bench.batcher)
    await asyncio.gather(*tasks)


async def test_an_image_being_decoded_joins_the_batch(bench: Bench) -> None:
    decoded = asyncio.Event()

    async def decode_and_run() -> EngineResult:
        with bench.batcher.track_decoding():
            await decoded.wait()
        return await bench.submit(1)[0]

    late = asyncio.create_task(decode_and_run())
    await asyncio.sleep(0)
    early = bench.submit(1)
    await asyncio.sleep(0)
    assert bench.engine.held == []
    with bench.batcher.track_decoding():
        decoded.set()
        while bench.batcher.queue_depth == 1:
            await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [len(batch.jobs) for batch in bench.engine.held] == [2]
    bench.engine.complete(bench.batcher)
    await asyncio.gather(*early, late)


async def test_waiting_for_images_being_decoded_ends_after_max_wait() -> None:
    bench = Bench(max_wait_ms=5)
    with bench.batcher.track_decoding():
        tasks = bench.submit(1)
        while not bench.engine.held:
            await asyncio.sleep(0.005)
        bench.engine.complete(bench.batcher)
    await asyncio.gather(*tasks)


async def test_a_failed_decoding_ends_the_wait_for_it(bench: Bench) -> None:
    with bench.batcher.track_decoding():
        tasks = bench.submit(1)
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    bench.engine.complete(bench.batcher)
    await asyncio.gather(*tasks)


async def test_a_cancelled_image_leaves_the_queue_and_releases_its_slot(bench: Bench) -> None:
    bench.engine.ready = False
    stays, goes = bench.submit(2)
    await asyncio.sleep(0)
    goes.cancel()
    await asyncio.sleep(0)
    assert (bench.batcher.queue_depth, bench.pool.in_use) == (1, 1)
    bench.engine.ready = True
    bench.batcher.engine_changed()
    assert len(bench.engine.held[0].jobs) == 1
    bench.engine.complete(bench.batcher)
    await stays


async def test_a_cancelled_image_in_flight_keeps_its_slot_until_the_engine_completed_it(
    bench: Bench,
) -> None:
    (task,) = bench.submit(1)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert bench.pool.in_use == 1
    bench.engine.complete(bench.batcher)
    assert bench.pool.in_use == 0


async def test_a_cancelled_image_is_not_retried_after_an_engine_death(bench: Bench) -> None:
    bench.engine.ready = False
    stays, goes = bench.submit(2)
    await asyncio.sleep(0)
    bench.engine.ready = True
    bench.batcher.engine_changed()
    goes.cancel()
    await asyncio.wait([goes])
    bench.engine.die(bench.batcher)
    assert (len(bench.engine.held[0].jobs), bench.pool.in_use) == (1, 1)
    bench.engine.complete(bench.batcher)
    await stays


async def test_an_expired_image_fails_and_is_not_sent(bench: Bench) -> None:
    bench.engine.ready = False
    (task,) = bench.submit(1, deadline=time.monotonic() - 1)
    await asyncio.sleep(0)
    bench.engine.ready = True
    bench.batcher.engine_changed()
    with pytest.raises(DeadlineExceeded):
        await task
    assert (bench.engine.held, bench.pool.in_use) == ([], 0)


async def test_a_failing_image_fails_alone(bench: Bench) -> None:
    bench.engine.ready = False
    tasks = bench.submit(4)
    await asyncio.sleep(0)
    bench.engine.ready = True
    bench.batcher.engine_changed()
    poison = bench.engine.held[0].jobs[2]
    while bench.engine.held:
        if poison in bench.engine.held[0].jobs:
            bench.engine.fail(bench.batcher)
        else:
            bench.engine.complete(bench.batcher)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results].count(InferenceFailed) == 1
    assert isinstance(results[2], InferenceFailed)
    assert bench.pool.in_use == 0


async def test_an_image_that_kills_engines_fails_alone_and_staged_images_do_not(
    bench: Bench,
) -> None:
    bench.engine.ready = False
    tasks = bench.submit(7)
    await asyncio.sleep(0)
    bench.engine.ready = True
    bench.batcher.engine_changed()
    assert [len(batch.jobs) for batch in bench.engine.held] == [4, 3]
    poison, engine_deaths = bench.engine.held[0].jobs[1], 0
    while bench.engine.held:
        if poison in bench.engine.held[0].jobs:
            engine_deaths += 1
            bench.engine.die(bench.batcher)
        else:
            bench.engine.complete(bench.batcher)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [index for index, result in enumerate(results) if isinstance(result, Exception)] == [1]
    assert engine_deaths == 3
    assert bench.value("replayed_total")
    assert bench.pool.in_use == 0


async def test_an_image_without_a_result_in_its_slot_fails(bench: Bench) -> None:
    (task,) = bench.submit(1)
    await asyncio.sleep(0)
    batch = bench.engine.held.pop()
    bench.batcher.batch_done(batch, BatchDone(0, 0.0, 0.0, 0.0))
    with pytest.raises(InferenceFailed):
        await task
    assert bench.pool.in_use == 0


async def test_closing_fails_all_waiting_and_running_images(bench: Bench) -> None:
    tasks = bench.submit(12)
    await asyncio.sleep(0)
    tasks[0].cancel()
    await asyncio.sleep(0)
    bench.batcher.close()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in results[1:]} == {ShuttingDown}
    assert bench.pool.in_use == 0


async def test_batches_and_their_padding_are_measured(bench: Bench) -> None:
    tasks = bench.submit(1)
    await asyncio.sleep(0)
    bench.engine.complete(bench.batcher)
    await asyncio.gather(*tasks)
    assert bench.value("batch_size_count") == 1
    assert bench.value("padding_waste_ratio_sum") == pytest.approx(1.0)


async def test_predictions_are_zero_before_the_first_batch(bench: Bench) -> None:
    assert bench.batcher.predict() == Prediction(0.0, 0.0)
    bench.engine.ready = False
    assert bench.batcher.predict() == Prediction(0.0, 0.0)
    assert not bench.batcher.ready
    assert bench.batcher.live
    assert bench.batcher.kernel == "none"


async def test_the_predicted_wait_is_the_run_time_of_the_batches_before(bench: Bench) -> None:
    image_seconds = BUCKET[0] * BUCKET[1] / 1e6  # of the stand-in
    tasks = bench.submit(8)
    await asyncio.sleep(0)
    assert bench.batcher.queue_depth == 6  # one image runs, one is staged
    prediction = bench.batcher.predict()
    assert prediction.wait == pytest.approx(4 * image_seconds)
    assert prediction.run == pytest.approx(3 * image_seconds)
    high = bench.batcher.predict(Priority.HIGH)
    assert high.wait == 0.0
    assert high.run == pytest.approx(image_seconds)
    while bench.engine.held:
        bench.engine.complete(bench.batcher)
    await asyncio.gather(*tasks)


async def test_an_idle_engine_gets_a_batch_before_one_that_would_stage_it(bench: Bench) -> None:
    second = StandInEngine(bench.pool)
    policy = BatchPolicy(max_batch_size=4, max_wait_ms=60_000)
    bench.batcher = Batcher(Scheduler(policy), [bench.engine, second], bench.metrics)
    engines = (bench.engine, second)
    tasks = bench.submit(2)
    await asyncio.sleep(0)
    assert [len(engine.held) for engine in engines] == [1, 1]
    tasks += bench.submit(2)
    await asyncio.sleep(0)
    assert [len(engine.held) for engine in engines] == [2, 2]
    for engine in (*engines, *engines):
        engine.complete(bench.batcher)
    await asyncio.gather(*tasks)


async def test_the_batches_of_an_ended_engine_go_to_another_engine(bench: Bench) -> None:
    second = StandInEngine(bench.pool)
    second.ready = False
    policy = BatchPolicy(max_batch_size=4)
    bench.batcher = Batcher(Scheduler(policy), [bench.engine, second], bench.metrics)
    tasks = bench.submit(3)
    await asyncio.sleep(0)
    bench.engine.ready, second.ready = False, True
    bench.engine.die(bench.batcher)
    assert (bench.batcher.ready, len(second.held)) == (True, 2)
    while second.held:
        second.complete(bench.batcher)
    await asyncio.gather(*tasks)


class TimerLoop:
    """An event loop that records the delays of timers and never runs them."""

    def __init__(self) -> None:
        self.delays: list[float] = []
        self._loop = asyncio.get_running_loop()

    def call_later(self, delay: float, *_: object, **__: object) -> asyncio.TimerHandle:
        self.delays.append(delay)
        return self._loop.call_later(60, lambda: None)

    def create_future(self) -> asyncio.Future[object]:
        return self._loop.create_future()


@pytest.mark.parametrize("soon", [0.0002, 0.0104])
async def test_a_timer_is_started_once_per_time_and_lasts_at_least_a_millisecond(
    monkeypatch: pytest.MonkeyPatch, bench: Bench, soon: float
) -> None:
    class BusyEngine(StandInEngine):
        @property
        def state(self) -> EngineState:
            return EngineState(1, 0.0, end)

    now = 5.0
    end, policy = now + soon, BatchPolicy(stage_lead_ms=0.0)
    engine = BusyEngine(bench.pool)
    bench.batcher = Batcher(Scheduler(policy), [engine], bench.metrics, clock=lambda: now)
    loop = TimerLoop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    tasks = [asyncio.ensure_future(bench.batcher.run(bench.job(now))) for _ in range(3)]
    await asyncio.sleep(0)
    monkeypatch.undo()
    assert loop.delays == [pytest.approx(max(soon, 0.001))]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    bench.batcher.close()
