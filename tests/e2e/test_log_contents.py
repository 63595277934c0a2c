"""What the logs never contain, whatever the level: keys and images."""

from __future__ import annotations

import base64
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lite_detr_client import Caller, GrpcClient, RetryPolicy, ServiceError
from service.access.api_keys import Scope, key_line, new_key
from tests.support.images import solid_png
from tests.support.running import DEFAULTS, Service

KEY, OTHER = new_key(), new_key()  # `OTHER` is not a key of the service
IMAGE = solid_png((17, 99, 201))
DAMAGED = IMAGE[:-30]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    file = tmp_path / "keys"
    file.write_text(key_line("shop", [Scope.DETECT], KEY))
    settings = {"grpc_port": "0", "api_keys_file": str(file)}
    logging = {"log_requests": "1", "log_level": "debug"}
    service = Service(**(DEFAULTS | settings | logging))
    try:
        service.wait_until_ready()
        yield service
    finally:
        service.kill()


def test_logs_contain_neither_keys_nor_images(service: Service) -> None:
    for key in (KEY, OTHER):
        for headers in ({"Authorization": f"Bearer {key}"}, {"X-API-Key": key}):
            for data in (IMAGE, DAMAGED):
                service.http.post(f"{service.url}/detect", content=data, headers=headers)
                text = {"inputs": base64.b64encode(data).decode()}
                service.http.post(f"{service.url}/detect", json=text, headers=headers)
        caller = Caller(api_key=key)
        with GrpcClient(service.grpc_address, caller=caller, retries=RetryPolicy(1)) as client:
            for data in (IMAGE, DAMAGED):
                try:
                    client.detect(data)
                except ServiceError:
                    continue
    service.process.send_signal(signal.SIGTERM)
    assert service.end() == 0
    output = "".join(service.lines)
    assert output.count('"logger":"service.access"') >= 20
    assert '"api_key":"shop"' in output
    for secret in (KEY, OTHER, base64.b64encode(KEY.encode()).decode()[:-4]):
        assert secret not in output
    pixels = IMAGE[IMAGE.index(b"IDAT") + 4 :][:24]
    for shown in (pixels.hex(), repr(pixels)[2:-1], base64.b64encode(IMAGE).decode()[:48]):
        assert shown not in output
