"""What a drain waits for, and what it reports when its time runs out."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest

from service.app import _drain
from service.build import ServiceCore
from service.settings import given_settings
from tests.support.running import DEFAULTS, Service

HEAD = b"POST /detect HTTP/1.1\r\nhost: test\r\ncontent-type: image/png\r\n"


class Server:
    """A server whose requests end only if it is told so."""

    def __init__(self, open_requests: int) -> None:
        self.open_requests = open_requests
        self.drained = asyncio.Event()

    async def run_until_drained(self) -> None:
        await self.drained.wait()
        if self.open_requests:
            await asyncio.Event().wait()

    def drain(self) -> None:
        self.drained.set()

    def give_up(self) -> None:
        raise AssertionError("only after the drain")


def core_with(images: int) -> ServiceCore:
    async def drain(_timeout_seconds: float) -> int:
        return images

    return cast(ServiceCore, SimpleNamespace(detector=SimpleNamespace(drain=drain)))


@pytest.mark.parametrize(
    ("requests", "images", "dropped"),
    [
        pytest.param((0, 0), 0, 0, id="everything-completed"),
        pytest.param((1, 0), 0, 1, id="a-request-without-an-image-in-flight"),
        pytest.param((2, 3), 0, 5, id="of-all-servers"),
        pytest.param((1, 0), 4, 1, id="a-form-with-four-images-in-flight-is-one-request"),
        pytest.param((0, 0), 2, 2, id="images-of-no-open-request"),
    ],
)
async def test_open_requests_are_dropped_when_the_time_runs_out(
    requests: tuple[int, ...], images: int, dropped: int
) -> None:
    servers: list[Any] = [Server(count) for count in requests]
    tasks = [asyncio.create_task(server.run_until_drained()) for server in servers]
    settings = given_settings(drain_timeout_seconds=0.05)
    try:
        found = await _drain(settings, core_with(images), servers, tasks, delay=False)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert found == dropped


@pytest.mark.slow
def test_a_body_that_does_not_arrive_during_the_drain_makes_the_status_1() -> None:
    service = Service(**DEFAULTS, drain_timeout_seconds="1")
    try:
        service.wait_until_ready()
        port = int(service.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(HEAD + b"expect: 100-continue\r\ncontent-length: 1000\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 100")  # it is read
            service.process.send_signal(signal.SIGTERM)
            assert service.end() == 1
        last = json.loads(service.lines[-1])["event"]
        assert last == "Stopped with 1 requests unanswered: the drain took too long"
    finally:
        service.kill()
