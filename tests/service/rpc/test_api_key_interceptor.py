"""API keys over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.access.api_keys import KeyRing, Scope, key_line, new_key
from service.rpc.pb import detection_pb2 as pb
from tests.service.rest.standin import StandIn
from tests.service.rpc.caller import Caller, calling, serving

KEYS = {scope: new_key() for scope in Scope}


@pytest.fixture
async def guarded(standin: StandIn, tmp_path: Path) -> AsyncIterator[Caller]:
    file = tmp_path / "keys"
    file.write_text("\n".join(key_line(scope.value, [scope], key) for scope, key in KEYS.items()))
    async with (
        serving(standin.as_detector(), keys=KeyRing(file)) as server,
        calling(server) as caller,
    ):
        yield caller


def _metadata(scope: Scope) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {KEYS[scope]}"),)


async def test_health_needs_no_key(guarded: Caller) -> None:
    stub = health_pb2_grpc.HealthStub(guarded.channel)  # type: ignore[no-untyped-call]
    response = await stub.Check(health_pb2.HealthCheckRequest())
    assert response.status == health_pb2.HealthCheckResponse.SERVING


async def test_without_a_key_nothing_is_detected(
    guarded: Caller, standin: StandIn, image: bytes
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await guarded.detect(pb.DetectRequest(image=image))
    assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert not standin.started.is_set()


async def test_a_key_gives_access_to_calls_and_streams(guarded: Caller, image: bytes) -> None:
    metadata = _metadata(Scope.DETECT)
    request = pb.DetectRequest(image=image)
    assert (await guarded.detect(request, metadata=metadata)).detections
    stream = guarded.detect_stream(iter([request, request]), metadata=metadata)
    assert len([outcome async for outcome in stream]) == 2
    assert (await guarded.detect(request, metadata=(("x-api-key", KEYS[Scope.DETECT]),))).detections


async def test_a_stream_without_a_key_is_refused(guarded: Caller, image: bytes) -> None:
    stream = guarded.detect_stream(iter([pb.DetectRequest(image=image)]))
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await stream.read()
    assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_key_without_the_scope_is_refused(guarded: Caller, image: bytes) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await guarded.detect(pb.DetectRequest(image=image), metadata=_metadata(Scope.METRICS))
    assert refusal.value.code() is grpc.StatusCode.PERMISSION_DENIED
