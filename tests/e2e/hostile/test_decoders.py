"""Images that crash or hang their decoder, over each protocol: other requests are not affected."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from lite_detr_client import GrpcClient, RetryPolicy, ServiceError
from tests.service.oip.triton_requests import grpc_input
from tests.support.faulty_decode import CRASH, HANG
from tests.support.images import solid_png
from tests.support.running import DEFAULTS, Service

GOOD = solid_png((3, 2, 1))
Send = Callable[[Service, bytes, float], str]


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    service = Service(**(DEFAULTS | {"grpc_port": "0", "decode_threads": "2"}))
    try:
        service.wait_until_ready()
        yield service
    finally:
        service.kill()


def _http(service: Service, data: bytes, seconds: float) -> str:
    response = httpx.post(
        f"{service.url}/detect",
        content=data,
        headers={"X-Request-Timeout-Ms": str(seconds * 1000)},
        timeout=120,
    )
    return "ok" if response.status_code == 200 else str(response.json()["code"])


def _grpc(service: Service, data: bytes, seconds: float) -> str:
    with GrpcClient(
        service.grpc_address, timeout_s=seconds, retries=RetryPolicy(attempts=1)
    ) as client:
        try:
            client.detect(data)
        except ServiceError as error:
            return error.code
        return "ok"


def _inference_protocol(service: Service, data: bytes, seconds: float) -> str:
    with tritonclient.grpc.InferenceServerClient(service.grpc_address) as client:
        try:
            client.infer("fake", grpc_input(data), client_timeout=seconds)
        except InferenceServerException as error:
            late = "Deadline" in str(error) or "DEADLINE" in str(error.status())
            return "deadline_exceeded" if late else "invalid_image"
        return "ok"


PROTOCOLS = pytest.mark.parametrize(
    "send",
    [_http, *(pytest.param(each, marks=pytest.mark.slow) for each in (_grpc, _inference_protocol))],
)


@PROTOCOLS
def test_an_image_that_crashes_its_decoder_gets_an_error_and_its_neighbours_do_not(
    service: Service, send: Send
) -> None:
    files = [GOOD + CRASH if number % 4 == 0 else GOOD for number in range(16)]
    with ThreadPoolExecutor(8) as clients:
        codes = list(clients.map(lambda data: send(service, data, 60.0), files))
    assert codes == ["invalid_image" if data != GOOD else "ok" for data in files]
    assert _log_lines(service, "decoder crashed")
    assert service.process.poll() is None


@PROTOCOLS
def test_an_image_that_hangs_its_decoder_ends_at_its_deadline_and_frees_the_decoder(
    service: Service, send: Send
) -> None:
    with ThreadPoolExecutor(4) as clients:
        hanging = [clients.submit(send, service, GOOD + HANG, 0.5) for _ in range(4)]
        good = clients.submit(send, service, GOOD, 60.0)
        assert [call.result() for call in hanging] == ["deadline_exceeded"] * 4
        assert good.result() == "ok"
    service.wait_for_metric("slots_in_use", 0)


def test_an_image_that_crashes_its_decoder_among_others_of_a_form(service: Service) -> None:
    files = [("files", (f"{number}.png", GOOD)) for number in range(3)]
    files.insert(1, ("files", ("bad.png", GOOD + CRASH)))
    response = service.http.post(f"{service.url}/detect", files=files)
    assert response.status_code == 200
    errors = ["error" in item for item in response.json()["results"]]
    assert errors == [False, True, False, False]


@pytest.mark.slow
def test_a_shutdown_does_not_wait_for_a_hanging_decoder() -> None:
    service = Service(**(DEFAULTS | {"decode_threads": "1"}))
    try:
        service.wait_until_ready()
        with ThreadPoolExecutor(1) as client:
            hanging = client.submit(_http, service, GOOD + HANG, 1.0)
            service.wait_for_metric("slots_in_use", 1)
            decoders = service.decoder_pids()
            service.process.terminate()
            assert hanging.result() == "deadline_exceeded"
            assert service.end() == 0
        assert decoders
        deadline = time.monotonic() + 60
        while any(Path(f"/proc/{pid}").exists() for pid in decoders):
            assert time.monotonic() < deadline, "decoders outlive the service"
            time.sleep(0.01)
    finally:
        service.kill()


def _log_lines(service: Service, event: str) -> list[str]:
    return [line for line in service.lines if event in line]
