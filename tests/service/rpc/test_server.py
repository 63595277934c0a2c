"""The whole server: ports, limits, health, reflection and stopping."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from service.rpc import RpcServer
from service.rpc.health import HEALTH_SERVICE, ReadinessHealth
from service.rpc.pb import detection_pb2 as pb
from service.rpc.server import SERVICE
from tests.service.rest.standin import StandIn
from tests.service.rpc.caller import PREFIX, Caller, calling, rpc_options, serving, trailing

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def _health(caller: Caller):
    write = health_pb2.HealthCheckRequest.SerializeToString
    read = health_pb2.HealthCheckResponse.FromString
    check = caller.channel.unary_unary(f"/{HEALTH_SERVICE}/Check", write, read)
    watch = caller.channel.unary_stream(f"/{HEALTH_SERVICE}/Watch", write, read)
    return check, watch


async def _reflect(caller: Caller, **question: str):
    ask = caller.channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    request = reflection_pb2.ServerReflectionRequest(**question)
    (response,) = [response async for response in ask(iter([request]))]
    return response


@pytest.mark.parametrize("service", ["", SERVICE])
async def test_health_follows_readiness(caller: Caller, standin: StandIn, service: str) -> None:
    check, _ = _health(caller)
    request = health_pb2.HealthCheckRequest(service=service)
    assert (await check(request)).status == SERVING
    standin.ready = False
    assert (await check(request)).status == NOT_SERVING


async def test_health_of_an_unknown_service_is_unknown(caller: Caller) -> None:
    check, watch = _health(caller)
    request = health_pb2.HealthCheckRequest(service="unknown")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await check(request)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert (await anext(aiter(watch(request)))).status == SERVICE_UNKNOWN


@pytest.mark.parametrize("method", ["Check", "Watch"])
async def test_health_refuses_bytes_that_are_no_message(caller: Caller, method: str) -> None:
    channel: Any = caller.channel
    kinds = {"Check": channel.unary_unary, "Watch": channel.unary_stream}
    call = kinds[method](f"/{HEALTH_SERVICE}/{method}")(b"\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (call if method == "Check" else anext(aiter(call)))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert trailing(caught.value)["lite-detr-code"] == "malformed_message"


async def test_watch_yields_every_change_and_ends_with_the_drain(standin: StandIn) -> None:
    health = ReadinessHealth(standin.as_detector(), ("",), poll_seconds=0.001)
    states = health.watch(health_pb2.HealthCheckRequest(), None)  # type: ignore[arg-type]
    assert (await anext(states)).status == SERVING
    standin.ready = False
    assert (await anext(states)).status == NOT_SERVING
    standin.ready = True
    assert (await anext(states)).status == SERVING
    health.begin_drain()
    assert (await anext(states)).status == NOT_SERVING
    with pytest.raises(StopAsyncIteration):
        await anext(states)


async def test_reflection_lists_the_services_and_their_messages(caller: Caller) -> None:
    listed = await _reflect(caller, list_services="")
    names = {service.name for service in listed.list_services_response.service}
    assert {SERVICE, HEALTH_SERVICE} <= names
    found = await _reflect(caller, file_containing_symbol=SERVICE)
    files = found.file_descriptor_response.file_descriptor_proto
    assert FileDescriptorProto.FromString(files[0]).name == "litedetr/v1/detection.proto"


async def test_a_message_of_the_maximum_size_is_accepted_and_a_larger_one_is_not(
    standin: StandIn, image: bytes
) -> None:
    most = 6 * 1024 * 1024  # above gRPC's own default of 4 MiB
    async with (
        serving(standin.as_detector(), max_message_bytes=most) as server,
        calling(server) as caller,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await caller.detect(pb.DetectRequest(image=image + bytes(most - len(image))))
        assert trailing(caught.value)["lite-detr-code"] == "image_too_large"  # the detector's
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await caller.detect(pb.DetectRequest(image=bytes(most + (1 << 20))))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await caller.detect(pb.DetectRequest(image=image))


async def test_a_compressed_message_is_refused(server: RpcServer) -> None:
    async with calling(server) as caller:
        bomb = pb.DetectRequest(image=bytes(64 << 20))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await caller.detect(bomb, compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_more_calls_than_allowed_are_refused(standin: StandIn, image: bytes) -> None:
    standin.hold = asyncio.Event()
    async with (
        serving(standin.as_detector(), max_concurrent_calls=1) as server,
        calling(server) as caller,
    ):
        first = asyncio.ensure_future(caller.detect(pb.DetectRequest(image=image)))
        await standin.started.wait()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await caller.detect(pb.DetectRequest(image=image))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.aio.AioRpcError) as other_method:
            await caller.get_model(pb.GetModelRequest())
        assert other_method.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        standin.hold.set()
        assert (await first).detections


async def test_a_call_whose_request_does_not_arrive_ends(standin: StandIn, image: bytes) -> None:
    """Otherwise such calls would hold the places of all others."""
    async with (
        serving(standin.as_detector(), max_concurrent_calls=1, receive_seconds=0.3) as server,
        calling(server) as caller,
    ):
        never = asyncio.Event()

        async def nothing() -> AsyncIterator[bytes]:
            await never.wait()
            yield b""

        for name in ("Detect", "DetectBatch", "GetModel"):
            stream: Any = caller.channel.stream_unary(PREFIX + name)
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await stream(nothing(), timeout=60)
            assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "not received within 0.3 s" in str(ended.value.details())
        assert (await caller.detect(pb.DetectRequest(image=image))).detections


async def test_a_call_without_a_request_is_refused(server: RpcServer) -> None:
    async with calling(server) as caller:

        async def nothing() -> AsyncIterator[bytes]:
            messages: tuple[bytes, ...] = ()
            for message in messages:
                yield message

        stream: Any = caller.channel.stream_unary(PREFIX + "Detect")
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await stream(nothing(), timeout=60)
        assert ended.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_port_in_use_raises(server: RpcServer, standin: StandIn) -> None:
    other = RpcServer(standin.as_detector(), rpc_options(port=server.port))
    with pytest.raises(OSError, match=str(server.port)):
        await other.start()
    await other.stop(0)


async def test_a_stop_finishes_calls_in_flight_and_refuses_new_ones(
    server: RpcServer, caller: Caller, standin: StandIn, image: bytes
) -> None:
    standin.hold = asyncio.Event()
    accepted = [asyncio.ensure_future(caller.detect(pb.DetectRequest(image=image)))]
    accepted += [asyncio.ensure_future(caller.detect(pb.DetectRequest(image=image)))]
    while len(standin.deadlines) < 2:
        await asyncio.sleep(0.01)
    stopped = asyncio.create_task(server.stop(30))
    await asyncio.sleep(0)
    async with calling(server) as late:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await late.detect(pb.DetectRequest(image=image))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert trailing(caught.value)["lite-detr-code"] == "shutting_down"
    assert not stopped.done()
    standin.hold.set()
    for response in await asyncio.gather(*accepted):
        assert response.detections
    await stopped


async def test_calls_without_images_do_not_delay_a_stop(
    server: RpcServer, caller: Caller, standin: StandIn
) -> None:
    _, watch = _health(caller)
    watching = watch(health_pb2.HealthCheckRequest())
    assert (await watching.read()).status == SERVING
    idle = caller.channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )()
    await idle.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    await idle.read()
    async with asyncio.timeout(60):
        await server.stop(600)
    assert (await watching.read()).status == NOT_SERVING
    idle.cancel()


async def test_a_stop_that_takes_too_long_cancels(
    server: RpcServer, caller: Caller, standin: StandIn, image: bytes
) -> None:
    standin.hold = asyncio.Event()
    call = asyncio.ensure_future(caller.detect(pb.DetectRequest(image=image)))
    await standin.started.wait()
    await server.stop(0.05)
    with pytest.raises(grpc.aio.AioRpcError):
        await call
    assert standin.cancelled


async def test_calls_are_open_until_their_response_and_end_when_the_server_gives_up(
    server: RpcServer, caller: Caller, standin: StandIn, image: bytes
) -> None:
    standin.hold = asyncio.Event()
    serving = asyncio.create_task(server.run_until_drained())
    call = asyncio.ensure_future(caller.detect(pb.DetectRequest(image=image)))
    await standin.started.wait()
    assert server.open_requests == 1
    server.drain()
    server.give_up()
    async with asyncio.timeout(60):  # those of its options are 60 s and more
        await serving
    with pytest.raises(grpc.aio.AioRpcError):
        await call
    assert standin.cancelled
    assert server.open_requests == 0


async def test_a_server_that_never_started_stops(standin: StandIn) -> None:
    await RpcServer(standin.as_detector(), rpc_options()).stop(1)


HEALTH = f"/{HEALTH_SERVICE}/"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


@pytest.mark.parametrize("method", [HEALTH + "Check", HEALTH + "Watch", REFLECTION])
async def test_bytes_that_are_no_message_are_refused_without_a_log_line(
    caller: Caller, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    async def messages() -> AsyncIterator[bytes]:
        yield b"\xff\xff"

    connection: Any = caller.channel
    call = connection.stream_stream(method)(messages(), timeout=60)
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await call.read()
    assert ended.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not caplog.records
