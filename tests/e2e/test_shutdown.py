"""A running service that gets SIGTERM under load completes all accepted requests."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest

from service.rpc.pb import detection_pb2 as pb
from tests.service.rpc.caller import Caller
from tests.support.images import encode_png
from tests.support.live_load import Flood, GrpcClient, Reply, count, random_colours
from tests.support.running import process_has_ended
from tests.support.watched_service import WatchedService

HANG, HANG_HEX = (9, 8, 7), "090807"


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


@pytest.mark.parametrize("drain_delay_seconds", [0, pytest.param(0.5, marks=pytest.mark.slow)])
async def test_a_drain_under_load_loses_no_request(
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
    signalled_at = time.monotonic()
    outcomes = await flood.ended()
    await asyncio.gather(*streams)
    assert await asyncio.to_thread(service.end) == 0, service.lines
    assert "all accepted requests were completed" in service.lines[-1]
    assert process_has_ended(engine)
    # Completed, refused with a status, or too late: connection refused, a kept connection that was
    # closed, or (gRPC) a call that never reached the service.
    late = {"refused", "lost", "CANCELLED"}
    assert set(outcomes) <= {"ok", "503", "UNAVAILABLE"} | late, outcomes
    closed_at = signalled_at + drain_delay_seconds
    accepted = [reply for reply in flood.replies if reply.sent_at < closed_at]
    # New connections are refused when the port is closed; accepted ones are not dropped.
    assert set(count(accepted)) <= {"ok", "503", "UNAVAILABLE", "refused"}, count(accepted)
    assert count(accepted)["ok"] >= 150
    # A stream ends after a response to every frame that was read.
    assert set(count(frames)) == {"ok"}, count(frames)


@pytest.mark.slow
async def test_a_second_signal_under_load_ends_the_service_at_once(
    start: type[WatchedService],
) -> None:
    service = start(fake_hang_colour=HANG_HEX, drain_timeout_seconds=600)
    [engine] = service.engine_pids()
    flood = Flood()
    flood.add_http(service.url, 4)
    await flood.wait_for_results(20)
    client = GrpcClient(service.grpc_address)
    hangs = asyncio.create_task(client.detect(HANG))
    # The hanging image and the requests of the flood behind it.
    await asyncio.to_thread(service.until, lambda: service.metric_or_none("slots_in_use") == 5)
    service.process.send_signal(signal.SIGTERM)
    await asyncio.to_thread(service.wait_for_line, "a second signal exits at once")
    service.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(service.end) == 128 + signal.SIGTERM
    assert (await hangs).outcome != "ok"
    assert process_has_ended(engine)
    await flood.ended()
    await client.close()


@pytest.mark.slow
async def test_no_request_fails_when_an_engine_is_killed_during_the_drain(
    start: type[WatchedService],
) -> None:
    service = start(fake_per_image_ms=20, fake_start_ms=300)
    [engine] = service.engine_pids()
    flood = Flood()
    flood.add_http(service.url, 12)
    await flood.wait_for_results(20)
    service.process.send_signal(signal.SIGTERM)
    signalled_at = time.monotonic()
    os.kill(engine, signal.SIGKILL)
    await flood.ended()
    assert await asyncio.to_thread(service.end) == 0, service.lines
    accepted = [reply for reply in flood.replies if reply.sent_at < signalled_at]
    assert set(count(accepted)) <= {"ok", "503"}, count(accepted)


@pytest.mark.slow
async def test_tiles_of_each_protocol_are_completed_in_a_drain_that_kills_the_engine(
    start: type[WatchedService], tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    service = start(slots=16, fake_batch_gate=gate)
    [engine] = service.engine_pids()
    gate.touch()
    scene = np.random.default_rng(5).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    image, tile, tiles = encode_png(scene), "100x100", 20
    async with (
        httpx.AsyncClient(timeout=150) as http,
        grpc.aio.insecure_channel(service.grpc_address) as channel,
    ):
        url = f"{service.url}/detect?threshold=0&tile={tile}"
        over_http = asyncio.create_task(http.post(url, content=image))
        options = pb.DetectOptions(threshold=0, tile=tile)
        call = Caller(channel).detect(pb.DetectRequest(image=image, options=options))
        over_grpc = asyncio.ensure_future(call)
        parameters = {"threshold": 0, "tile": tile}
        tensor = {"name": "IMAGE", "datatype": "BYTES", "shape": [1]} | {
            "data": [base64.b64encode(image).decode()],
            "parameters": {"content_type": "base64"},
        }
        body = {"inputs": [tensor], "parameters": parameters}
        infer = http.post(f"{service.url}/v2/models/fake/infer", json=body)
        over_oip = asyncio.create_task(infer)
        accepted = lambda: service.metric_or_none("tile_grid_size_count") == 3  # noqa: E731
        await asyncio.to_thread(service.until, accepted)
        service.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(service.wait_for_line, "finishing requests")
        os.kill(engine, signal.SIGKILL)
        gate.unlink()
        document = (await over_http).json()
        found = [each["score"] for each in document["detections"]]
        assert len(found) > tiles
        assert [each.score for each in (await over_grpc).detections] == found
        outputs = {each["name"]: each["data"] for each in (await over_oip).json()["outputs"]}
        assert outputs["scores"][: outputs["num_detections"][0]] == pytest.approx(found)
    assert await asyncio.to_thread(service.end) == 0, service.lines
