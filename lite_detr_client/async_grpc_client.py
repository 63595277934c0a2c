"""Asynchronous gRPC client, for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
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
from lite_detr_client.retries import Attempts, RetryPolicy, retry_async

_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response", bound=Message)


class AsyncGrpcClient:
    """Asynchronous gRPC client of one service. Tasks of one event loop may share it."""

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float | None = 30.0,
        retries: RetryPolicy = RetryPolicy(),  # noqa: B008 (frozen)
        caller: Caller = ANONYMOUS,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        """Connects at the first call. Create it in the event loop that uses it.

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
            self._channel = grpc.aio.insecure_channel(target, wire.CHANNEL_OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(target, credentials, wire.CHANNEL_OPTIONS)
        self._caller = caller
        self._timeout_s = timeout_s
        self._retries = retries

    async def detect(  # noqa: PLR0913 - options, by keyword
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
        data = await asyncio.to_thread(read_image, image)
        request = wire.detect_request(data, options, request_id)
        return wire.read_result(await self._call(wire.DETECT, request, timeout_s, request_id))

    async def detect_batch(  # noqa: PLR0913 - options, by keyword
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
        images = several(images, "detect_batch")
        data = [await asyncio.to_thread(read_image, image) for image in images]
        if not data:
            return []
        request = wire.batch_request(data, options)
        response = await self._call(wire.DETECT_BATCH, request, timeout_s, request_id)
        return wire.read_outcomes(response.outcomes)

    def detect_stream(  # noqa: PLR0913 - options, by keyword
        self,
        frames: AsyncIterable[ImageSource] | Iterable[ImageSource],
        options: DetectOptions = MODEL_DEFAULTS,
        *,
        threshold: float | None = None,
        max_detections: int | None = None,
        labels: Iterable[str] | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> AsyncIterator[DetectionResult | ServiceError]:
        """Detects objects in the frames of a video as they arrive.

        Args:
            frames: iterated as fast as the service accepts frames; a synchronous iterable in a
                thread, so that it may wait for a camera.
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
        if not isinstance(frames, AsyncIterable):
            frames = _in_thread(several(frames, "detect_stream"))
        metadata = wire.call_metadata(self._caller, request_id)
        return self._stream(frames, options, timeout_s, metadata)

    async def _stream(
        self,
        frames: AsyncIterable[ImageSource],
        options: DetectOptions,
        timeout_s: float | None,
        metadata: tuple[tuple[str, str | bytes], ...],
    ) -> AsyncIterator[DetectionResult | ServiceError]:
        frame_errors: list[Exception] = []

        async def requests() -> AsyncIterator[pb.DetectRequest]:
            try:
                async for frame in frames:
                    data = await asyncio.to_thread(read_image, frame)
                    yield wire.detect_request(data, options)
            except Exception as error:  # raised in a task of gRPC, which would hide it
                frame_errors.append(error)

        method = wire.DETECT_STREAM
        open_stream = self._channel.stream_stream(
            method.path, method.request.SerializeToString, method.response.FromString
        )
        stream: Any = open_stream(requests(), timeout=timeout_s, metadata=metadata)
        try:
            async for outcome in stream:
                yield wire.read_outcome(outcome)
        except grpc.aio.AioRpcError as error:
            raise wire.rpc_error(error) from error
        finally:
            stream.cancel()
        if frame_errors:
            raise frame_errors[0]

    async def model(self, *, timeout_s: float | None = None) -> Model:
        """Returns the served model: name, classes, limits and engines.

        Raises:
            ServiceError: one of its subclasses, by cause.
        """
        request = wire.GET_MODEL.request()
        return wire.read_model(await self._call(wire.GET_MODEL, request, timeout_s, None))

    async def ready(self, *, timeout_s: float | None = None) -> bool:
        """Whether the service accepts requests. Not retried; False if it cannot be reached."""
        check: Any = self._channel.unary_unary(wire.HEALTH_CHECK)
        remaining_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            return bool(
                await check(wire.HEALTH_REQUEST, timeout=remaining_s) == wire.HEALTH_SERVING
            )
        except grpc.aio.AioRpcError:
            return False

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        """Returns the client."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the client."""
        await self.close()

    async def _call(
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

        async def attempt(remaining_s: float | None) -> _Response:
            try:
                return await send(request, timeout=remaining_s, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                raise wire.rpc_error(error) from error

        attempts = Attempts(self._retries, self._timeout_s if timeout_s is None else timeout_s)
        return await retry_async(attempts, attempt)


async def _in_thread(frames: Iterable[ImageSource]) -> AsyncIterator[ImageSource]:
    """Iterates a synchronous iterable without blocking the event loop."""
    iterator, end = iter(frames), object()
    while (frame := await asyncio.to_thread(next, iterator, end)) is not end:
        yield frame  # type: ignore[misc]  # not `end`
