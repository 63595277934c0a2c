"""The gRPC service: streams, deadlines, cancellation and draining."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from service.errors import Overloaded
from service.oip.pb import grpc_service_pb2 as pb
from service.rpc import RpcServer
from service.rpc.health import HEALTH_SERVICE
from service.rpc.pb import detection_pb2
from service.types import Priority
from tests.service.oip.grpc_caller import OipCaller, asking, infer_request, standing
from tests.service.rest.standin import StandIn
from tests.service.rpc.caller import calling, trailing
from tests.support.images import solid_png
from tests.support.standin_models import engine_of, switching, until

SERVICE = "inference.GRPCInferenceService"
IMAGE = solid_png((0, 128, 128), 200, 100)
NOISE = b"\x00\x01nothing"


@pytest.fixture
def standin() -> StandIn:
    return StandIn()


@pytest.fixture
async def server(standin: StandIn) -> AsyncIterator[RpcServer]:
    async with standing(standin) as server:
        yield server


@pytest.fixture
async def caller(server: RpcServer) -> AsyncIterator[OipCaller]:
    async with asking(server) as caller:
        yield caller


def outcome_count(standin: StandIn, outcome: str) -> float:
    labels = {"protocol": "oip_grpc", "outcome": outcome}
    registry = standin.metrics.registry
    return registry.get_sample_value("lite_detr_requests_total", labels) or 0.0


async def read_all(stream: object) -> list[pb.ModelStreamInferResponse]:
    return [response async for response in stream]  # type: ignore[attr-defined]


async def test_a_stream_has_responses_in_order_and_survives_bad_requests(
    caller: OipCaller, standin: StandIn
) -> None:
    requests = [
        infer_request(IMAGE, request_id="first"),
        infer_request(NOISE, request_id="second"),
        infer_request(IMAGE, request_id="third"),
        infer_request(IMAGE, request_id="fourth", model_version="7"),
        infer_request(IMAGE, request_id="fifth"),
    ]
    responses = await read_all(caller.stream(iter(requests)))
    assert [response.infer_response.id for response in responses] == [each.id for each in requests]
    assert [bool(response.error_message) for response in responses] == [
        False,
        True,
        False,
        True,
        False,
    ]
    assert "9 bytes are not an image" in responses[1].error_message
    assert "unknown version '7'" in responses[3].error_message
    assert len(responses[0].infer_response.raw_output_contents) == 5
    assert outcome_count(standin, "ok") == 1


async def test_a_stream_survives_bytes_that_are_no_message(caller: OipCaller) -> None:
    frames = [b"\xff\xff", infer_request(IMAGE).SerializeToString()]
    bad, good = await read_all(caller.raw_stream(iter(frames)))
    assert "not a message of type inference.ModelInferRequest" in bad.error_message
    assert not good.error_message


async def test_a_response_on_a_stream_is_marked_as_final_if_requested(caller: OipCaller) -> None:
    request = infer_request(IMAGE)
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    final, usual = await read_all(caller.stream(iter([request, infer_request(IMAGE)])))
    assert final.infer_response.parameters["triton_final_response"].bool_param
    assert "triton_final_response" not in usual.infer_response.parameters


async def test_an_unexpected_exception_does_not_end_a_stream(
    caller: OipCaller, standin: StandIn
) -> None:
    standin.error = RuntimeError("secret")
    responses = await read_all(caller.stream(iter([infer_request(IMAGE)] * 2)))
    assert [response.error_message for response in responses] == ["An unexpected error."] * 2


async def test_bytes_that_are_no_message_get_invalid_argument(caller: OipCaller) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller.raw(b"\xff\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert trailing(caught.value)["lite-detr-code"] == "malformed_message"


async def test_a_compressed_message_is_refused(caller: OipCaller) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller.infer(infer_request(IMAGE), compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_an_error_has_its_code_and_retry_time(caller: OipCaller, standin: StandIn) -> None:
    standin.error = Overloaded("busy", retry_after_seconds=3)
    for images in ((IMAGE,), (IMAGE, IMAGE)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await caller.infer(infer_request(*images), metadata=(("x-request-id", "mine"),))
        metadata = trailing(caught.value)
        assert metadata["lite-detr-code"] == "overloaded"
        assert metadata["retry-delay-ms"] == "3000"
        assert metadata["x-request-id"] == "mine"
    assert caught.value.details() == "IMAGE[0]: busy"


async def test_the_earlier_of_two_deadlines_applies(caller: OipCaller, standin: StandIn) -> None:
    started = time.monotonic()
    request = infer_request(IMAGE)
    request.parameters["timeout"].int64_param = 30_000_000
    await caller.infer(request, timeout=50)
    await caller.infer(request, timeout=10)
    await caller.infer(request)
    await caller.infer(infer_request(IMAGE))
    first, second, third, fourth = standin.deadlines
    assert first is not None
    assert second is not None
    assert third is not None
    assert started + 29 < first < time.monotonic() + 30
    assert second < started + 15 < third
    assert fourth is None


async def test_the_priority_is_passed_on(caller: OipCaller, standin: StandIn) -> None:
    urgent = infer_request(IMAGE, IMAGE)
    urgent.parameters["priority"].uint64_param = 1
    await caller.infer(urgent)
    await caller.infer(infer_request(IMAGE))
    await caller.infer(infer_request(IMAGE), metadata=(("x-request-priority", "high"),))
    normal = infer_request(IMAGE)
    normal.parameters["priority"].uint64_param = 2
    await caller.infer(normal, metadata=(("x-request-priority", "high"),))
    high, usual = Priority.HIGH, Priority.NORMAL
    assert standin.priorities == [high, high, usual, high, usual]


async def test_a_client_that_disconnects_cancels_all_its_images(
    caller: OipCaller, standin: StandIn
) -> None:
    standin.hold = asyncio.Event()
    call = caller.infer(infer_request(*[IMAGE] * 3))
    while len(standin.deadlines) < 3:
        await asyncio.sleep(0.01)
    call.cancel()
    while not outcome_count(standin, "cancelled"):
        await asyncio.sleep(0.01)
    assert standin.cancelled


async def test_a_request_of_many_images_leaves_slots_to_others(
    caller: OipCaller, standin: StandIn
) -> None:
    standin.hold = asyncio.Event()
    call = asyncio.ensure_future(caller.infer(infer_request(*[IMAGE] * 12)))
    while len(standin.deadlines) < 8:
        await asyncio.sleep(0.01)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(standin.deadlines) == 8
    standin.hold.set()
    assert list((await call).outputs[0].shape) == [12, 1]


async def test_a_stop_finishes_calls_in_flight_and_refuses_new_ones(
    server: RpcServer, caller: OipCaller, standin: StandIn
) -> None:
    standin.hold = asyncio.Event()
    accepted = [asyncio.ensure_future(caller.infer(infer_request(IMAGE))) for _ in range(2)]
    while len(standin.deadlines) < 2:
        await asyncio.sleep(0.01)
    stopped = asyncio.create_task(server.stop(30))
    await asyncio.sleep(0)
    async with asking(server) as late:
        assert (await late.live(pb.ServerLiveRequest())).live
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await late.infer(infer_request(IMAGE))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert trailing(caught.value)["lite-detr-code"] == "shutting_down"
    assert not stopped.done()
    standin.hold.set()
    for response in await asyncio.gather(*accepted):
        assert len(response.outputs) == 5
    await stopped


async def test_a_stop_ends_a_stream_after_the_requests_that_were_read(
    server: RpcServer, caller: OipCaller, standin: StandIn
) -> None:
    standin.hold = asyncio.Event()
    stream = caller.stream()
    await stream.write(infer_request(IMAGE, request_id="taken"))
    await standin.started.wait()
    stopped = asyncio.create_task(server.stop(30))
    await asyncio.sleep(0.3)
    standin.hold.set()
    assert (await stream.read()).infer_response.id == "taken"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        assert await stream.read() is grpc.aio.EOF
        await stream
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await stopped


async def test_a_load_continues_when_its_client_disconnects(standin: StandIn) -> None:
    async with (
        switching() as service,
        standing(standin, service.control) as server,
        asking(server) as caller,
    ):
        call = caller.load(pb.RepositoryModelLoadRequest(model_name="fake"))
        engine = await engine_of(service.models, 2)
        await _leave(call, server)
        engine.start()
        await until(lambda: service.version == "2")


async def test_an_unload_continues_when_its_client_disconnects(standin: StandIn) -> None:
    async with (
        switching() as service,
        standing(standin, service.control) as server,
        asking(server) as caller,
    ):
        with service.detector.served.in_use():
            call = caller.unload(pb.RepositoryModelUnloadRequest(model_name="fake"))
            await until(lambda: not service.detector.loaded)
            await _leave(call, server)
        await until(lambda: service.models.engines[0].ended)


async def _leave(call: grpc.aio.Call, server: RpcServer) -> None:
    """Waits until the server has ended the call, too."""
    call.cancel()
    [service] = server._extra_services
    await service.wait_idle()


async def test_one_port_serves_both_services_and_reflection_lists_them(server: RpcServer) -> None:
    async with calling(server) as detection, asking(server) as theirs:
        assert (await detection.detect(detection_pb2.DetectRequest(image=IMAGE))).detections
        assert (await theirs.infer(infer_request(IMAGE))).outputs
        check = detection.channel.unary_unary(
            f"/{HEALTH_SERVICE}/Check",
            health_pb2.HealthCheckRequest.SerializeToString,
            health_pb2.HealthCheckResponse.FromString,
        )
        response = await check(health_pb2.HealthCheckRequest(service=SERVICE))
        assert response.status == health_pb2.HealthCheckResponse.SERVING
        listed = await _reflect(detection.channel, list_services="")
        names = {service.name for service in listed.list_services_response.service}
        assert {SERVICE, "litedetr.v1.DetectionService", HEALTH_SERVICE} <= names


@pytest.mark.parametrize(
    ("symbol", "file"),
    [
        (SERVICE, "inference/grpc_service.proto"),
        ("litedetr.v1.DetectionService", "litedetr/v1/detection.proto"),
        (HEALTH_SERVICE, "grpc_health/v1/health.proto"),
    ],
)
async def test_reflection_finds_the_messages_of_each_service(
    caller: OipCaller, symbol: str, file: str
) -> None:
    for question in ({"file_containing_symbol": symbol}, {"file_by_filename": file}):
        found = await _reflect(caller.channel, **question)
        files = found.file_descriptor_response.file_descriptor_proto
        assert FileDescriptorProto.FromString(files[0]).name == file


async def test_reflection_of_an_unknown_symbol_is_not_found(caller: OipCaller) -> None:
    for question in ({"file_containing_symbol": "no.Body"}, {"file_by_filename": "no.proto"}):
        found = await _reflect(caller.channel, **question)
        assert found.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    numbers = await _reflect(
        caller.channel, all_extension_numbers_of_type="inference.ModelInferRequest"
    )
    assert not numbers.all_extension_numbers_response.extension_number


async def _reflect(
    channel: grpc.aio.Channel, **question: str
) -> reflection_pb2.ServerReflectionResponse:
    ask = channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    request = reflection_pb2.ServerReflectionRequest(**question)
    (response,) = [response async for response in ask(iter([request]))]
    return response
