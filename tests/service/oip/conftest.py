"""Clients of the Open Inference Protocol and a complete service."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import tritonclient.grpc
import tritonclient.http

from tests.service.oip.running_service import Served, served
from tests.service.oip.triton_requests import http_client

ERROR_COLOUR, ERROR_HEX = (9, 9, 8), "090908"
SLOW_COLOUR, SLOW_HEX = (9, 8, 7), "090807"
LIMIT = 1 << 20


@pytest.fixture(scope="package")
def service() -> Iterator[Served]:
    with served(
        model_control="explicit",
        max_body_bytes=LIMIT,
        max_image_pixels=1_000_000,
        max_files=4,
        fake_error_colour=ERROR_HEX,
    ) as service:
        yield service


@pytest.fixture
def http(service: Served) -> Iterator[tritonclient.http.InferenceServerClient]:
    with http_client(service.http) as client:
        yield client


@pytest.fixture
def grpc(service: Served) -> Iterator[tritonclient.grpc.InferenceServerClient]:
    with tritonclient.grpc.InferenceServerClient(service.grpc) as client:
        yield client
