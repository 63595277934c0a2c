"""Ids, trace context and security headers of every response."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from starlette.responses import Response
from starlette.routing import Route

from service.observability.request_log import RequestLog
from service.observability.request_scope import RequestScope
from service.rest import create_app
from service.settings import Settings
from tests.service.rest.conftest import MakeImage
from tests.service.rest.standin import StandIn

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"


async def test_a_request_without_an_id_gets_one(client: httpx.AsyncClient) -> None:
    first, second = [(await client.get("/healthz")).headers["x-request-id"] for _ in range(2)]
    assert len(first) == 32
    assert first != second


async def test_a_valid_request_id_is_echoed(client: httpx.AsyncClient, image: MakeImage) -> None:
    response = await client.post("/detect", content=image(), headers={"X-Request-Id": "order-7/b"})
    assert response.headers["x-request-id"] == "order-7/b"
    assert response.json()["request_id"] == "order-7/b"


@pytest.mark.parametrize("bad", ["", "a b", 'a"b', "x" * 129, "ä"])
async def test_an_invalid_request_id_is_replaced(client: httpx.AsyncClient, bad: str) -> None:
    response = await client.get("/healthz", headers={b"X-Request-Id": bad.encode()})
    assert len(response.headers["x-request-id"]) == 32


async def test_a_response_belongs_to_the_clients_trace(client: httpx.AsyncClient) -> None:
    headers = {"traceparent": TRACEPARENT, "tracestate": "vendor=1,other=2"}
    response = await client.get("/v1/models", headers=headers)
    version, trace_id, span_id, flags = response.headers["traceparent"].split("-")
    assert (version, trace_id, flags) == ("00", TRACE_ID, "01")
    assert re.fullmatch("[0-9a-f]{16}", span_id)
    assert span_id not in TRACEPARENT  # a span of our own, below the client's
    assert response.headers["tracestate"] == "vendor=1,other=2"


@pytest.mark.parametrize("bad", [None, "x", f"00-{'0' * 32}-00f067aa0ba902b7-01"])
async def test_a_request_without_a_trace_gets_one(
    client: httpx.AsyncClient, bad: str | None
) -> None:
    headers = {} if bad is None else {"traceparent": bad, "tracestate": "vendor=1"}
    response = await client.get("/v1/models", headers=headers)
    assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-02", response.headers["traceparent"])
    assert "tracestate" not in response.headers


async def test_an_error_has_the_ids_too(client: httpx.AsyncClient) -> None:
    response = await client.post("/detect?threshold=7", headers={"traceparent": TRACEPARENT})
    assert response.status_code == 422
    assert response.headers["traceparent"].split("-")[1] == TRACE_ID
    assert response.headers["x-request-id"] == response.json()["request_id"]


@pytest.mark.parametrize("path", ["/", "/docs", "/static/page.js", "/nothing", "/v1/models"])
async def test_pages_allow_nothing_inline_and_no_other_host(
    client: httpx.AsyncClient, path: str
) -> None:
    headers = (await client.get(path)).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/detect", "/detect"),
        ("/static/page.js", "/static"),
        ("/static/../x", ""),
        ("/nothing/of/the/kind", ""),
        ("/files/7/pages/8", "/files/{file}/pages/{page}"),
        ("/files/f/pages/p", "/files/{file}/pages/{page}"),
        ("/files/files/pages/pages", "/files/{file}/pages/{page}"),
        ("/files/7/pages/7", "/files/{file}/pages/{page}"),
        ("/tree/t/r/tree", "/tree/{rest}"),
        ("/tree/", "/tree/{rest}"),
    ],
)
async def test_the_route_of_a_request_is_the_pattern_that_it_matched(
    standin: StandIn, settings: Settings, path: str, route: str
) -> None:
    scopes: list[RequestScope] = []

    class Watching(RequestLog):
        @contextmanager
        def track(self, *args: Any, **kwargs: Any) -> Iterator[RequestScope]:
            with super().track(*args, **kwargs) as scope:
                yield scope
            scopes.append(scope)

    app = create_app(standin.as_detector(), settings, request_log=Watching())
    for pattern in ("/files/{file}/pages/{page}", "/tree/{rest:path}"):
        app.router.routes.append(Route(pattern, lambda _: Response("")))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        await client.get(path)
    assert [scope.route for scope in scopes] == [route]
