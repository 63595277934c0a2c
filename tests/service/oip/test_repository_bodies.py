"""Bodies of requests to the repository: small, counted, and not read if changes are off."""

from __future__ import annotations

import gzip
from typing import Any

import httpx
import pytest

from tests.service.oip.grpc_caller import build_app
from tests.service.rest.standin import StandIn

INDEX = "/v2/repository/index"
CHANGES = [f"/v2/repository/models/stand-in/{change}" for change in ("load", "unload")]
LIMIT = 65_536


def calling(**settings: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(build_app(StandIn(), **settings))
    return httpx.AsyncClient(transport=transport, base_url="http://service")


def padded(num_bytes: int) -> bytes:
    return b"{" + b" " * (num_bytes - 2) + b"}"


@pytest.mark.parametrize("path", [INDEX, *CHANGES])
async def test_a_body_of_more_than_64_kib_is_refused(path: str) -> None:
    async with calling() as client:
        assert (await client.post(path, content=padded(LIMIT))).status_code == 200
        assert (await client.post(path, content=padded(LIMIT + 1))).status_code == 413
        bomb, encoding = gzip.compress(padded(LIMIT + 1)), {"Content-Encoding": "gzip"}
        assert (await client.post(path, content=bomb, headers=encoding)).status_code == 413


@pytest.mark.parametrize("path", [INDEX, *CHANGES])
async def test_a_lower_limit_of_all_bodies_applies_here_too(path: str) -> None:
    async with calling(max_body_bytes=1000) as client:
        assert (await client.post(path, content=padded(1001))).status_code == 413


@pytest.mark.parametrize("path", [INDEX, *CHANGES])
async def test_bodies_are_counted_with_those_of_all_requests(path: str) -> None:
    async with calling(max_body_bytes=1000, max_bodies_bytes=1000) as client:
        zipped, encoding = gzip.compress(padded(1000)), {"Content-Encoding": "gzip"}
        response = await client.post(path, content=zipped, headers=encoding)
        assert response.status_code == 429
        assert response.headers["Retry-After"] == "1"
        assert (await client.post(path, content=padded(1000))).status_code == 200


@pytest.mark.parametrize("path", CHANGES)
@pytest.mark.parametrize("body", [b"not JSON", padded(LIMIT + 1)], ids=["not JSON", "too large"])
async def test_without_model_control_a_change_is_refused_whatever_its_body(
    path: str, body: bytes
) -> None:
    async with calling(model_control="none") as client:
        response = await client.post(path, content=body)
    assert response.status_code == 503
    assert "model_control=none" in response.json()["error"]
