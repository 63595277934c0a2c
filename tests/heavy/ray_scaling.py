"""Ray adds and removes replicas by load, and survives the loss of a node: make test-ray.

Each node of the second cluster has a network, processes and temporary files of its own.
"""

from __future__ import annotations

import asyncio
import importlib.util
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from service.rpc.pb import detection_pb2 as pb
from tests.heavy.findings import RESULTS, Findings
from tests.heavy.ray_service import (
    DETECT,
    HEAD,
    HEAD_PORT,
    IMAGES,
    Head,
    Node,
    RayService,
    comparable,
    message_without_times,
    network_of,
    wait_until,
)

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
]
MOST_REPLICAS = 3


@pytest.fixture(scope="module")
def findings() -> Iterator[Findings]:
    found = Findings("Replicas and nodes of Ray Serve", "make test-ray")
    yield found
    found.write(RESULTS / "ray")


class Load:
    """Requests, a third of them over gRPC, whose responses must be those of the first ones."""

    def __init__(self, service: RayService) -> None:
        self.count = 0
        self.slowest_seconds = 0.0
        self._service = service
        self._expected: dict[tuple[bool, int], object] = {}

    @asynccontextmanager
    async def running(self, in_flight: int) -> AsyncIterator[asyncio.Event]:
        """Keeps a number of requests in flight until the block ends, or one fails."""
        ended = asyncio.Event()
        async with (
            httpx.AsyncClient(timeout=120) as http,
            grpc.aio.insecure_channel(f"127.0.0.1:{self._service.grpc_port}") as channel,
            asyncio.TaskGroup() as group,
        ):
            detect: Any = channel.unary_unary(DETECT)
            for _ in range(in_flight):
                group.create_task(self._work(http, detect, ended))
            try:
                yield ended
            finally:
                ended.set()

    async def _work(self, http: httpx.AsyncClient, detect: Any, ended: asyncio.Event) -> None:
        while not ended.is_set():
            number, self.count = self.count, self.count + 1
            which, over_grpc, started = number % len(IMAGES), number % 3 == 0, time.monotonic()
            found: object
            if over_grpc:
                request = pb.DetectRequest(image=IMAGES[which]).SerializeToString()
                found = message_without_times(await detect(request, timeout=120))
            else:
                response = await http.post(f"{self._service.url}/detect", content=IMAGES[which])
                assert response.status_code == 200, response.text
                found = comparable(response)
            self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - started)
            assert self._expected.setdefault((over_grpc, which), found) == found


async def wait_for(holds: Any, what: Any) -> float:
    return await asyncio.to_thread(wait_until, holds, what)


@pytest.fixture
def scaled(tmp_path: Path) -> Iterator[RayService]:
    service = RayService(
        tmp_path / "log",
        fake_per_image_ms="50",
        log_requests="true",
        ray_max_replicas=str(MOST_REPLICAS),
        ray_target_ongoing_requests="2",
        ray_upscale_delay_seconds="1",
        ray_downscale_delay_seconds="3",
    )
    try:
        service.wait_until_ready()
        yield service
    finally:
        if service.process.poll() is None:
            service.end()


async def test_replicas_follow_the_requests_in_flight(
    scaled: RayService, findings: Findings
) -> None:
    load = Load(scaled)
    first = scaled.replicas()
    assert len(first) == 1
    async with load.running(in_flight=24):
        risen = await wait_for(lambda: len(scaled.replicas()) == MOST_REPLICAS, scaled.replicas)
        served = await wait_for(lambda: len(scaled.responding) == MOST_REPLICAS, lambda: scaled.log)
    under_load = load.count
    async with load.running(in_flight=1):
        fallen = await wait_for(lambda: len(scaled.replicas()) == 1, lambda: scaled.log)
    findings.note("autoscaling: requests in flight aimed at, per replica", 2)
    findings.note(
        "autoscaling: requests with 24 in flight, with 1 in flight, failed",
        f"{under_load}, {load.count - under_load}, 0",
    )
    findings.note(
        "autoscaling: seconds until 3 replicas instead of 1 were started", round(risen, 1)
    )
    findings.note("autoscaling: seconds until each had served requests", round(risen + served, 1))
    findings.note(
        "autoscaling: seconds with 1 in flight until there was 1 replica", round(fallen, 1)
    )


CLUSTER = {"ray_address": f"{HEAD}:{HEAD_PORT}", "ray_min_replicas": "2", "ray_replica_cpus": "1"}
# What docs/ray.md says for clusters that the command has not started.
ON_NODES = {"max_body_bytes": "200000"}
PROXIES = "service.ray_serve.proxy.middlewares"


class Nodes:
    """A head without replicas, and nodes with one CPU each."""

    def __init__(self, folder: Path) -> None:
        self.all: list[Node] = []
        self._folder = folder
        self.head = Head(folder / "head", **ON_NODES)

    def add(self) -> Node:
        number = len(self.all) + 1
        self.all.append(Node(number, self.head, self._folder / f"node{number}", **ON_NODES))
        return self.all[-1]

    def end(self) -> None:
        for node in self.all:
            node.kill()
        self.head.end()


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    monkeypatch.setenv("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", PROXIES)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    started = Nodes(tmp_path)
    log = tmp_path / "head"
    try:
        wait_until(lambda: "Ray runtime started" in log.read_text(), log.read_text)
        yield started
    finally:
        started.end()


async def test_no_request_is_lost_with_a_node_that_is_killed(
    nodes: Nodes, tmp_path: Path, findings: Findings
) -> None:
    lost, kept = nodes.add(), nodes.add()
    service = RayService(tmp_path / "log", **CLUSTER)
    try:
        await asyncio.to_thread(service.wait_until_ready)
        load = Load(service)

        def networks() -> Counter[str]:
            return Counter(map(network_of, service.replicas()))

        def logs() -> str:
            return f"{load.count} {networks()} {service.log}"

        assert networks() == {lost.network: 1, kept.network: 1}
        async with load.running(in_flight=16):
            await wait_for(lambda: load.count > 200, logs)
            lost.kill()
            at_loss = load.count
            await wait_for(lambda: load.count > at_loss + 200, logs)
            new = nodes.add()
            replaced = await wait_for(lambda: networks()[new.network] == 1, logs)
            then = load.count
            await wait_for(lambda: load.count > then + 200, logs)
        assert networks()[kept.network] == 1
        findings.note("node killed: requests, failed", f"{load.count}, 0")
        findings.note(
            "node killed: longest time of a request, seconds", round(load.slowest_seconds, 1)
        )
        findings.note("node killed: seconds until a new node had its replica", round(replaced, 1))
    finally:
        if service.process.poll() is None:
            await asyncio.to_thread(service.end)
