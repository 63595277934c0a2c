"""A running service under load whose engines are killed, stopped or fail."""

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
BRIEF_SECONDS = 0.2  # a stop of half a second ends an engine
MEMORY_LIMIT_BYTES = 300 * 1024 * 1024  # several times what a fake device needs


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
    """One service for the tests that need no load."""
    service = WatchedService(canary_interval_seconds=0.3)
    service.wait_until_ready()
    yield service
    service.kill()


def _send_signal(pid: int, how: str) -> None:
    os.kill(pid, signal.SIGSTOP if how == "stop" else signal.SIGKILL)


@pytest.mark.parametrize("how", ["kill", pytest.param("stop", marks=pytest.mark.slow)])
async def test_no_request_fails_when_an_engine_ends_under_load(
    start: type[WatchedService], tmp_path: Path, how: str
) -> None:
    start_gate, batch_gate = tmp_path / "start", tmp_path / "batch"
    service = start(fake_start_gate=start_gate, fake_batch_gate=batch_gate)
    flood = Flood()
    flood.add_http(service.url, 8)
    flood.add_grpc(service.grpc_address, 4)
    await flood.wait_for_results(50)
    start_gate.touch()
    batch_gate.touch()
    await asyncio.to_thread(service.until, lambda: service.metric_or_none("slots_in_use") == 12)
    [engine] = service.engine_pids()  # it holds a batch
    _send_signal(engine, how)
    await asyncio.to_thread(service.until, lambda: service.health("/readyz") == 503)
    assert await asyncio.to_thread(service.health, "/healthz") == 200
    assert await asyncio.to_thread(process_has_ended, engine)
    batch_gate.unlink()
    start_gate.unlink()
    await asyncio.to_thread(service.wait_for_line, "engine ready", times=2)
    await flood.wait_for_results(50)
    assert await asyncio.to_thread(service.health, "/readyz") == 200
    outcomes = await flood.stop()
    # Only requests that arrived while no engine was ready were refused.
    assert set(outcomes) <= {"ok", "503", "UNAVAILABLE"}, outcomes
    assert service.metric_or_none("replayed_total")
    assert service.metric_or_none("slots_in_use") == 0
    reason = "exit" if how == "kill" else "stopped"
    assert service.metric_or_none(f'engine_restarts_total{{reason="{reason}"}}') == 1


def _replayed(service: WatchedService) -> float:
    return service.metric_or_none("replayed_total") or 0.0


@pytest.mark.parametrize(
    ("requests", "kills_wanted"), [(300, 1), pytest.param(4_000, 8, marks=pytest.mark.slow)]
)
async def test_each_request_gets_its_own_result_while_engines_are_killed(
    start: type[WatchedService], requests: int, kills_wanted: int
) -> None:
    service = start(devices="cpu,cpu", storm_restarts=100, slots=48)
    flood = Flood()
    flood.add_http(service.url, 12)
    flood.add_grpc(service.grpc_address, 4)
    rng, kills = random.Random(3), 0
    # An engine may be idle when it is killed; continue until one held a batch.
    while (done := count(flood.replies)["ok"]) < requests or not _replayed(service):
        pause = rng.randrange(600, 1200) * requests // 10_000
        await flood.wait_for_results(max(1, min(pause, requests - done)))
        if kills < kills_wanted or not _replayed(service):
            pids = await asyncio.to_thread(service.engine_pids, 2)
            _send_signal(rng.choice(pids), rng.choice(["kill", "stop"]))
            kills += 1
            await asyncio.to_thread(service.wait_for_line, "engine exited", times=kills)
    outcomes = await flood.stop()
    assert set(outcomes) <= {"ok", "503", "UNAVAILABLE"}, outcomes
    assert kills >= kills_wanted
    assert service.metric_or_none("slots_in_use") == 0
    assert service.metric_or_none("replayed_total")


@pytest.mark.slow
async def test_while_one_of_two_engines_is_replaced_the_other_serves(
    start: type[WatchedService], tmp_path: Path
) -> None:
    gate = tmp_path / "start"
    service = start(devices="cpu,cpu", fake_start_gate=gate)
    flood = Flood()
    flood.add_http(service.url, 8)
    flood.add_grpc(service.grpc_address, 4)
    await flood.wait_for_results(200)
    pids = service.engine_pids(2)
    busy = [_cpu_ticks(pid) for pid in pids]
    assert min(busy) > 0
    gate.touch()
    _send_signal(pids[0], "kill")
    assert await asyncio.to_thread(process_has_ended, pids[0])
    await asyncio.to_thread(service.until, lambda: service.metric_or_none("engines_ready") == 1)
    assert service.health("/readyz") == 200
    await flood.wait_for_results(200)  # all by the other engine
    assert service.count("engine ready") == 2
    gate.unlink()
    await asyncio.to_thread(service.wait_for_line, "engine ready", times=3)
    fresh = service.engine_pids(2)[-1]
    before = _cpu_ticks(fresh)
    await flood.wait_for_results(300)
    await flood.until(lambda: _cpu_ticks(fresh) > before)  # the new engine gets batches
    outcomes = await flood.stop()
    assert set(outcomes) == {"ok"}, outcomes


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])  # user, system


