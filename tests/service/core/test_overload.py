"""Overload in virtual time: the result does not depend on the speed of the machine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from service.batching.tile_queue import MAX_BATCH_SECONDS
from service.core.sizing import default_slots
from service.errors import DeadlineExceeded, Overloaded
from service.types import Priority
from tests.support.simulated_service import Device, SimulatedService, Tally, with_service
from tests.support.virtual_time import run_in_virtual_time

SECONDS = 8.0
FAST = Device(0.005, 0.002, max_batch_size=8, jitter=0.2)  # 21 ms a full batch
SLOW = Device(0.010, 0.010, max_batch_size=4, jitter=0.2)  # 50 ms
LARGE = Device(0.020, 0.010, max_batch_size=8, jitter=0.2)  # 100 ms
# An image by itself takes 20 ms, its explanation 30 ms more.
EXPLAINING = Device(0.010, 0.010, max_batch_size=4, jitter=0.2, explain=0.030)


def _run(
    device: Device, scenario: Callable[[SimulatedService], Awaitable[None]], **options: int
) -> None:
    run_in_virtual_time(with_service(device, scenario, **options))


def _goodput(tally: Tally, device: Device, engines: int = 1) -> float:
    return tally.outcomes["ok"] / SECONDS / (device.capacity * engines)


def _p99(tally: Tally) -> float:
    return sorted(tally.latencies)[int(0.99 * tally.accepted)]


def test_the_busy_share_rises_before_latency_and_falls_with_the_load() -> None:
    device = Device(0.050, 0.0, max_batch_size=1, jitter=0.2)
    busy, median = {}, {}

    async def scenario(service: SimulatedService) -> None:
        for share in (0.1, 0.3, 0.6, 0.98, 0.1):
            tally = await service.flood(share * device.capacity, 90, 10.0)
            busy[share] = service.engines[0].busy_share
            median[share] = sorted(tally.latencies)[len(tally.latencies) // 2]
        assert busy[0.1] < 0.2  # falls again
        assert busy[0.1] + 0.1 < busy[0.3] < busy[0.6] - 0.1
        assert busy[0.6] == pytest.approx(0.6, abs=0.15)  # three times as busy as at first, ...
        assert median[0.6] < 2 * median[0.1]  # ... and the latency has not doubled.
        assert busy[0.98] > 0.85
        assert median[0.98] > 3 * median[0.6]

    _run(device, scenario)


@pytest.mark.parametrize(
    ("device", "timeout"),
    [
        (FAST, 0.1),
        (SLOW, 0.25),
        (LARGE, 0.25),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((FAST, 0.25), (SLOW, 0.1), (LARGE, 1.0))
        ),
    ],
)
def test_five_times_the_capacity_costs_no_goodput(device: Device, timeout: float) -> None:
    async def scenario(service: SimulatedService) -> None:
        await service.flood(0.5 * device.capacity, 2, 10.0)  # now the engine's times are measured
        tally = await service.flood(5 * device.capacity, SECONDS, timeout)
        assert _goodput(tally, device) >= 0.9
        # Accepted images finish in time, the others are refused, and no request is lost.
        assert tally.outcomes["ok"] >= 0.99 * tally.accepted
        assert _p99(tally) < timeout
        assert tally.accepted + tally.outcomes["overloaded"] == tally.outcomes.total()
        assert (service.served.pool.in_use, service.served.batcher.queue_depth) == (0, 0)

    _run(device, scenario)


def test_two_engines_share_the_load(device: Device = FAST) -> None:
    async def scenario(service: SimulatedService) -> None:
        tally = await service.flood(10 * device.capacity, SECONDS, 0.1)
        assert _goodput(tally, device, engines=2) >= 0.9
        first, second = (sum(engine.sizes) for engine in service.engines)
        assert 0.8 <= first / second <= 1.25

    _run(device, scenario, engines=2)


@pytest.mark.parametrize("device", [SLOW, LARGE])
@pytest.mark.slow
def test_the_default_slots_keep_eight_engines_busy(device: Device) -> None:
    """64 slots are half of what they hold."""
    slots = default_slots(8, device.max_batch_size, 2)

    async def scenario(service: SimulatedService) -> None:
        tally = await service.flood(1.5 * 8 * device.capacity, SECONDS, 10.0)
        assert _goodput(tally, device, engines=8) >= 0.95

    _run(device, scenario, engines=8, slots=slots)


def test_nothing_is_refused_below_the_capacity() -> None:
    async def scenario(service: SimulatedService) -> None:
        tally = await service.flood(0.5 * FAST.capacity, SECONDS, 0.25)
        assert set(tally.outcomes) == {"ok"}

    _run(FAST, scenario)


def test_nothing_is_refused_after_an_overload() -> None:
    async def scenario(service: SimulatedService) -> None:
        await service.flood(5 * FAST.capacity, SECONDS, 0.1)
        tally = await service.flood(0.5 * FAST.capacity, SECONDS, 0.25)
        assert set(tally.outcomes) == {"ok"}

    _run(FAST, scenario)


def test_an_engine_that_was_away_for_a_second_does_not_run_late_images() -> None:
    async def scenario(service: SimulatedService) -> None:
        (engine,) = service.engines
        flood = asyncio.create_task(service.flood(5 * FAST.capacity, SECONDS, 0.25))
        await asyncio.sleep(3)
        engine.ready = False
        await asyncio.sleep(1)
        engine.ready = True
        service.served.batcher.engine_changed()
        tally = await flood
        assert tally.outcomes["ok"] / (SECONDS - 1) >= 0.9 * FAST.capacity
        assert tally.outcomes["not_ready"]

    _run(FAST, scenario)


def test_a_prediction_that_was_far_too_high_is_corrected() -> None:
    async def scenario(service: SimulatedService) -> None:
        (engine,) = service.engines
        learn = engine._in_flight._service_time.learn
        for _ in range(20):
            learn(64 * 64, 30.0)
        tally = await service.flood(0.5 * FAST.capacity, 4 * SECONDS, 0.25)
        last = tally.latencies[-20:]
        assert tally.outcomes["ok"] > 0
        assert len(last) == 20
        assert engine.predicted_seconds(64 * 64) < 1.0

    _run(FAST, scenario)


def test_high_priority_has_its_own_slots_and_goes_first() -> None:
    async def scenario(service: SimulatedService) -> None:
        many = asyncio.create_task(service.flood(5 * SLOW.capacity, SECONDS, 30.0))
        few = await service.flood(0.1 * SLOW.capacity, SECONDS, 30.0, Priority.HIGH)
        usual = await many
        assert set(few.outcomes) == {"ok"}
        assert usual.outcomes["overloaded"]
        assert usual.outcomes["ok"] >= 0.8 * SECONDS * SLOW.capacity
        middle = len(few.latencies) // 2
        fewest = sorted(usual.latencies)[len(usual.latencies) // 10]
        assert sorted(few.latencies)[middle] < fewest

    _run(SLOW, scenario, slots=32, kept=8)


def test_high_priority_does_not_starve_normal_priority() -> None:
    async def scenario(service: SimulatedService) -> None:
        many = asyncio.create_task(service.flood(1.5 * SLOW.capacity, SECONDS, 30.0, Priority.HIGH))
        usual = await service.flood(0.1 * SLOW.capacity, SECONDS, 30.0)
        await many
        completed = usual.outcomes["ok"]
        assert completed == usual.accepted > 0
        assert max(usual.latencies) < 5  # after one second images run in order of arrival

    _run(SLOW, scenario, slots=64, kept=32)


@pytest.mark.parametrize("load", [pytest.param(0.5, marks=pytest.mark.slow), 5])
def test_a_flood_of_explanations_does_not_harm_ordinary_images(load: float) -> None:
    device = EXPLAINING

    async def ordinary(service: SimulatedService, explanations: float) -> tuple[Tally, Tally]:
        await service.flood(0.5 * device.capacity, 2, 10.0)
        explained = asyncio.create_task(service.flood(explanations, SECONDS, 10.0, explain=True))
        plain = await service.flood(load * device.capacity, SECONDS, 0.25)
        return plain, await explained

    async def scenario(service: SimulatedService) -> None:
        before, _ = await ordinary(service, 0.01)
        plain, explained = await ordinary(service, 300.0)
        assert explained.outcomes["ok"] > 0
        assert explained.outcomes["overloaded"] > 20 * explained.outcomes["ok"]
        assert _goodput(plain, device) >= 0.97 * _goodput(before, device)
        assert plain.outcomes["ok"] >= 0.99 * plain.accepted
        assert _p99(plain) <= _p99(before) + device.explain + device.seconds(1) * 1.2

    _run(device, scenario)


IMAGE_OF_30_TILES = (2000, 3000)


async def _send_tiled(service: SimulatedService, seconds: float, clients: int) -> list[float]:
    """Clients that send images of 30 tiles, each one after the other; their latencies."""
    latencies: list[float] = []
    end = service.now + seconds

    async def client() -> None:
        while service.now < end:
            began = service.now
            assert await service.detect_tiled(60.0, IMAGE_OF_30_TILES) == 30
            latencies.append(service.now - began)

    await asyncio.gather(*(client() for _ in range(clients)))
    return latencies


@pytest.mark.parametrize("load", [0.5, 5])
def test_tiles_do_not_harm_ordinary_images(load: float, device: Device = SLOW) -> None:
    async def scenario(service: SimulatedService) -> None:
        await service.flood(0.5 * device.capacity, 2, 10.0)
        before = await service.flood(load * device.capacity, SECONDS, 0.5)
        tiled = asyncio.create_task(_send_tiled(service, SECONDS, 4))
        plain = await service.flood(load * device.capacity, SECONDS, 0.5)
        latencies = await tiled
        assert latencies  # neither do ordinary images starve them
        assert max(latencies) < 60
        assert plain.outcomes["ok"] >= 0.99 * plain.accepted
        # An image waits at most for one batch of tiles more.
        assert _p99(plain) <= _p99(before) + max(MAX_BATCH_SECONDS, device.seconds(1)) * 1.2
        # At overload tiles get a tenth of the time, in small batches, once they lose patience.
        assert _goodput(plain, device) >= 0.85 * _goodput(before, device)
        assert service.served.pool.in_use == 0

    _run(device, scenario)


def test_tiles_alone_keep_the_engine_busy_and_share_decodings() -> None:
    async def scenario(service: SimulatedService) -> None:
        await service.flood(0.5 * FAST.capacity, 2, 10.0)
        (engine,) = service.engines
        began, images, busy = service.now, sum(engine.sizes), engine.busy_seconds
        service.tile_groups.clear()
        await _send_tiled(service, SECONDS, 2)
        seconds = service.now - began
        assert engine.busy_seconds - busy >= 0.6 * seconds
        assert sum(engine.sizes) - images >= 31 * len(service.tile_groups) / 4
        assert max(service.tile_groups) == 8

    _run(FAST, scenario)


def test_tiles_that_would_be_late_are_refused() -> None:
    async def scenario(service: SimulatedService) -> None:
        await service.flood(0.5 * SLOW.capacity, 2, 10.0)
        await service.detect_tiled(60, IMAGE_OF_30_TILES)
        running = asyncio.create_task(service.detect_tiled(60, IMAGE_OF_30_TILES))
        await asyncio.sleep(0.1)
        with pytest.raises(Overloaded, match=r"30 tiles .* until the deadline") as refusal:
            await service.detect_tiled(0.5, IMAGE_OF_30_TILES)
        assert refusal.value.retry_after_seconds
        assert await running == 30
        assert service.served.pool.in_use == 0

    _run(SLOW, scenario)


def test_tiles_use_the_slot_of_their_image_if_no_other_is_free() -> None:
    async def scenario(service: SimulatedService) -> None:
        assert await service.detect_tiled(60, (480, 1300)) == 3
        assert service.tile_groups == [1, 1, 1]
        assert service.served.pool.in_use == 0

    _run(SLOW, scenario, slots=4)


def test_tiles_are_all_or_nothing() -> None:
    async def scenario(service: SimulatedService) -> None:
        with pytest.raises((TimeoutError, DeadlineExceeded)):
            await service.detect_tiled(0.2, IMAGE_OF_30_TILES)
        await asyncio.sleep(1)
        assert (service.served.pool.in_use, service.served.batcher.queue_depth) == (0, 0)
        assert service.tiled._pending == 0
        running = asyncio.create_task(service.detect_tiled(60, IMAGE_OF_30_TILES))
        await asyncio.sleep(0.1)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await asyncio.sleep(1)
        assert (service.served.pool.in_use, service.served.batcher.queue_depth) == (0, 0)

    _run(SLOW, scenario)


def test_an_engine_that_ends_does_not_lose_tiles() -> None:
    async def scenario(service: SimulatedService) -> None:
        (engine,) = service.engines
        running = asyncio.create_task(service.detect_tiled(60, IMAGE_OF_30_TILES))
        for _ in range(3):
            await asyncio.sleep(0.2)
            engine.end()
            await asyncio.sleep(0.1)
            engine.begin()
        assert await running == 30

    _run(SLOW, scenario)
