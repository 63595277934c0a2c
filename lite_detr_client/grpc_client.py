"""Synchronous gRPC client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from google.protobuf.message import Message

from lite_detr_client import grpc_wire as wire
from lite_detr_client.addresses import grpc_target
from lite_detr_client.errors import ServiceError
from lite_detr_client.inputs import (
    ANONYMOUS,
    MODEL_DEFAULTS,
    Caller,
    DetectOptions,
    ImageSource,
    merge_options,
    read_image,
    several,
)
from lite_detr_client.pb import detection_pb2 as pb
from lite_detr_client.results import DetectionResult, Model
from lite_detr_client.retries import Attempts, RetryPolicy, retry

_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response", bound=Message)


class GrpcClient:
    """Synchronous gRPC client of one service. It may be shared between threads."""

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float | None = 30.0,
        retries: RetryPolicy = RetryPolicy(),  # noqa: B008 (frozen)
        caller: Caller = ANONYMOUS,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        """Connects at the first call.

        Args:
            target: address of the service: localhost:8001, http://localhost:8001, or with TLS
                https://host:443.
            timeout_s: default timeout of a call, retries included; None: only the service's limit.
            retries: how often and when a failed call is retried.
            caller: API key and priority, sent with every call.
            credentials: TLS credentials; None: no TLS, unless `target` begins with https.

        Raises:
            ValueError: if `target` is not such an address.
        """
        target, needs_tls = grpc_target(target)
        if needs_tls and credentials is None:
            credentials = grpc.ssl_channel_credentials()
        if credentials is None:
            self._channel = grpc.insecure_channel(target, wire.CHANNEL_OPTIONS)
        else:
            self._channel = grpc.secure_channel(target, credentials, wire.CHANNEL_OPTIONS)
        self._caller = caller
        self._timeout_s = timeout_s
        self._retries = retries

    def detect(  # noqa: PLR0913 - options, by keyword
        self,
        image: ImageSource,
        options: DetectOptions = MODEL_DEFAULTS,
        *,
        threshold: float | None = None,
        max_detections: int | None = None,
        labels: Iterable[str] | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> DetectionResult:
        """Detects objects in one image.

        Args:
            image: bytes of an image file, its path, an open file, or an image of Pillow.
            options: threshold, maximum number of detections and labels.
            threshold: as in `options`, over which it takes precedence.
            max_detections: likewise.
            labels: likewise.
            timeout_s: timeout of the call, retries included; None: the client's default.
            request_id: sent to the service, which logs it; None: the service generates one.

        Raises:
            ServiceError: one of its subclasses, by cause.
            OSError: if the file cannot be read.
            TypeError, ValueError: for an image or option of another type, and a `request_id` that
                cannot be sent.
        """
        options = merge_options(options, threshold, max_detections, labels)
        request = wire.detect_request(read_image(image), options, request_id)
        return wire.read_result(self._call(wire.DETECT, request, timeout_s, request_id))

    def detect_batch(  # noqa: PLR0913 - options, by keyword
        self,
        images: Iterable[ImageSource],
        options: DetectOptions = MODEL_DEFAULTS,
        *,
        threshold: float | None = None,
        max_detections: int | None = None,
        labels: Iterable[str] | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> list[DetectionResult | ServiceError]:
        """Detects objects in several images; one failure does not affect the others.

        Args:
            images: as for `detect`.
            options: threshold, maximum number of detections and labels, for each image.
            threshold: as in `options`, over which it takes precedence.
            max_detections: likewise.
            labels: likewise.
            timeout_s: timeout of the call, retries included; None: the client's default.
            request_id: sent to the service, which logs it; None: the service generates one.

        Returns:
            One result or error per image, in order. Failed images are not retried.

        Raises:
            ServiceError: if the whole call failed.
            OSError: if the file cannot be read.
            TypeError, ValueError: for images or options of another type, and a `request_id` that
                cannot be sent.
        """
        options = merge_options(options, threshold, max_detections, labels)
        request = wire.batch_request(map(read_image, several(images, "detect_batch")), options)
        if not request.requests:
            return []
        response = self._call(wire.DETECT_BATCH, request, timeout_s, request_id)
        return wire.read_outcomes(response.outcomes)

    def detect_stream(  # noqa: PLR0913 - options, by keyword
        self,
        frames: Iterable[ImageSource],
        options: DetectOptions = MODEL_DEFAULTS,
        *,
        threshold: float | None = None,
        max_detections: int | None = None,
        labels: Iterable[str] | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> Iterator[DetectionResult | ServiceError]:
        """Detects objects in the frames of a video as they arrive.

        Args:
            frames: iterated in a thread of gRPC, as fast as the service accepts frames.
            options: threshold, maximum number of detections and labels, for each frame.
            threshold: as in `options`, over which it takes precedence.
            max_detections: likewise.
            labels: likewise.
            timeout_s: timeout of the whole stream; None: no limit.
            request_id: sent to the service, which logs it.

        Yields:
            One result or error per frame, in order. A failed frame does not end the stream.

        Raises:
            ServiceError: if the whole stream failed; streams are not retried.
            TypeError: if `frames` is a single image, or an option has another type.
            ValueError: if `request_id` cannot be sent.
            Exception: raised by `frames`, after the results of the frames before it.
        """
        options = merge_options(options, threshold, max_detections, labels)
        frames = several(frames, "detect_stream")
        metadata = wire.call_metadata(self._caller, request_id)
        return self._stream(frames, options, timeout_s, metadata)

    def _stream(
        self,
        frames: Iterable[ImageSource],
        options: DetectOptions,
        timeout_s: float | None,
        metadata: tuple[tuple[str, str | bytes], ...],
    ) -> Iterator[DetectionResult | ServiceError]:
        frame_errors: list[Exception] = []

        def requests() -> Iterator[pb.DetectRequest]:
            try:
                for frame in frames:
                    yield wire.detect_request(read_image(frame), options)
            except Exception as error:  # raised in a thread of gRPC, which would hide it
                frame_errors.append(error)

        method = wire.DETECT_STREAM
        open_stream = self._channel.stream_stream(
            method.path, method.request.SerializeToString, method.response.FromString
        )
        stream: Any = open_stream(requests(), timeout=timeout_s, metadata=metadata)
        try:
            for outcome in stream:
                yield wire.read_outcome(outcome)
        except grpc.RpcError as error:
            raise wire.rpc_error(error) from error
        finally:
            stream.cancel()
        if frame_errors:
            raise frame_errors[0]

    def model(self, *, timeout_s: float | None = None) -> Model:
        """Returns the served model: name, classes, limits and engines.

        Raises:
            ServiceError: one of its subclasses, by cause.
        """
        request = wire.GET_MODEL.request()
        return wire.read_model(self._call(wire.GET_MODEL, request, timeout_s, None))

    def ready(self, *, timeout_s: float | None = None) -> bool:
        """Whether the service accepts requests. Not retried; False if it cannot be reached."""
        check: Any = self._channel.unary_unary(wire.HEALTH_CHECK)
        remaining_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            return bool(check(wire.HEALTH_REQUEST, timeout=remaining_s) == wire.HEALTH_SERVING)
        except grpc.RpcError:
            return False

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()

    def __enter__(self) -> Self:
        """Returns the client."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the client."""
        self.close()

    def _call(
        self,
        method: wire.Method[_Request, _Response],
        request: _Request,
        timeout_s: float | None,
        request_id: str | None,
    ) -> _Response:
        send = self._channel.unary_unary(
            method.path, method.request.SerializeToString, method.response.FromString
        )
        metadata = wire.call_metadata(self._caller, request_id)

        def attempt(remaining_s: float | None) -> _Response:
            try:
                return send(request, timeout=remaining_s, metadata=metadata)
            except grpc.RpcError as error:
                raise wire.rpc_error(error) from error

        attempts = Attempts(self._retries, self._timeout_s if timeout_s is None else timeout_s)
        return retry(attempts, attempt)
