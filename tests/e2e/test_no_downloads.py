"""No request makes the service connect to an address: images are part of the request."""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator

import pytest

from lite_detr_client import GrpcClient, ServiceError
from tests.support.running import DEFAULTS, Service


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    service = Service(**(DEFAULTS | {"grpc_port": "0"}))
    try:
        service.wait_until_ready()
        yield service
    finally:
        service.kill()


@pytest.fixture
def address() -> Iterator[str]:
    """A URL of an image on this machine; fails the test if somebody connects."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        yield f"http://127.0.0.1:{server.getsockname()[1]}/photo.jpg"
        with pytest.raises(TimeoutError):
            server.accept()


def _svg(address: str) -> bytes:
    return (
        f'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "{address}">]>'
        f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{address}"/>&x;</svg>'
    ).encode()


def test_an_address_over_http_is_not_fetched(service: Service, address: str) -> None:
    post, url = service.http.post, service.url
    text = address.encode()
    oip = {
        "inputs": [{"name": "IMAGE", "datatype": "BYTES", "shape": [1], "data": [address]}],
    }
    headers = {"X-Image-Url": address, "Link": f"<{address}>", "Referer": address}
    responses = [
        post(f"{url}/detect", content=text, headers=headers),
        post(f"{url}/detect", content=text, headers={"Content-Type": "text/uri-list"}),
        post(f"{url}/detect", content=_svg(address)),
        post(f"{url}/detect", params={"url": address, "image_url": address}, content=b""),
        post(f"{url}/detect", data={"file": address, "url": address}),
        post(f"{url}/detect", files={"file": ("photo.jpg", text)}),
        post(f"{url}/detect", json={"inputs": address}),
        post(f"{url}/detect", json={"inputs": base64.b64encode(text).decode()}),
        post(f"{url}/detect", json={"inputs": {"url": address}}),
        post(f"{url}/", json={"inputs": address, "parameters": {"url": address}}),
        post(f"{url}/v2/models/fake/infer", json=oip),
    ]
    assert {response.status_code // 100 for response in responses} == {4}


def test_an_address_over_grpc_is_not_fetched(service: Service, address: str) -> None:
    with GrpcClient(service.grpc_address) as client:
        for data in (address.encode(), _svg(address)):
            with pytest.raises(ServiceError):
                client.detect(data)
