from __future__ import annotations

from typing import Any

import httpx
import pytest

from lite_detr_client import AsyncGrpcClient, AsyncHttpClient, GrpcClient, HttpClient
from lite_detr_client.addresses import grpc_target, http_url


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("http://localhost:8000", "http://localhost:8000"),
        ("https://a.test/vision/", "https://a.test/vision/"),
        ("localhost:8000", "http://localhost:8000"),
        (" a.test ", "http://a.test"),
        ("10.0.0.1:8000", "http://10.0.0.1:8000"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("a.test:8000/vision", "http://a.test:8000/vision"),
        (httpx.URL("http://a.test"), "http://a.test"),
    ],
)
def test_addresses_of_http(address: Any, url: str) -> None:
    assert http_url(address) == url


def test_an_address_without_a_scheme_is_https_with_tls() -> None:
    assert http_url("a.test:8443", tls=True) == "https://a.test:8443"


@pytest.mark.parametrize(
    "address", ["", "grpc://a:1", "http://", "http://a:b", "ftp://a", "http://["]
)
def test_other_addresses_of_http_are_refused(address: str) -> None:
    for client in (HttpClient, AsyncHttpClient):
        with pytest.raises(ValueError, match="is not"):
            client(address)


@pytest.mark.parametrize(
    ("address", "target", "tls"),
    [
        ("localhost:8001", "localhost:8001", False),
        ("http://localhost:8001", "localhost:8001", False),
        ("http://localhost:8001/", "localhost:8001", False),
        ("https://a.test", "a.test:443", True),
        ("https://[::1]:8001", "[::1]:8001", True),
        ("grpc://a.test:8001", "a.test:8001", False),
        ("grpcs://a.test:8001", "a.test:8001", True),
        ("dns:///a.test:8001", "dns:///a.test:8001", False),
        ("unix:/run/a.sock", "unix:/run/a.sock", False),
        ("ipv6:[::1]:8001", "ipv6:[::1]:8001", False),
    ],
)
def test_addresses_of_grpc(address: str, target: str, tls: bool) -> None:
    assert grpc_target(address) == (target, tls)


@pytest.mark.parametrize(
    "address", ["", "a b", "http://", "grpc://a", "http://a:8001/vision", "http://a:b"]
)
async def test_other_addresses_of_grpc_are_refused(address: str) -> None:
    for client in (GrpcClient, AsyncGrpcClient):
        with pytest.raises(ValueError, match=r"is not|no port"):
            client(address)
