"""API keys over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from service.access.api_keys import KeyRing, Scope, key_line, new_key
from service.rpc.pb import detection_pb2 as pb
from tests.service.rest.standin import StandIn
from tests.service.rpc.caller import Caller, calling, serving

KEYS = {scope: new_key() for scope in Scope}


def _write(file: Path, *scopes: Scope) -> None:
    file.write_text("\n".join(key_line(scope.value, [scope], KEYS[scope]) for scope in scopes))


@pytest.fixture
def key_ring(tmp_path: Path) -> KeyRing:
    _write(tmp_path / "keys", *Scope)
    return KeyRing(tmp_path / "keys")


@pytest.fixture
async def guarded(standin: StandIn, key_ring: KeyRing) -> AsyncIterator[Caller]:
    async with serving(standin.as_detector(), keys=key_ring) as server, calling(server) as caller:
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


def _stream(caller: Caller, name: str) -> Any:
    """An open stream of a method, its key that of detection."""
    if name == "DetectStream":
        return caller.detect_stream(metadata=_metadata(Scope.DETECT), timeout=60)
    reflect = caller.channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    return reflect(metadata=_metadata(Scope.DETECT), timeout=60)


@pytest.mark.parametrize("name", ["DetectStream", "ServerReflectionInfo"])
async def test_a_stream_whose_key_is_revoked_ends_with_its_next_message(
    guarded: Caller, key_ring: KeyRing, image: bytes, tmp_path: Path, name: str
) -> None:
    request: Any = pb.DetectRequest(image=image)
    if name != "DetectStream":
        request = reflection_pb2.ServerReflectionRequest(list_services="")
    stream = _stream(guarded, name)
    await stream.write(request)
    assert await stream.read()
    _write(tmp_path / "keys", Scope.ADMIN)
    key_ring.reload()
    await stream.write(request)
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await stream.read()
    assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_stream_whose_key_loses_its_scope_ends(
    guarded: Caller, key_ring: KeyRing, image: bytes, tmp_path: Path
) -> None:
    stream = _stream(guarded, "DetectStream")
    await stream.write(pb.DetectRequest(image=image))
    await stream.read()
    line = key_line("detect", [Scope.METRICS], KEYS[Scope.DETECT])
    (tmp_path / "keys").write_text(line)
    key_ring.reload()
    await stream.write(pb.DetectRequest(image=image))
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await stream.read()
    assert ended.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_frame_that_was_read_before_its_key_was_revoked_gets_its_detections(
    guarded: Caller, standin: StandIn, key_ring: KeyRing, image: bytes, tmp_path: Path
) -> None:
    standin.hold = asyncio.Event()
    stream = _stream(guarded, "DetectStream")
    await stream.write(pb.DetectRequest(image=image))
    await standin.started.wait()
    _write(tmp_path / "keys", Scope.ADMIN)
    key_ring.reload()
    await stream.write(pb.DetectRequest(image=image))
    standin.hold.set()
    assert (await stream.read()).response.detections
    with pytest.raises(grpc.aio.AioRpcError):
        await stream.read()
    assert len(standin.deadlines) == 1


async def test_a_stream_whose_key_stays_goes_on_when_the_keys_change(
    guarded: Caller, key_ring: KeyRing, image: bytes, tmp_path: Path
) -> None:
    stream = _stream(guarded, "DetectStream")
    for scopes in ((Scope.DETECT,), (Scope.DETECT, Scope.ADMIN)):
        await stream.write(pb.DetectRequest(image=image))
        assert (await stream.read()).response.detections
        _write(tmp_path / "keys", *scopes)
        key_ring.reload()
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF
