"""The service's methods around a stand-in detector, over a real connection."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest

from service.errors import InferenceFailed, InvalidOptions, NotReady, Overloaded
from service.rpc.pb import detection_pb2 as pb
from tests.service.rest.standin import StandIn
from tests.service.rpc.caller import Caller, trailing

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def counted(standin: StandIn, outcome: str) -> float | None:
    labels = {"protocol": "grpc", "outcome": outcome}
    return standin.metrics.registry.get_sample_value("lite_detr_requests_total", labels)


async def test_an_image_gets_boxes_in_its_own_pixels(
    caller: Caller, image: bytes, standin: StandIn
) -> None:
    response = await caller.detect(pb.DetectRequest(image=image, request_id="mine"))
    assert (response.image.width, response.image.height) == (200, 100)
    assert [found.label for found in response.detections] == ["qr_code", "linear"]
    first = response.detections[0]
    assert (first.class_id, first.score) == (0, 0.9123)
    assert (first.box.xmin, first.box.ymin, first.box.xmax, first.box.ymax) == (20, 10, 80, 50)
    assert (response.model.name, response.model.version) == ("stand-in", "0123456789ab")
    assert response.timings_ms.forward == 20
    assert response.request_id == "mine"
    assert counted(standin, "ok") == 1


async def test_options_that_are_not_set_are_the_models_own(caller: Caller, image: bytes) -> None:
    everything = pb.DetectOptions(threshold=0)
    response = await caller.detect(pb.DetectRequest(image=image, options=everything))
    assert len(response.detections) == 3
    chosen = pb.DetectOptions(threshold=0, max_detections=1, labels=["linear", "aztec", "linear"])
    response = await caller.detect(pb.DetectRequest(image=image, options=chosen))
    assert [found.label for found in response.detections] == ["linear"]


async def test_ids_in_metadata_are_returned(caller: Caller, image: bytes) -> None:
    metadata = (
        ("x-request-id", "r-1"),
        ("traceparent", TRACEPARENT),
        ("tracestate", "vendor=1"),
    )
    call = caller.detect(pb.DetectRequest(image=image), metadata=metadata)
    assert (await call).request_id == "r-1"
    trailers = dict(await call.trailing_metadata())
    assert (trailers["x-request-id"], trailers["tracestate"]) == ("r-1", "vendor=1")
    _, trace_id, span_id, flags = str(trailers["traceparent"]).split("-")
    assert [trace_id, flags] == TRACEPARENT.split("-")[1::2]
    assert span_id not in TRACEPARENT  # a span of our own, below the client's


async def test_invalid_ids_are_replaced(caller: Caller, image: bytes) -> None:
    metadata = (("x-request-id", 'a "b"'), ("traceparent", "00-0-0-00"))
    call = caller.detect(pb.DetectRequest(image=image, request_id="\n"), metadata=metadata)
    response = await call
    trailers = dict(await call.trailing_metadata())
    assert len(response.request_id) == 32
    assert trailers["x-request-id"] == response.request_id
    assert str(trailers["traceparent"]).endswith("-02")  # an unrecorded trace


async def test_an_error_has_its_code_and_retry_time(
    caller: Caller, image: bytes, standin: StandIn
) -> None:
    standin.error = Overloaded("full", retry_after_seconds=3)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller.detect(pb.DetectRequest(image=image), metadata=(("x-request-id", "r-2"),))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.details() == "full"
    trailers = trailing(caught.value)
    assert trailers["lite-detr-code"] == "overloaded"
    assert trailers["retry-delay-ms"] == "3000"
    assert trailers["x-request-id"] == "r-2"
    assert counted(standin, "overloaded") == 1


async def test_a_permanent_error_has_no_retry_time(
    caller: Caller, image: bytes, standin: StandIn
) -> None:
    standin.error = InvalidOptions("a bad one")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller.detect(pb.DetectRequest(image=image))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "retry-delay-ms" not in trailing(caught.value)


async def test_an_unexpected_exception_gives_no_details_away(
    caller: Caller, image: bytes, standin: StandIn
) -> None:
    standin.error = ZeroDivisionError("secret")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller.detect(pb.DetectRequest(image=image))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(caught.value)
    assert trailing(caught.value)["lite-detr-code"] == "internal"
    assert counted(standin, "internal") == 1


@pytest.mark.parametrize("method", ["Detect", "DetectBatch", "GetModel"])
async def test_bytes_that_are_no_message_get_invalid_argument(caller: Caller, method: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller.raw[method](b"\xff\xff\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert trailing(caught.value)["lite-detr-code"] == "malformed_message"


async def test_the_deadline_of_a_call_is_passed_to_the_detector(
    caller: Caller, image: bytes, standin: StandIn
) -> None:
    before = time.monotonic()
    await caller.detect(pb.DetectRequest(image=image), timeout=50)
    await caller.detect(pb.DetectRequest(image=image))
    deadline, none = standin.deadlines
    assert none is None
    assert deadline is not None
    assert before < deadline < time.monotonic() + 51  # the transport rounds timeouts up


async def test_a_passed_deadline_is_counted_as_deadline_exceeded(
    caller: Caller, image: bytes, standin: StandIn
) -> None:
    standin.hold = asyncio.Event()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller.detect(pb.DetectRequest(image=image), timeout=1.0)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    while counted(standin, "deadline_exceeded") is None:
        await asyncio.sleep(0.01)
    assert standin.cancelled


async def test_a_client_that_disconnects_cancels_its_detection(
    caller: Caller, image: bytes, standin: StandIn
) -> None:
    standin.hold = asyncio.Event()
    call = caller.detect(pb.DetectRequest(image=image))
    sent = asyncio.ensure_future(call)
    await standin.started.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sent
    while counted(standin, "cancelled") is None:
        await asyncio.sleep(0.01)
    assert standin.cancelled


async def test_a_batch_has_one_outcome_per_image_in_order(caller: Caller, image: bytes) -> None:
    requests = [
        pb.DetectRequest(image=image, request_id="first"),
        pb.DetectRequest(image=image[:100]),
        pb.DetectRequest(image=b"%PDF-1.7 and more"),
        pb.DetectRequest(image=image, options=pb.DetectOptions(max_detections=1)),
    ]
    batch = pb.DetectBatchRequest(requests=requests)
    response = await caller.detect_batch(batch, metadata=(("x-request-id", "b"),))
    assert [outcome.index for outcome in response.outcomes] == [0, 1, 2, 3]
    kinds = [outcome.WhichOneof("outcome") for outcome in response.outcomes]
    assert kinds == ["response", "error", "error", "response"]
    assert [outcome.error.code for outcome in response.outcomes[1:3]] == [
        "invalid_image",
        "unsupported_image",
    ]
    assert response.outcomes[1].error.status == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert not response.outcomes[1].error.HasField("retry_delay_ms")
    assert response.outcomes[1].error.request_id == "b-2"
    assert response.outcomes[0].response.request_id == "first"
    assert len(response.outcomes[3].response.detections) == 1
    assert response.request_id == "b"


async def test_an_overloaded_image_of_a_batch_has_a_retry_time(
    caller: Caller, image: bytes, standin: StandIn
) -> None:
    standin.error = NotReady("loading")
    response = await caller.detect_batch(
        pb.DetectBatchRequest(requests=[pb.DetectRequest(image=image)])
    )
    assert response.outcomes[0].error.retry_delay_ms == 5000


async def test_an_unexpected_exception_on_one_image_gives_no_details_away(
    caller: Caller, image: bytes, standin: StandIn
) -> None:
    standin.error = ZeroDivisionError("secret")
    response = await caller.detect_batch(
        pb.DetectBatchRequest(requests=[pb.DetectRequest(image=image)] * 2)
    )
    assert [outcome.error.code for outcome in response.outcomes] == ["internal", "internal"]
    assert "secret" not in str(response)


@pytest.mark.parametrize("count", [0, 5])
async def test_a_batch_of_a_wrong_size_is_refused(caller: Caller, image: bytes, count: int) -> None:
    requests = [pb.DetectRequest(image=image)] * count
    with pytest.raises(grpc.aio.AioRpcError, match="1 to 4 requests") as caught:
        await caller.detect_batch(pb.DetectBatchRequest(requests=requests))
    assert trailing(caught.value)["lite-detr-code"] == "invalid_options"


async def test_a_failing_model_is_an_internal_error(
    caller: Caller, image: bytes, standin: StandIn
) -> None:
    standin.error = InferenceFailed("the model failed on this image")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller.detect(pb.DetectRequest(image=image))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert caught.value.details() == "the model failed on this image"


async def test_the_model_is_described(caller: Caller, standin: StandIn) -> None:
    model = await caller.get_model(pb.GetModelRequest())
    assert (model.name, model.version) == ("stand-in", "0123456789ab")
    assert (model.default_threshold, model.kernel) == (0.5, "reference")
    assert [(each.device, each.cuda_graphs) for each in model.engines] == [
        ("cuda:0", 432),
        ("cuda:1", 0),
    ]
    assert [entry.name for entry in model.classes][:2] == ["qr_code", "data_matrix"]
    assert model.input.shortest_side == standin.model.config.shortest_side
    assert (model.limits.max_images, model.limits.max_message_bytes) == (4, 1 << 20)
    assert model.limits.max_tiles == 64
    assert "JPEG" in model.limits.formats
