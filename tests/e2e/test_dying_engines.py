"""A running service whose engines are killed, stopped, poisoned or lost, under load."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.live_load import Colour, Flood, GrpcClient, HttpClient, count, random_colours
from tests.support.running import process_has_ended
from tests.support.watched_service import WatchedService

POISON: Colour = (250, 1, 2)
POISON_HEX = "fa0102"
ENOUGH_MEMORY_BYTES = 300 * 1024 * 1024  # several times what a fake device needs


@pytest.fixture
def start() -> Iterator[type[WatchedService]]:
    services: list[WatchedService] = []

    def start_one(**settings: object) -> WatchedService:
        defaults = {"grpc_port": 0, "fake_base_ms": 2, "fake_per_image_ms": 0.5}
        services.append(WatchedService(**(defaults | settings)))
        services[-1].wait_until_ready()
        return services[-1]

    yield start_one  # type: ignore[misc]
    for service in services:
        service.kill()


@pytest.fixture(scope="module")
def idle_service() -> Iterator[WatchedService]:
    """One for the tests that do little with it."""
    service = WatchedService(canary_interval_seconds=0.3)
    service.wait_until_ready()
    yield service
    service.kill()


def _end(pid: int, how: str) -> None:
    os.kill(pid, signal.SIGSTOP if how == "stop" else signal.SIGKILL)


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_an_engine_that_ends_under_load_costs_nobody_an_answer(
    start: type[WatchedService], how: str
) -> None:
    service = start(fake_start_ms=700)
    flood = Flood()
    flood.add_http(service.url, 8)
    flood.add_grpc(service.grpc_address, 4)
    await flood.wait_for_results(50)
    [engine] = service.engine_pids()
    _end(engine, how)
    await asyncio.to_thread(service.until, lambda: service.health("/readyz") == 503)
    assert await asyncio.to_thread(service.health, "/healthz") == 200
    assert await asyncio.to_thread(process_has_ended, engine)
    await asyncio.to_thread(service.wait_for_line, "engine ready", times=2)
    await flood.wait_for_results(50)
    assert await asyncio.to_thread(service.health, "/readyz") == 200
    outcomes = await flood.stop()
    # Those that came while no engine was there were told to come back; nobody else noticed.
    assert set(outcomes) <= {"ok", "503", "UNAVAILABLE"}, outcomes
    assert service.metric_or_none("replayed_total")
    assert service.metric_or_none("slots_in_use") == 0
    reason = "exit" if how == "kill" else "stopped"
    assert service.metric_or_none(f'engine_restarts_total{{reason="{reason}"}}') == 1


@pytest.mark.parametrize(
    ("requests", "kills_wanted"), [(1000, 2), pytest.param(10_000, 8, marks=pytest.mark.slow)]
)
async def test_no_response_goes_to_another_client_while_engines_are_killed(
    start: type[WatchedService], requests: int, kills_wanted: int
) -> None:
    service = start(devices="cpu,cpu", storm_restarts=100, slots=48)
    flood = Flood()
    flood.add_http(service.url, 12)
    flood.add_grpc(service.grpc_address, 4)
    rng, kills = random.Random(3), 0
    while (done := count(flood.replies)["ok"]) < requests:
        await flood.wait_for_results(
            min(rng.randrange(600, 1200) * requests // 10_000, requests - done)
        )
        if kills < kills_wanted:
            pids = await asyncio.to_thread(service.engine_pids, 2)
            _end(rng.choice(pids), rng.choice(["kill", "stop"]))
            kills += 1
            await asyncio.to_thread(service.wait_for_line, "engine exited", times=kills)
    outcomes = await flood.stop()
    assert set(outcomes) <= {"ok", "503", "UNAVAILABLE"}, outcomes
    assert kills == kills_wanted
    assert service.metric_or_none("slots_in_use") == 0
    assert service.metric_or_none("replayed_total")


async def test_while_one_of_two_engines_is_replaced_the_other_serves(
    start: type[WatchedService],
) -> None:
    service = start(devices="cpu,cpu", fake_start_ms=1500)
    flood = Flood()
    flood.add_http(service.url, 8)
    flood.add_grpc(service.grpc_address, 4)
    await flood.wait_for_results(200)
    pids = service.engine_pids(2)
    busy = [_cpu_ticks(pid) for pid in pids]
    assert min(busy) > 0
    _end(pids[0], "kill")
    assert await asyncio.to_thread(process_has_ended, pids[0])
    assert service.metric_or_none("engines_ready") == 1
    assert service.health("/readyz") == 200
    await flood.wait_for_results(200)
    assert service.count("engine ready") == 2  # all of those by the other
    await asyncio.to_thread(service.wait_for_line, "engine ready", times=3)
    fresh = service.engine_pids(2)[-1]
    before = _cpu_ticks(fresh)
    await flood.wait_for_results(300)
    await flood.until(lambda: _cpu_ticks(fresh) > before)  # the new one has its share
    outcomes = await flood.stop()
    assert set(outcomes) == {"ok"}, outcomes


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])  # user, system


@pytest.mark.parametrize("engines", ["cpu", "cpu,cpu"])
async def test_a_poison_image_costs_its_sender_alone_an_error(
    start: type[WatchedService], engines: str
) -> None:
    service = start(
        devices=engines, fake_crash_colour=POISON_HEX, storm_restarts=50, max_wait_ms=50
    )
    colour = random_colours(1)
    for client in (HttpClient(service.url), GrpcClient(service.grpc_address)):
        neighbours = [HttpClient(service.url) for _ in range(7)]
        answered = 0
        for _ in range(5):
            sent = [neighbour.detect(colour()) for neighbour in neighbours]
            culprit, *others = await asyncio.gather(client.detect(POISON), *sent)
            assert culprit.outcome in {"500", "INTERNAL"}, culprit
            # Those refused came when the engines were dead already: on a busy machine all of them.
            assert {other.outcome for other in others} <= {"ok", "503"}, others
            answered = count(others)["ok"]
            await asyncio.to_thread(service.until, lambda: service.health("/readyz") == 200)
            if answered:
                break
        assert answered
        for neighbour in neighbours:
            neighbour.close()
        result = client.close()
        if result is not None:
            await result
    assert service.metric_or_none("slots_in_use") == 0


async def test_a_restart_storm_fails_liveness(start: type[WatchedService]) -> None:
    service = start(fake_crash_colour=POISON_HEX, storm_restarts=2)
    client = HttpClient(service.url)
    assert service.health("/healthz") == 200
    assert (await client.detect(POISON)).outcome == "500"
    client.close()
    assert service.health("/healthz") == 503


async def test_an_idle_engine_that_is_stopped_is_replaced(idle_service: WatchedService) -> None:
    [engine] = idle_service.engine_pids()
    _end(engine, "stop")
    assert await asyncio.to_thread(process_has_ended, engine)
    await asyncio.to_thread(idle_service.engine_pids)
    client = HttpClient(idle_service.url)
    await asyncio.to_thread(idle_service.until, lambda: idle_service.health("/readyz") == 200)
    assert (await client.detect((1, 2, 30))).outcome == "ok"
    client.close()


async def test_an_engine_that_was_only_looked_at_stays(idle_service: WatchedService) -> None:
    [engine] = await asyncio.to_thread(idle_service.engine_pids)
    _end(engine, "stop")
    os.kill(engine, signal.SIGCONT)
    client = HttpClient(idle_service.url)
    for number in range(20):
        assert (await client.detect((number, 2, 30))).outcome == "ok"
        await asyncio.sleep(0.05)
    client.close()
    assert idle_service.engine_pids() == [engine]


async def test_a_device_that_fails_everything_is_replaced_and_costs_the_culprit_alone(
    start: type[WatchedService],
) -> None:
    service = start(fake_sticky_colour=POISON_HEX, storm_restarts=50)
    flood = Flood()
    flood.add_http(service.url, 6)
    flood.add_grpc(service.grpc_address, 2)
    await flood.wait_for_results(30)
    client = HttpClient(service.url)
    assert (await client.detect(POISON)).outcome == "500"
    client.close()
    await flood.wait_for_results(50)
    outcomes = await flood.stop()
    assert set(outcomes) <= {"ok", "503", "UNAVAILABLE"}, outcomes
    assert service.metric_or_none('engine_restarts_total{reason="canary"}')
    assert service.metric_or_none("slots_in_use") == 0


async def test_canaries_keep_the_age_of_an_idle_service_low(idle_service: WatchedService) -> None:
    images = idle_service.metric_or_none('images_total{outcome="ok"}')
    ages = []
    for _ in range(12):
        await asyncio.sleep(0.3)
        ages.append(idle_service.metric_or_none("canary_age_seconds") or 0.0)
    # Without canaries it would only grow, to more than three seconds.
    assert any(later < earlier for earlier, later in itertools.pairwise(ages))
    assert idle_service.metric_or_none('images_total{outcome="ok"}') == images  # nobody's image


class MemoryGuard:
    """What a kernel or an earlyoom does: ends the process that takes more than there is."""

    def __init__(self, pid: int, most_bytes: int) -> None:
        self.killed = False
        self._pid, self._most = pid, most_bytes
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self.killed:
            try:
                pages = int(Path(f"/proc/{self._pid}/statm").read_text().split()[1])
            except (OSError, IndexError):
                return
            if pages * os.sysconf("SC_PAGE_SIZE") > self._most:
                os.kill(self._pid, signal.SIGKILL)
                self.killed = True
            time.sleep(0.002)


async def test_an_engine_that_runs_out_of_memory_costs_nobody_but_the_culprit_an_answer(
    start: type[WatchedService],
) -> None:
    service = start(fake_memory_colour=POISON_HEX, storm_restarts=50)
    flood = Flood()
    flood.add_http(service.url, 6)
    flood.add_grpc(service.grpc_address, 2)
    await flood.wait_for_results(30)
    client = HttpClient(service.url)
    culprit = asyncio.create_task(client.detect(POISON))
    guards = []
    while not culprit.done():
        [engine] = await asyncio.to_thread(service.engine_pids)
        guards.append(MemoryGuard(engine, ENOUGH_MEMORY_BYTES))
        ready = service.count("engine ready")
        while not culprit.done() and service.count("engine ready") == ready:
            await asyncio.sleep(0.02)
    assert culprit.result().outcome == "500"
    client.close()
    await flood.wait_for_results(50)
    outcomes = await flood.stop()
    assert set(outcomes) <= {"ok", "503", "UNAVAILABLE"}, outcomes
    assert sum(guard.killed for guard in guards) >= 2
    assert service.metric_or_none("slots_in_use") == 0


def test_where_memory_runs_out_the_kernel_takes_an_engine_before_the_edge(
    idle_service: WatchedService,
) -> None:
    [engine] = idle_service.engine_pids()
    edge_score, engine_score = (
        int(Path(f"/proc/{pid}/oom_score_adj").read_text())
        for pid in (idle_service.process.pid, engine)
    )
    assert engine_score > edge_score or engine_score == 1000
