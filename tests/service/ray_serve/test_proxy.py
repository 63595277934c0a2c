"""The middleware of Ray's HTTP proxies: retries, deadlines, limits of bodies."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.ray_serve import proxy, retries
from service.ray_serve.proxy import (
    REPLICA_HEADER,
    ProxyLimits,
    ProxyMiddleware,
    middlewares,
    proxy_variables,
)
from service.transport.http_body import BodyLimits
from tests.support.fake_service import fake_settings

OURS = {REPLICA_HEADER.decode(): "1", "X-Request-Id": "own", "X-Other": "kept"}
LIMITS = ProxyLimits(BodyLimits(1000, 5.0, 1, 5.0), 10_000, 2000)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(proxy, "_GRACE_SECONDS", 0.0)


class Proxy:
    """Stands for Ray's proxy: each request takes the next behaviour."""

    def __init__(self, *behaviours: ASGIApp) -> None:
        self._behaviours: Iterator[ASGIApp] = iter(behaviours)
        self.bodies: list[bytes] = []
        self.timeouts: list[str | None] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        self.timeouts.append(request.headers.get("x-request-timeout-ms"))
        self.bodies.append(await request.body())
        await next(self._behaviours)(scope, request.receive, send)


def responding(status: int, headers: dict[str, str] | None = None) -> ASGIApp:
    return Response(b"body", status, headers)


async def silent(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """What Ray's proxy does if the replica of a request ends."""


async def failing(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise RuntimeError("actor died")


async def started_then_lost(_scope: Scope, _receive: Receive, send: Send) -> None:
    """The replica ended between the two messages of its response."""
    await send({"type": "http.response.start", "status": 200, "headers": [(REPLICA_HEADER, b"1")]})


async def hanging(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """As Ray's proxy, it takes a cancellation for that of the client."""
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        return


async def post(ray: ASGIApp, content: Any = b"image", **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(ProxyMiddleware(ray, LIMITS))
    async with httpx.AsyncClient(transport=transport, base_url="http://ray") as client:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await client.post("/detect", content=content, headers=named)


async def test_a_response_is_passed_on_without_the_marker() -> None:
    ray = Proxy(responding(200, OURS))
    response = await post(ray)
    assert (response.status_code, response.content) == (200, b"body")
    assert response.headers["x-other"] == "kept"
    assert REPLICA_HEADER.decode() not in response.headers
    assert ray.bodies == [b"image"]


async def test_the_second_request_id_which_ray_adds_is_removed() -> None:
    async def twice(_scope: Scope, _receive: Receive, send: Send) -> None:
        headers = [(b"x-request-id", b"ours"), (REPLICA_HEADER, b"1"), (b"X-Request-ID", b"rays")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    assert (await post(Proxy(twice))).headers.get_list("x-request-id") == ["ours"]


@pytest.mark.parametrize(
    "lost", [silent, failing, started_then_lost, responding(500), responding(503)]
)
async def test_a_lost_request_is_sent_again_with_its_body(lost: ASGIApp) -> None:
    ray = Proxy(lost, lost, responding(200, OURS))
    assert (await post(ray)).status_code == 200
    assert ray.bodies == [b"image"] * 3


async def test_a_retry_has_only_the_time_that_is_left() -> None:
    ray = Proxy(silent, responding(200, OURS))
    assert (await post(ray, x_request_timeout_ms="1500")).status_code == 200
    first, second = ray.timeouts
    assert first == "1500"
    assert second is not None and 0 < float(second) < 1500


@pytest.mark.parametrize("status", [400, 429, 500, 503, 504])
async def test_errors_of_a_replica_are_final(status: int) -> None:
    ray = Proxy(responding(status, OURS))
    assert (await post(ray)).status_code == status


async def test_without_an_application_clients_are_asked_to_retry() -> None:
    response = await post(Proxy(responding(404)))
    assert (response.status_code, response.json()["code"]) == (503, "not_ready")
    assert response.headers["retry-after"] == "5"
    assert (await post(Proxy(responding(404, OURS)))).status_code == 404


async def test_a_request_that_is_lost_again_and_again_gets_503_and_a_time_to_retry() -> None:
    response = await post(Proxy(*[silent] * 5), x_request_id="mine")
    assert (response.status_code, response.json()["code"]) == (503, "replica_lost")
    assert response.headers["retry-after"] == "1"
    assert response.headers["x-request-id"] == response.json()["request_id"] == "mine"


async def test_a_request_that_no_replica_takes_gets_504_at_its_deadline() -> None:
    response = await post(Proxy(hanging), x_request_timeout_ms="50")
    assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")


async def test_an_invalid_deadline_is_left_to_the_replica() -> None:
    ray = Proxy(responding(400, OURS))
    assert (await post(ray, x_request_timeout_ms="soon")).status_code == 400
    assert ray.timeouts == ["soon"]


async def test_a_body_that_is_too_large_does_not_reach_ray() -> None:
    ray = Proxy()
    response = await post(ray, b"x" * 1001)
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    assert ray.bodies == []


async def test_bodies_share_a_limit_of_memory() -> None:
    limits = ProxyLimits(LIMITS.body, 100, 2000)
    transport = httpx.ASGITransport(ProxyMiddleware(Proxy(), limits))
    async with httpx.AsyncClient(transport=transport, base_url="http://ray") as client:
        response = await client.post("/detect", content=b"x" * 101)
    assert (response.status_code, response.json()["code"]) == (429, "overloaded")


async def test_a_request_whose_client_left_is_not_sent_again() -> None:
    messages = iter([{"type": "http.request", "body": b"image"}, {"type": "http.disconnect"}])
    sent: list[Any] = []

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    async def until_the_client_leaves(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    ray = Proxy(until_the_client_leaves, responding(200, OURS))
    scope = {"type": "http", "path": "/detect", "method": "POST", "headers": []}
    await ProxyMiddleware(ray, LIMITS)(scope, receive, send)
    assert (sent, len(ray.bodies)) == ([], 1)


async def test_paths_of_ray_itself_are_left_alone() -> None:
    async def routes(scope: Scope, receive: Receive, send: Send) -> None:
        await responding(503)(scope, receive, send)

    transport = httpx.ASGITransport(ProxyMiddleware(routes, LIMITS))
    async with httpx.AsyncClient(transport=transport, base_url="http://ray") as client:
        assert (await client.get("/-/healthz")).status_code == 503


@pytest.mark.parametrize("by_command", [True, False])
def test_rays_proxies_find_the_middleware_and_its_limits(
    monkeypatch: pytest.MonkeyPatch, by_command: bool
) -> None:
    limits = ProxyLimits.of(fake_settings(max_body_bytes=123))
    variables = proxy_variables(limits) if by_command else {"LITE_DETR_MAX_BODY_BYTES": "123"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    [middleware] = middlewares()
    used: object = middleware.cls
    assert used is ProxyMiddleware
    assert middleware.kwargs == {"limits": limits}


def test_the_limits_are_those_of_the_settings() -> None:
    settings = fake_settings(max_body_bytes=5, max_bodies_bytes=6, request_timeout_ms=7)
    limits = ProxyLimits.of(settings)
    assert (limits.body.max_bytes, limits.max_bodies_bytes, limits.request_timeout_ms) == (5, 6, 7)
