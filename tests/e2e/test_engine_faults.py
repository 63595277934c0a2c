"""The service core with real engine processes that fail."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from service.build import open_detector
from service.core.detector import Detector
from service.errors import (
    DeadlineExceeded,
    InferenceFailed,
    NotReady,
    Overloaded,
    ShuttingDown,
)
from service.supervision.plan import EngineStartError
from service.types import DetectResult, Priority
from tests.support.fake_device import FAKE_MODEL
from tests.support.fake_serve import fake_backend
from tests.support.fake_service import (
    assert_is_result_of,
    detect,
    fake_settings,
    open_fake_core,
    open_fake_detector,
    value,
)
from tests.support.faulty_decode import wait_while
from tests.support.images import solid_png

POISON = (250, 1, 2)
POISON_HEX = "fa0102"


async def _until(holds: object, timeout_seconds: float = 120.0) -> None:
    assert callable(holds)
    async with asyncio.timeout(timeout_seconds):
        while not holds():
            await asyncio.sleep(0.005)


def _engine_pid(detector: Detector) -> int:
    [pid] = detector.served.engine_pids
    assert pid is not None
    return pid


def _images(count: int) -> list[bytes]:
    return [solid_png((number, 255 - number, 7), 64, 48) for number in range(count)]


async def _detect_all(
    detector: Detector, images: list[bytes]
) -> list[DetectResult | BaseException]:
    return await asyncio.gather(
        *(detect(detector, data) for data in images), return_exceptions=True
    )


@pytest.mark.parametrize(
    "sent", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)]
)
async def test_no_request_fails_when_an_engine_is_killed_or_stopped_under_load(
    sent: signal.Signals,
) -> None:
    settings = fake_settings(slots=40, fake_per_image_ms=4)
    async with open_fake_detector(settings) as detector:
        images = _images(40)
        results = asyncio.create_task(_detect_all(detector, images))
        await _until(lambda: value(detector, "images_total", outcome="ok"))
        os.kill(_engine_pid(detector), sent)
        await _until(lambda: not detector.ready)
        assert "loaded" in detector.not_ready_reason
        with pytest.raises(NotReady) as refusal:
            await detect(detector, images[0])
        assert refusal.value.retry_after_seconds
        for data, result in zip(images, await results, strict=True):
            assert isinstance(result, DetectResult), result
            assert_is_result_of(data, result)
        assert detector.ready
        assert detector.live
        assert value(detector, "slots_in_use") == 0
        reason = "exit" if sent is signal.SIGKILL else "stopped"
        assert value(detector, "engine_restarts_total", reason=reason) == 1
        assert value(detector, "replayed_total")


@pytest.mark.parametrize("fault", ["crash", "error"])
async def test_a_poison_image_fails_alone(fault: str) -> None:
    settings = fake_settings(**{f"fake_{fault}_colour": POISON_HEX}, max_wait_ms=200)
    async with open_fake_detector(settings) as detector:
        images = _images(7)
        images.insert(3, solid_png(POISON))
        results = await _detect_all(detector, images)
        for number, (data, result) in enumerate(zip(images, results, strict=True)):
            if number == 3:
                assert isinstance(result, InferenceFailed)
            else:
                assert isinstance(result, DetectResult), result
                assert_is_result_of(data, result)
        await _until(lambda: detector.ready)
        assert detector.live
        assert value(detector, "slots_in_use") == 0


@pytest.mark.slow
async def test_an_image_that_hangs_the_engine_fails() -> None:
    settings = fake_settings(fake_hang_colour=POISON_HEX, watchdog_seconds=0.5)
    async with open_fake_detector(settings) as detector:
        with pytest.raises(InferenceFailed):
            await detect(detector, solid_png(POISON))
        await _until(lambda: detector.ready)
        assert value(detector, "engine_restarts_total", reason="hang") == 2


@pytest.mark.parametrize(
    ("lost_at_graph", "graphs"), [(2, 2), (0, 0)], ids=["the third", "the first"]
)
async def test_an_engine_whose_recording_lost_the_device_is_replaced_by_one_with_fewer_graphs(
    lost_at_graph: int, graphs: int
) -> None:
    settings = fake_settings(fake_graphs=5, fake_lost_at_graph=lost_at_graph, max_cuda_graphs=16)
    async with open_fake_detector(settings) as detector:
        [image] = _images(1)
        assert_is_result_of(image, await detect(detector, image))
        [engine] = detector.served.engines
        assert engine.facts is not None
        assert engine.facts.cuda_graphs == graphs
        assert value(detector, "engine_restarts_total", reason="cuda_graphs") == 1


@pytest.mark.slow
async def test_engines_with_graphs_that_keep_losing_the_device_get_none() -> None:
    settings = fake_settings(fake_graphs=5, fake_sticky_colour=POISON_HEX, max_cuda_graphs=16)
    async with open_fake_detector(settings) as detector:
        with pytest.raises(InferenceFailed):
            await detect(detector, solid_png(POISON))
        await _until(lambda: detector.ready)
        [engine] = detector.served.engines
        assert engine.facts is not None
        assert engine.facts.cuda_graphs == 0
        assert detector.live


async def test_a_restart_storm_fails_liveness() -> None:
    settings = fake_settings(fake_crash_colour=POISON_HEX, storm_restarts=2)
    async with open_fake_detector(settings) as detector:
        with pytest.raises(InferenceFailed):
            await detect(detector, solid_png(POISON))
        assert not detector.live


@pytest.mark.slow
@pytest.mark.parametrize("pause", [0.0, 1.5])
async def test_high_priority_does_not_wait_behind_images_that_wait_for_a_decoder(
    tmp_path: Path, pause: float
) -> None:
    """Also if all of those have waited for longer than their patience."""
    gates = [tmp_path / str(number) for number in range(8)]
    for gate in gates:
        gate.touch()
    async with open_fake_detector(fake_settings(slots=40, decode_threads=1)) as detector:
        data = solid_png((1, 2, 3))
        normal = [asyncio.create_task(detect(detector, data + wait_while(gate))) for gate in gates]
        await _until(lambda: detector.active == len(gates))
        await asyncio.sleep(pause)
        high = asyncio.create_task(detect(detector, data, priority=Priority.HIGH))
        await _until(lambda: detector.active == len(gates) + 1)
        for gate in gates[:2]:  # the one that runs, and at most one that overtakes
            gate.unlink()
        await asyncio.wait_for(high, 60)
        assert sum(task.done() for task in normal) <= 2
        for gate in gates[2:]:
            gate.unlink()
        await asyncio.gather(*normal)


async def test_requests_beyond_the_slots_are_refused_with_a_retry_time() -> None:
    settings = fake_settings(slots=4, fake_base_ms=30)
    async with open_fake_detector(settings) as detector:
        images = _images(12)
        results = await _detect_all(detector, images)
        assert all(isinstance(result, DetectResult) for result in results[:4])
        for refusal in results[4:]:
            assert isinstance(refusal, Overloaded)
            assert refusal.retry_after_seconds
        assert value(detector, "refused_total", reason="overloaded") == 8
        assert_is_result_of(images[9], await detect(detector, images[9]))


async def test_a_request_fails_at_its_deadline_while_the_engine_runs_its_image(
    tmp_path: Path,
) -> None:
    gate = tmp_path / "gate"
    async with open_fake_detector(fake_settings(fake_batch_gate=str(gate))) as detector:
        gate.touch()
        seconds = 0.2
        while not value(detector, "batch_size_count"):  # repeated if decoding takes that long
            with pytest.raises(DeadlineExceeded):
                deadline = time.monotonic() + seconds
                await detect(detector, solid_png((1, 1, 1)), deadline=deadline)
            seconds *= 2
        assert value(detector, "slots_in_use") == 1  # the engine holds the image
        gate.unlink()
        await _until(lambda: value(detector, "slots_in_use") == 0)
        assert value(detector, "engine_restarts_total", reason="exit") is None


async def test_the_busy_ratio_is_the_mean_of_the_engines_that_are_ready(tmp_path: Path) -> None:
    batches, starts = tmp_path / "batches", tmp_path / "starts"
    settings = fake_settings(
        fake_batch_gate=str(batches), fake_start_gate=str(starts), devices="cpu,cpu"
    )
    async with open_fake_detector(settings) as detector:
        starts.touch()  # an engine that ends has no successor
        batches.touch()
        held = asyncio.create_task(detect(detector, solid_png((1, 1, 1))))
        await _until(lambda: value(detector, "batch_size_count") == 1)
        first = _busy(detector)
        await _until(lambda: _busy(detector) > first)  # rises while a batch runs
        batches.unlink()
        await held
        shares = [engine.busy_share or 0.0 for engine in detector.served.engines]
        assert min(shares) <= _busy(detector) <= max(shares)
        one, other = detector.served.engine_pids
        os.kill(one or 0, signal.SIGKILL)
        await _until(lambda: value(detector, "engines_ready") == 1)
        assert 0 <= _busy(detector) <= 1
        os.kill(other or 0, signal.SIGKILL)
        await _until(lambda: value(detector, "engines_ready") == 0)
        assert value(detector, "engine_busy_ratio") is None


def _busy(detector: Detector) -> float:
    found = value(detector, "engine_busy_ratio")
    assert found is not None
    return found


async def test_expired_and_cancelled_images_do_not_reach_the_engine(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    settings = fake_settings(fake_batch_gate=str(gate), max_batch_size=1)
    async with open_fake_detector(settings) as detector:
        gate.touch()
        images = _images(6)
        first = [asyncio.create_task(detect(detector, data)) for data in images[:2]]
        await _until(lambda: value(detector, "batch_size_count") == 2)
        deadline = time.monotonic() + 0.1
        late = [asyncio.create_task(detect(detector, images[2], deadline=deadline))]
        cancelled = [asyncio.create_task(detect(detector, data)) for data in images[3:]]
        await _until(lambda: late[0].done() and value(detector, "queue_depth") == 3)
        for task in cancelled:
            task.cancel()
        await asyncio.wait(cancelled)
        gate.unlink()
        results = await asyncio.gather(*first, *late, *cancelled, return_exceptions=True)
        kinds = [DetectResult] * 2 + [DeadlineExceeded] + [asyncio.CancelledError] * 3
        assert [type(result) for result in results] == kinds
        assert value(detector, "batch_size_count") == 2
        assert (value(detector, "expired_total"), value(detector, "cancelled_total")) == (1, 3)
        assert value(detector, "slots_in_use") == 0


async def test_a_drain_finishes_accepted_requests_and_refuses_new_ones() -> None:
    async with open_fake_detector(fake_settings(fake_base_ms=20)) as detector:
        images = _images(20)
        tasks = [asyncio.create_task(detect(detector, data)) for data in images]
        await asyncio.sleep(0)
        detector.begin_drain()
        assert not detector.ready
        assert_is_result_of(images[0], await detect(detector, images[0]))
        drained = asyncio.create_task(detector.drain(30))
        await asyncio.sleep(0)
        with pytest.raises(ShuttingDown):
            await detect(detector, images[0])
        assert await drained == 0
        for data, task in zip(images, tasks, strict=True):
            assert_is_result_of(data, task.result())


async def test_a_drain_that_times_out_returns_the_number_of_unfinished_requests() -> None:
    async with open_fake_detector(fake_settings(fake_hang_colour=POISON_HEX)) as detector:
        task = asyncio.create_task(detect(detector, solid_png(POISON)))
        await _until(lambda: value(detector, "batch_size_count") == 1)
        assert await detector.drain(0.01) == 1
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_requests_are_refused_while_the_engine_loads() -> None:
    async with open_fake_core(fake_settings(fake_start_ms=60_000)) as core:
        assert not core.detector.ready
        assert core.detector.live
        with pytest.raises(NotReady):
            await detect(core.detector, solid_png((1, 2, 3)))
        await _until(lambda: core.detector.served.engine_pids[0] is not None)


async def test_an_engine_that_exceeds_the_start_timeout_is_replaced() -> None:
    settings = fake_settings(fake_start_ms=60_000, start_timeout_seconds=0.05, storm_restarts=2)
    async with open_fake_core(settings) as core:
        await _until(lambda: not core.detector.live)
        assert value(core.detector, "engine_restarts_total", reason="start_timeout")


async def test_the_engine_ends_with_the_edge() -> None:
    async with open_fake_detector(fake_settings()) as detector:
        pid = _engine_pid(detector)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_an_engine_that_cannot_start_ends_the_start() -> None:
    settings = fake_settings()
    other = replace(fake_backend(settings), model=replace(FAKE_MODEL, version="f" * 12))
    with pytest.raises(EngineStartError, match="version 000000000000"):
        async with open_detector(settings, other):
            pass
