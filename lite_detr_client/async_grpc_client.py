"""The gRPC client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from google.protobuf.message import Message

from lite_detr_client import grpc_wire as wire
from lite_detr_client.errors import ServiceError
from lite_detr_client.inputs import (
    ANYBODY,
    MODEL_DEFAULTS,
    Caller,
    DetectOptions,
    ImageSource,
    read_image,
)
from lite_detr_client.pb import detection_pb2 as pb
from lite_detr_client.results import Answer, Model
from lite_detr_client.retries import Attempts, RetryPolicy, retry_async

_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response", bound=Message)


class AsyncGrpcClient:
    """Keeps a channel to one service; tasks of one event loop may share it."""

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float | None = 30.0,
        retries: RetryPolicy = RetryPolicy(),  # noqa: B008 (frozen)
        caller: Caller = ANYBODY,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        """Connects at the first call; to be made in the event loop that will use it.

        Args:
            target: of the service, such as localhost:8001.
            timeout_s: for each call that names no other; None: the service's own alone.
            retries: how often and when a call is tried again.
            caller: API key and priority.
            credentials: for TLS; None: plain text.
        """
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(target, wire.CHANNEL_OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(target, credentials, wire.CHANNEL_OPTIONS)
        self._caller = caller
        self._timeout_s = timeout_s
        self._retries = retries

    async def detect(
        self,
        image: ImageSource,
        options: DetectOptions = MODEL_DEFAULTS,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> Answer:
        """Detects in one image.

        Args:
            image: the bytes of an image file, or its path.
            options: what is asked for.
            timeout_s: for the whole call, retries included; None: the client's own.
            request_id: for the service's logs.

        Raises:
            ServiceError: of the class that says what went wrong.
            OSError: for a file that cannot be read.
        """
        data = await asyncio.to_thread(read_image, image)
        request = wire.detect_request(data, options, request_id)
        return wire.read_answer(await self._call(wire.DETECT, request, timeout_s, request_id))

    async def detect_batch(
        self,
        images: Iterable[ImageSource],
        options: DetectOptions = MODEL_DEFAULTS,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> list[Answer | ServiceError]:
        """Detects in several images; what spoils one leaves its neighbours be.

        Returns:
            One outcome an image, in their order. Failed images are not tried again.

        Raises:
            ServiceError: where the call as a whole failed.
            OSError: for a file that cannot be read.
        """
        data = [await asyncio.to_thread(read_image, image) for image in images]
        if not data:
            return []
        request = wire.batch_request(data, options)
        response = await self._call(wire.DETECT_BATCH, request, timeout_s, request_id)
        return wire.read_outcomes(response.outcomes)

    async def detect_stream(
        self,
        frames: AsyncIterable[ImageSource],
        options: DetectOptions = MODEL_DEFAULTS,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> AsyncIterator[Answer | ServiceError]:
        """Detects in the frames of a video as they come.

        Args:
            frames: asked for the next one whenever the service takes it.
            options: what is asked for, of each.
            timeout_s: for the whole stream; None: no bound.
            request_id: of the stream.

        Yields:
            One outcome a frame, in their order; a frame that fails does not end the stream.

        Raises:
            ServiceError: where the stream as a whole failed; it is not tried again.
            Exception: what `frames` raised, when the frames before it are answered.
        """
        failures: list[Exception] = []

        async def requests() -> AsyncIterator[pb.DetectRequest]:
            try:
                async for frame in frames:
                    data = await asyncio.to_thread(read_image, frame)
                    yield wire.detect_request(data, options)
            except Exception as error:  # in gRPC's task, where nobody would see it
                failures.append(error)

        method = wire.DETECT_STREAM
        open_stream = self._channel.stream_stream(
            method.path, method.request.SerializeToString, method.response.FromString
        )
        metadata = wire.call_metadata(self._caller, request_id)
        stream: Any = open_stream(requests(), timeout=timeout_s, metadata=metadata)
        try:
            async for outcome in stream:
                yield wire.read_outcome(outcome)
        except grpc.aio.AioRpcError as error:
            raise wire.rpc_error(error) from error
        finally:
            stream.cancel()
        if failures:
            raise failures[0]

    async def model(self, *, timeout_s: float | None = None) -> Model:
        """Which model is served.

        Raises:
            ServiceError: where that cannot be told.
        """
        request = wire.GET_MODEL.request()
        return wire.read_model(await self._call(wire.GET_MODEL, request, timeout_s, None))

    async def ready(self, *, timeout_s: float | None = None) -> bool:
        """Whether the service takes requests; asked once, an unreachable one is not ready."""
        check: Any = self._channel.unary_unary(wire.HEALTH_CHECK)
        left_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            return bool(await check(wire.HEALTH_REQUEST, timeout=left_s) == wire.HEALTH_SERVING)
        except grpc.aio.AioRpcError:
            return False

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        """The client itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes it."""
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

        async def attempt(left_s: float | None) -> _Response:
            try:
                return await send(request, timeout=left_s, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                raise wire.rpc_error(error) from error

        attempts = Attempts(self._retries, self._timeout_s if timeout_s is None else timeout_s)
        return await retry_async(attempts, attempt)
