"""gRPC messages and errors, shared by both gRPC clients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.message import Message

from lite_detr_client.errors import (
    ConnectionFailed,
    Failure,
    ImageTooLarge,
    ServiceError,
    class_of_status,
    service_error,
)
from lite_detr_client.inputs import Caller, DetectOptions, checked_request_id
from lite_detr_client.pb import detection_pb2 as pb
from lite_detr_client.results import Box, Detection, DetectionResult, Engine, Model, Timings

_REQUEST_ID_KEY = "x-request-id"
_CODE_KEY = "lite-detr-code"
_RETRY_DELAY_KEY = "retry-delay-ms"

# Set by gRPC itself if the connection fails; the service sends a code with them.
_CONNECTION_FAILED = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})
_TOO_LARGE = "larger than max"  # part of gRPC's error text for a message above the server's limit
_STATUS_NAMES = {status.value[0]: status.name for status in grpc.StatusCode}

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", -1),  # the service has its own limits
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 60_000),  # detects a lost connection during a call
    ("grpc.keepalive_timeout_ms", 20_000),
    # Reconnect soon after a restart of the service.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)

HEALTH_CHECK = "/grpc.health.v1.Health/Check"
HEALTH_REQUEST = b""  # a HealthCheckRequest for the server as a whole
HEALTH_SERVING = b"\x08\x01"  # HealthCheckResponse{status: SERVING}

_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response", bound=Message)


@dataclass(frozen=True)
class Method(Generic[_Request, _Response]):
    """A gRPC method of the service with its message types."""

    name: str
    request: type[_Request]
    response: type[_Response]

    @property
    def path(self) -> str:
        """Full name of the method, as sent to the server."""
        return f"/litedetr.v1.DetectionService/{self.name}"


DETECT = Method("Detect", pb.DetectRequest, pb.DetectResponse)
DETECT_BATCH = Method("DetectBatch", pb.DetectBatchRequest, pb.DetectBatchResponse)
DETECT_STREAM = Method("DetectStream", pb.DetectRequest, pb.DetectOutcome)
GET_MODEL = Method("GetModel", pb.GetModelRequest, pb.GetModelResponse)


def detect_request(
    image: bytes, options: DetectOptions, request_id: str | None = None
) -> pb.DetectRequest:
    """Returns the request message for one image."""
    return pb.DetectRequest(
        image=image,
        options=pb.DetectOptions(
            threshold=options.threshold,
            max_detections=options.max_detections,
            labels=options.labels or (),
            tile=options.tile,
            overlap=options.overlap,
        ),
        request_id=checked_request_id(request_id),
    )


def batch_request(images: Iterable[bytes], options: DetectOptions) -> pb.DetectBatchRequest:
    """Returns the request message for several images with the same options."""
    return pb.DetectBatchRequest(requests=[detect_request(image, options) for image in images])


def call_metadata(caller: Caller, request_id: str | None) -> tuple[tuple[str, str | bytes], ...]:
    """Returns the metadata of a call.

    Raises:
        TypeError, ValueError: for a request ID that cannot be sent.
    """
    metadata = {name.lower(): value for name, value in caller.headers().items()}
    request_id = checked_request_id(request_id)
    if request_id is not None:
        metadata[_REQUEST_ID_KEY] = request_id
    return tuple(metadata.items())


def read_result(response: pb.DetectResponse) -> DetectionResult:
    """Reads the result of one image."""
    timings = response.timings_ms
    return DetectionResult(
        model_name=response.model.name,
        model_version=response.model.version,
        width=response.image.width,
        height=response.image.height,
        detections=tuple(_detection(item) for item in response.detections),
        timings_ms=Timings(
            read=timings.read,
            decode=timings.decode,
            queue=timings.queue,
            assemble=timings.assemble,
            copy=timings.copy,
            forward=timings.forward,
            postprocess=timings.postprocess,
            total=timings.total,
        ),
        request_id=response.request_id,
    )


def read_outcome(outcome: pb.DetectOutcome) -> DetectionResult | ServiceError:
    """Reads the result or the error of one image."""
    if outcome.HasField("response"):
        return read_result(outcome.response)
    error = outcome.error
    return service_error(
        Failure(
            code=error.code,
            detail=error.detail,
            status=_STATUS_NAMES.get(error.status, str(error.status)),
            request_id=error.request_id,
            retry_after_s=error.retry_delay_ms / 1000 if error.HasField("retry_delay_ms") else None,
        )
    )


def read_outcomes(outcomes: Sequence[pb.DetectOutcome]) -> list[DetectionResult | ServiceError]:
    """Reads one result or error per image, in order."""
    return [read_outcome(outcome) for outcome in outcomes]


def read_model(response: pb.GetModelResponse) -> Model:
    """Reads the description of the served model."""
    limits = response.limits
    return Model(
        name=response.name,
        version=response.version,
        description=response.description,
        variant=response.variant,
        kernel=response.kernel,
        default_threshold=response.default_threshold,
        classes={item.id: item.name for item in response.classes},
        max_request_bytes=limits.max_message_bytes,
        max_image_pixels=limits.max_image_pixels,
        max_images=limits.max_images,
        max_detections=limits.max_detections,
        formats=tuple(limits.formats),
        engines=tuple(
            Engine(item.device, item.kernel, item.precision, item.cuda_graphs)
            for item in response.engines
        ),
        max_tiles=limits.max_tiles if limits.HasField("max_tiles") else None,
    )


def rpc_error(error: Any) -> ServiceError:
    """Converts an error of gRPC.

    Args:
        error: a grpc.RpcError or grpc.aio.AioRpcError; both have code(), details() and
            trailing_metadata().
    """
    status, detail = error.code(), error.details() or ""
    metadata = {
        key: value for key, value in error.trailing_metadata() or () if isinstance(value, str)
    }
    code = metadata.get(_CODE_KEY) or _code_of_grpc(status, detail)
    delay_ms = metadata.get(_RETRY_DELAY_KEY, "")
    return service_error(
        Failure(
            code=code,
            detail=detail,
            status=status.name,
            request_id=metadata.get(_REQUEST_ID_KEY),
            retry_after_s=int(delay_ms) / 1000 if delay_ms.isdecimal() else None,
        )
    )


def _code_of_grpc(status: grpc.StatusCode, detail: str) -> str:
    """Returns a code for an error that gRPC itself raised."""
    if _TOO_LARGE in detail:
        return ImageTooLarge.code_of_class
    kind = ConnectionFailed if status in _CONNECTION_FAILED else class_of_status(status.name)
    return kind.code_of_class or status.name.lower()


def _detection(item: pb.Detection) -> Detection:
    box = item.box
    return Detection(
        item.label, item.class_id, item.score, Box(box.xmin, box.ymin, box.xmax, box.ymax)
    )
