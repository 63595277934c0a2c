"""Invalid and hostile gRPC traffic is refused with a status and leaves nothing behind."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, cast

import grpc
import pytest

from lite_detr_client.pb import detection_pb2 as pb
from tests.e2e.hostile import bombs
from tests.support.running import Service

SERVICE = "/litedetr.v1.DetectionService"
IMAGE = bombs.jpeg()
RST_STREAM, HEADERS, SETTINGS = 3, 1, 4


@pytest.fixture
def channel(service: Service) -> Iterator[grpc.Channel]:
    unlimited = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(service.grpc_address, options=unlimited) as channel:
        yield channel


def _unary(channel: grpc.Channel, method: str) -> Any:
    return channel.unary_unary(f"{SERVICE}/{method}")


def _refusal(call: object) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as refused:
        call()  # type: ignore[operator]
    code: grpc.StatusCode = refused.value.code()
    return code


def _detects(channel: grpc.Channel) -> bool:
    request = pb.DetectRequest(image=IMAGE).SerializeToString()
    response = _unary(channel, "Detect")(request, timeout=60)
    return pb.DetectResponse.FromString(response).image.width == 64


def test_a_message_above_the_limit_is_refused(channel: grpc.Channel) -> None:
    call = _unary(channel, "Detect")
    message = bytes(65 << 20)
    assert _refusal(lambda: call(message, timeout=60)) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert _detects(channel)


@pytest.mark.parametrize("method", ["Detect", "DetectBatch", "GetModel"])
@pytest.mark.parametrize("message", [b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x0f", bytes(range(256))])
def test_bytes_that_are_not_a_message_are_refused(
    channel: grpc.Channel, method: str, message: bytes
) -> None:
    call = _unary(channel, method)
    assert _refusal(lambda: call(message, timeout=60)) is grpc.StatusCode.INVALID_ARGUMENT


def test_a_bomb_in_a_batch_does_not_affect_the_other_images(channel: grpc.Channel) -> None:
    images = [IMAGE, bombs.png(65535, 65535, rows=1), IMAGE, bombs.png_text_bomb()]
    request = pb.DetectBatchRequest(requests=[pb.DetectRequest(image=data) for data in images])
    response = _unary(channel, "DetectBatch")(request.SerializeToString(), timeout=60)
    outcomes = pb.DetectBatchResponse.FromString(response).outcomes
    assert [outcome.HasField("response") for outcome in outcomes] == [True, False, True, True]


def test_calls_that_are_cancelled_at_once_leave_no_memory(
    service: Service, channel: grpc.Channel
) -> None:
    before = service.rss_bytes()
    request = pb.DetectRequest(image=IMAGE).SerializeToString()
    call = _unary(channel, "Detect")
    for _ in range(10_000):
        call.future(request, timeout=60).cancel()
    # Until the service has processed the cancellations it may refuse more calls on this connection
    # (HTTP/2's REFUSED_STREAM). Another connection gets its response, after all earlier calls.
    own_connection = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(service.grpc_address, options=own_connection) as other:
        assert _detects(other)
    assert _detects(channel)
    assert service.rss_bytes() - before < 96 << 20


@pytest.mark.slow
def test_a_stream_whose_responses_are_not_read_is_paused(
    service: Service, channel: grpc.Channel
) -> None:
    before = service.rss_bytes()
    frame = pb.DetectRequest(image=IMAGE + bytes(100_000)).SerializeToString()
    sent = 0

    def flood() -> Iterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield frame

    call: Any = channel.stream_stream(f"{SERVICE}/DetectStream")(cast(Any, flood()), timeout=3)
    assert _detects(channel)
    while call.is_active():
        service.rss_bytes()
        assert _detects(channel)
    assert service.rss_bytes() - before < 128 << 20
    assert sent


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def test_a_flood_of_opened_and_reset_streams_does_not_affect_other_calls(
    service: Service, channel: grpc.Channel
) -> None:
    before = service.rss_bytes()
    host, _, port = service.grpc_address.rpartition(":")
    # Literal header fields without indexing: enough for gRPC to open a call.
    fields = (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", f"{SERVICE}/Detect".encode()),
    )
    more = ((b":authority", b"x"), (b"te", b"trailers"), (b"content-type", b"application/grpc"))
    block = b"".join(
        b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value
        for name, value in (*fields, *more)
    )
    with socket.create_connection((host, int(port)), 60) as flood:
        flood.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(SETTINGS, 0, 0))
        with suppress(OSError):  # gRPC may close such a connection
            for stream in range(1, 20_001, 2):
                reset = _frame(RST_STREAM, 0, stream, struct.pack(">I", 8))
                flood.sendall(_frame(HEADERS, 4, stream, block) + reset)
        assert _detects(channel)
    assert service.rss_bytes() - before < 96 << 20


def test_bytes_of_another_protocol_are_ignored(service: Service, channel: grpc.Channel) -> None:
    host, _, port = service.grpc_address.rpartition(":")
    for data in (b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 40, b"PRI * HTTP/2.0\r\n"):
        with socket.create_connection((host, int(port)), 60) as connection:
            connection.sendall(data)
    assert _detects(channel)
