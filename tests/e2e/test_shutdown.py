"""A running service that is told to end, under load: nothing that was accepted is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.support.live_load import Flood, GrpcClient, Reply, count, random_colours
from tests.support.running import process_has_ended
from tests.support.watched_service import WatchedService

HANG, HANG_HEX = (9, 8, 7), "090807"
# A request that was sent within this time of the signal was there before the port closed: idle
# connections are given longer than that.
SURELY_ACCEPTED_SECONDS = 0.1


@pytest.fixture
def start() -> Iterator[type[WatchedService]]:
    services: list[WatchedService] = []

    def start_one(**settings: object) -> WatchedService:
        defaults = {"grpc_port": 0, "fake_base_ms": 2, "fake_per_image_ms": 3}
        services.append(WatchedService(**(defaults | settings)))
        services[-1].wait_until_ready()
        return services[-1]

    yield start_one  # type: ignore[misc]
    for service in services:
        service.kill()


async def _stream_until_drained(service: WatchedService, replies: list[Reply]) -> None:
    client, colour = GrpcClient(service.grpc_address), random_colours(99)
    replies += await client.stream([colour() for _ in range(100_000)], pause=0.005)
    await client.close()


@pytest.mark.parametrize("drain_delay_seconds", [0, 0.5])
async def test_the_end_under_load_loses_nothing(
    start: type[WatchedService], drain_delay_seconds: float
) -> None:
    service = start(drain_delay_seconds=drain_delay_seconds)
    [engine] = service.engine_pids()
    flood = Flood()
    flood.add_http(service.url, 8)
    flood.add_http(service.url, 4, keep_alive=False, Connection="close")
    flood.add_grpc(service.grpc_address, 4)
    frames: list[Reply] = []
    streams = [asyncio.create_task(_stream_until_drained(service, frames)) for _ in range(2)]
    await flood.wait_for_results(150)
    service.process.send_signal(signal.SIGTERM)
    asked_at = time.monotonic()
    outcomes = await flood.ended()
    await asyncio.gather(*streams)
    assert await asyncio.to_thread(service.end) == 0, service.lines
    assert "every accepted request was answered" in service.lines[-1]
    assert process_has_ended(engine)
    # Answered, told, or too late: refused, on a kept connection that was closed by then, or (gRPC)
    # in a call that was never handed over.
    late = {"refused", "lost", "CANCELLED"}
    assert set(outcomes) <= {"ok", "503", "UNAVAILABLE"} | late, outcomes
    surely = asked_at + drain_delay_seconds + SURELY_ACCEPTED_SECONDS
    accepted = [reply for reply in flood.replies if reply.sent_at < surely]
    # New connections are refused as soon as the port is closed; none is made and then dropped.
    assert set(count(accepted)) <= {"ok", "503", "UNAVAILABLE", "refused"}, count(accepted)
    assert count(accepted)["ok"] >= 150
    # A stream ends in good order: each frame that was read is answered, the last ones too.
    assert set(count(frames)) == {"ok"}, count(frames)


async def test_a_second_signal_under_load_ends_at_once(start: type[WatchedService]) -> None:
    service = start(fake_hang_colour=HANG_HEX, drain_timeout_seconds=600)
    [engine] = service.engine_pids()
    flood = Flood()
    flood.add_http(service.url, 4)
    await flood.wait_for_results(20)
    client = GrpcClient(service.grpc_address)
    hangs = asyncio.create_task(client.detect(HANG))
    await asyncio.sleep(0.2)
    service.process.send_signal(signal.SIGTERM)
    await asyncio.to_thread(service.wait_for_line, "a second signal exits at once")
    service.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(service.end) == 128 + signal.SIGTERM
    assert (await hangs).outcome != "ok"
    assert process_has_ended(engine)
    await flood.ended()
    await client.close()


async def test_an_engine_that_is_killed_while_the_service_ends_costs_nobody_an_answer(
    start: type[WatchedService],
) -> None:
    service = start(fake_per_image_ms=20, fake_start_ms=300)
    [engine] = service.engine_pids()
    flood = Flood()
    flood.add_http(service.url, 12)
    await flood.wait_for_results(20)
    service.process.send_signal(signal.SIGTERM)
    asked_at = time.monotonic()
    os.kill(engine, signal.SIGKILL)
    await flood.ended()
    assert await asyncio.to_thread(service.end) == 0, service.lines
    accepted = [reply for reply in flood.replies if reply.sent_at < asked_at]
    assert set(count(accepted)) <= {"ok", "503"}, count(accepted)