@pytest.mark.parametrize("engines", ["cpu", "cpu,cpu"])
@pytest.mark.slow
async def test_only_the_sender_of_a_poison_image_gets_an_error(
    start: type[WatchedService], engines: str
) -> None:
    service = start(
        devices=engines, fake_crash_colour=POISON_HEX, storm_restarts=50, max_wait_ms=50
    )
    colour = random_colours(1)
    for client in (HttpClient(service.url), GrpcClient(service.grpc_address)):
        others = [HttpClient(service.url) for _ in range(7)]
        completed = 0
        for _ in range(5):
            sent = [other.detect(colour()) for other in others]
            poison_reply, *replies = await asyncio.gather(client.detect(POISON), *sent)
            assert poison_reply.outcome in {"500", "INTERNAL"}, poison_reply
            # On a busy machine all of the others may arrive after the engines have ended.
            assert {reply.outcome for reply in replies} <= {"ok", "503"}, replies
            completed = count(replies)["ok"]
            await asyncio.to_thread(service.until, lambda: service.health("/readyz") == 200)
            if completed:
                break
        assert completed
        for other in others:
            other.close()
        result = client.close()
        if result is not None:
            await result
    assert service.metric_or_none("slots_in_use") == 0


@pytest.mark.slow
async def test_a_restart_storm_fails_liveness(start: type[WatchedService]) -> None:
    service = start(fake_crash_colour=POISON_HEX, storm_restarts=2)
    client = HttpClient(service.url)
    assert service.health("/healthz") == 200
    assert (await client.detect(POISON)).outcome == "500"
    client.close()
    assert service.health("/healthz") == 503


@pytest.mark.slow
async def test_an_idle_engine_that_is_stopped_is_replaced(idle_service: WatchedService) -> None:
    [engine] = idle_service.engine_pids()
    _send_signal(engine, "stop")
    assert await asyncio.to_thread(process_has_ended, engine)
    await asyncio.to_thread(idle_service.engine_pids)
    client = HttpClient(idle_service.url)
    await asyncio.to_thread(idle_service.until, lambda: idle_service.health("/readyz") == 200)
    assert (await client.detect((1, 2, 30))).outcome == "ok"
    client.close()


@pytest.mark.slow
async def test_an_engine_that_is_stopped_and_continued_at_once_is_not_replaced(
    idle_service: WatchedService,
) -> None:
    [engine] = await asyncio.to_thread(_stop_and_continue, idle_service)
    client = HttpClient(idle_service.url)
    for number in range(20):
        assert (await client.detect((number, 2, 30))).outcome == "ok"
        await asyncio.sleep(0.05)
    client.close()
    assert idle_service.engine_pids() == [engine]


def _stop_and_continue(service: WatchedService) -> list[int]:
    """Stops and continues the engine; returns its process id.

    Repeats if this process was suspended in between, so that the engine was stopped for long.
    """
    for _ in range(20):
        pids = service.engine_pids()
        began = time.monotonic()
        _send_signal(pids[0], "stop")
        os.kill(pids[0], signal.SIGCONT)
        if time.monotonic() - began < BRIEF_SECONDS:
            return pids
        time.sleep(1)
    raise AssertionError("this process is suspended too often")


@pytest.mark.slow
async def test_only_the_sender_of_a_sticky_fault_gets_an_error_and_the_engine_is_replaced(
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


async def test_canaries_reset_the_canary_age_of_an_idle_service(
    idle_service: WatchedService,
) -> None:
    images = idle_service.metric_or_none('images_total{outcome="ok"}')
    ages: list[float] = []

    def has_decreased() -> bool:
        ages.append(idle_service.metric_or_none("canary_age_seconds") or 0.0)
        return any(later < earlier for earlier, later in itertools.pairwise(ages))

    await asyncio.to_thread(idle_service.until, has_decreased)  # without canaries it only grows
    assert (
        idle_service.metric_or_none('images_total{outcome="ok"}') == images
    )  # canaries do not count


class MemoryGuard:
    """Kills a process that uses too much memory, as the kernel does."""

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


@pytest.mark.slow
async def test_only_the_sender_of_an_image_that_exhausts_memory_gets_an_error(
    start: type[WatchedService],
) -> None:
    service = start(fake_memory_colour=POISON_HEX, storm_restarts=50)
    flood = Flood()
    flood.add_http(service.url, 6)
    flood.add_grpc(service.grpc_address, 2)
    await flood.wait_for_results(30)
    client = HttpClient(service.url)
    poisoned = asyncio.create_task(client.detect(POISON))
    guards = []
    while not poisoned.done():
        [engine] = await asyncio.to_thread(service.engine_pids)
        guards.append(MemoryGuard(engine, MEMORY_LIMIT_BYTES))
        ready = service.count("engine ready")
        while not poisoned.done() and service.count("engine ready") == ready:
            await asyncio.sleep(0.02)
    assert poisoned.result().outcome == "500"
    client.close()
    await flood.wait_for_results(50)
    outcomes = await flood.stop()
    assert set(outcomes) <= {"ok", "503", "UNAVAILABLE"}, outcomes
    assert sum(guard.killed for guard in guards) >= 2
    assert service.metric_or_none("slots_in_use") == 0


def test_the_kernel_kills_an_engine_before_the_edge_when_memory_runs_out(
    idle_service: WatchedService,
) -> None:
    [engine] = idle_service.engine_pids()
    edge_score, engine_score = (
        int(Path(f"/proc/{pid}/oom_score_adj").read_text())
        for pid in (idle_service.process.pid, engine)
    )
    assert engine_score > edge_score or engine_score == 1000
