"""A Ray cluster with two replicas, one of which is killed under load: make test-ray.

Ray listens on all addresses, so `make test-ray` runs this in a network namespace of its own.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest

from service.rpc.pb import detection_pb2 as pb
from tests.heavy.ray_service import (
    DETECT,
    IMAGES,
    READY_SECONDS,
    RayService,
    call,
    comparable,
    message_without_times,
    processes,
)
from tests.support.running import Service

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
]
REQUESTS = 600
IN_FLIGHT = 24


@pytest.fixture(scope="module")
def single() -> Iterator[Service]:
    service = Service(max_body_bytes="200000", fake_per_image_ms="0")
    service.wait_until_ready()
    yield service
    service.kill()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayService]:
    cluster = RayService(tmp_path_factory.mktemp("ray") / "log", ray_min_replicas="2")
    try:
        cluster.wait_until_ready()
        yield cluster
    finally:
        if cluster.process.poll() is None:
            cluster.end()


def test_responses_are_those_of_the_single_service(cluster: RayService, single: Service) -> None:
    with httpx.Client(timeout=60) as http:
        for image in IMAGES:
            ours = http.post(f"{cluster.url}/detect", content=image)
            theirs = http.post(f"{single.url}/detect", content=image)
            assert comparable(ours) == comparable(theirs)
            assert ours.headers.get_list("x-request-id") == [ours.json()["request_id"]]
            assert message_without_times(
                call(f"127.0.0.1:{cluster.grpc_port}", image)
            ) == message_without_times(call(single.grpc_address, image))


@pytest.mark.parametrize(
    "request_",
    [
        ("POST", "/detect", b"no image", {}),
        ("POST", "/detect", bytes(200_001), {}),
        ("POST", "/detect?threshold=2", IMAGES[0], {}),
        ("POST", "/detect", IMAGES[0], {"X-Request-Timeout-Ms": "soon"}),
        ("POST", "/detect?format=coco", IMAGES[0], {}),
        ("GET", "/nothing", b"", {}),
        ("GET", "/readyz", b"", {}),
        ("GET", "/v1/models", b"", {}),
        ("GET", "/v2/health/ready", b"", {}),
        ("GET", "/v2/models/fake", b"", {}),
    ],
    ids=lambda request: f"{request[0]} {request[1]}",
)
def test_errors_formats_and_routes_are_those_of_the_single_service(
    cluster: RayService, single: Service, request_: tuple[str, str, bytes, Any]
) -> None:
    method, path, content, headers = request_
    with httpx.Client(timeout=60) as http:
        ours, theirs = (
            http.request(method, f"{url}{path}", content=content, headers=headers)
            for url in (cluster.url, single.url)
        )
    assert ours.status_code == theirs.status_code
    assert ours.headers.get("content-type") == theirs.headers.get("content-type")
    if ours.content and "json" in ours.headers.get("content-type", ""):
        assert comparable(ours) == comparable(theirs)


async def test_no_request_is_lost_when_a_replica_is_killed(
    cluster: RayService, single: Service
) -> None:
    expected = [comparable(single.http.post(f"{single.url}/detect", content=i)) for i in IMAGES]
    messages = [message_without_times(call(single.grpc_address, image)) for image in IMAGES]
    numbers, killed = iter(range(REQUESTS)), asyncio.Event()
    victim = cluster.replicas()[0]
    assert len(cluster.replicas()) == 2
    async with (
        httpx.AsyncClient(timeout=120) as http,
        grpc.aio.insecure_channel(f"127.0.0.1:{cluster.grpc_port}") as channel,
    ):
        detect: Any = channel.unary_unary(DETECT)

        async def work() -> None:
            for number in numbers:
                if number == REQUESTS // 3:
                    os.kill(victim, signal.SIGKILL)
                    killed.set()
                which = number % len(IMAGES)
                if number % 3:
                    response = await http.post(f"{cluster.url}/detect", content=IMAGES[which])
                    assert comparable(response) == expected[which]
                else:
                    request = pb.DetectRequest(image=IMAGES[which]).SerializeToString()
                    found = message_without_times(await detect(request, timeout=120))
                    assert found == messages[which]

        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(work())
    assert killed.is_set()
    print(cluster.log.count("retrying a lost"), "requests were sent again")
    deadline = time.monotonic() + READY_SECONDS
    while len(set(cluster.replicas()) - {victim}) < 2:
        assert time.monotonic() < deadline, "the replica was not replaced"
        await asyncio.sleep(0.2)


async def test_a_stop_finishes_accepted_requests_and_leaves_no_process(cluster: RayService) -> None:
    async with httpx.AsyncClient(timeout=60) as http:
        requests = [
            asyncio.create_task(http.post(f"{cluster.url}/detect", content=image))
            for image in IMAGES
        ]
        await asyncio.sleep(0.1)
        status = await asyncio.to_thread(cluster.end)
        responses = [await request for request in requests]
    done = [response for response in responses if response.status_code == 200]
    refused = [response for response in responses if response.status_code == 503]
    assert done and len(done) + len(refused) == len(IMAGES)
    assert all("retry-after" in response.headers for response in refused)
    assert status == 0, cluster.log
    deadline = time.monotonic() + 30
    while left := [title for _, title in processes() if "ray::" in title or "raylet" in title]:
        assert time.monotonic() < deadline, left
        await asyncio.sleep(0.2)
