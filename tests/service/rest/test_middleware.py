"""What every answer carries."""

from __future__ import annotations

import httpx
import pytest

from tests.service.rest.conftest import MakePhoto

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def test_a_request_without_an_id_gets_one(client: httpx.AsyncClient) -> None:
    first, second = [(await client.get("/healthz")).headers["x-request-id"] for _ in range(2)]
    assert len(first) == 32
    assert first != second


async def test_a_clients_request_id_is_kept(client: httpx.AsyncClient, photo: MakePhoto) -> None:
    response = await client.post("/detect", content=photo(), headers={"X-Request-Id": "order-7/b"})
    assert response.headers["x-request-id"] == "order-7/b"
    assert response.json()["request_id"] == "order-7/b"


@pytest.mark.parametrize("bad", ["", "a b", 'a"b', "x" * 129, "ä"])
async def test_an_unsafe_request_id_is_replaced(client: httpx.AsyncClient, bad: str) -> None:
    response = await client.get("/healthz", headers={b"X-Request-Id": bad.encode()})
    assert len(response.headers["x-request-id"]) == 32


async def test_a_trace_context_is_echoed(client: httpx.AsyncClient) -> None:
    response = await client.get("/healthz", headers={"traceparent": TRACEPARENT})
    assert response.headers["traceparent"] == TRACEPARENT


@pytest.mark.parametrize(
    "bad", ["x", TRACEPARENT.replace("4bf9", "XXXX"), f"00-{'0' * 32}-00f067aa0ba902b7-01"]
)
async def test_a_broken_trace_context_is_dropped(client: httpx.AsyncClient, bad: str) -> None:
    response = await client.get("/healthz", headers={"traceparent": bad})
    assert "traceparent" not in response.headers


@pytest.mark.parametrize("path", ["/", "/docs", "/static/page.js", "/nothing", "/v1/models"])
async def test_pages_allow_nothing_inline_and_nothing_foreign(
    client: httpx.AsyncClient, path: str
) -> None:
    headers = (await client.get(path)).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert headers["x-content-type-options"] == "nosniff"
