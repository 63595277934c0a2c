"""What gRPC clients without a key can make the server hold: next to nothing."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from lite_detr_client import Caller, GrpcClient
from service.access.api_keys import Scope, key_line, new_key
from service.rpc import health
from tests.support.images import solid_png
from tests.support.running import DEFAULTS, Service

KEY = new_key()
MESSAGE = bytes(60 << 20)
METHODS = (
    "/litedetr.v1.DetectionService/Detect",
    "/inference.GRPCInferenceService/ModelInfer",
    "/inference.GRPCInferenceService/ServerLive",
    "/grpc.health.v1.Health/Check",
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(key_line("pipeline", [Scope.DETECT], KEY))
    service = Service(**(DEFAULTS | {"grpc_port": "0", "api_keys_file": str(file)}))
    try:
        service.wait_for_line("engine ready")
        yield service
    finally:
        service.kill()


def _channel(service: Service) -> grpc.Channel:
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.insecure_channel(service.grpc_address, options=options)


def _detects(service: Service) -> bool:
    with GrpcClient(service.grpc_address, caller=Caller(api_key=KEY)) as client:
        return client.detect(solid_png((1, 2, 3))).width == 64


@pytest.mark.parametrize("method", METHODS[:2])
def test_a_large_message_without_a_key_is_refused_unread(service: Service, method: str) -> None:
    before = service.rss_bytes("VmHWM")

    def refusal(_number: int) -> grpc.StatusCode:
        with _channel(service) as channel:
            call: Any = channel.unary_unary(method)
            with pytest.raises(grpc.RpcError) as refused:
                call(MESSAGE, timeout=120)
        code: grpc.StatusCode = refused.value.code()
        return code

    with ThreadPoolExecutor(6) as clients:
        codes = set(clients.map(refusal, range(12)))
    assert codes == {grpc.StatusCode.UNAUTHENTICATED}
    assert service.rss_bytes("VmHWM") - before < 60 << 20  # less than one of the messages
    assert _detects(service)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS[2:])
def test_a_public_method_does_not_wait_for_its_request(service: Service, method: str) -> None:
    """A call whose request never arrives ends, and holds no place until the client leaves."""
    never: queue.Queue[bytes] = queue.Queue()

    def nothing() -> Iterator[bytes]:
        yield never.get()

    with _channel(service) as channel:
        call: Any = channel.stream_unary(method)
        with pytest.raises(grpc.RpcError) as ended:
            call(nothing(), timeout=120)
        assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "not received within" in str(ended.value.details())
        never.put(b"")
    assert _detects(service)


def test_watching_streams_are_limited_and_leave_the_calls_to_key_holders(service: Service) -> None:
    request = health_pb2.HealthCheckRequest().SerializeToString()
    refused = threading.Semaphore(0)
    watching = threading.Semaphore(0)

    def watch(channel: grpc.Channel) -> Any:
        stream: Any = channel.unary_stream("/grpc.health.v1.Health/Watch")(request, timeout=300)

        def read() -> None:
            try:
                for _ in stream:
                    watching.release()
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    refused.release()

        threading.Thread(target=read, daemon=True).start()
        return stream

    with _channel(service) as channel:
        streams = [watch(channel) for _ in range(health._MAX_WATCHES + 50)]
        for _ in range(health._MAX_WATCHES):
            assert watching.acquire(timeout=120)
        for _ in range(50):
            assert refused.acquire(timeout=120)
        assert _detects(service)
        for stream in streams:
            stream.cancel()
