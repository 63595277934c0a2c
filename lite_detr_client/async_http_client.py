"""Asynchronous HTTP client, for asyncio."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

import httpx

from lite_detr_client import http_wire
from lite_detr_client.addresses import http_url
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
from lite_detr_client.results import DetectionResult, Model
from lite_detr_client.retries import Attempts, RetryPolicy, retry_async

_Result = TypeVar("_Result")


class AsyncHttpClient:
    """Asynchronous HTTP client of one service. Tasks of one event loop may share it."""

    def __init__(  # noqa: PLR0913 - options, by keyword
        self,
        url: str,
        *,
        timeout_s: float | None = 30.0,
        retries: RetryPolicy = RetryPolicy(),  # noqa: B008 (frozen)
        caller: Caller = ANONYMOUS,
        tls: ssl.SSLContext | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Connects at the first call.

        Args:
            url: base URL of the service, such as http://localhost:8000, or host:port.
            timeout_s: default timeout of a call, retries included; None: only the service's limit.
            retries: how often and when a failed call is retried.
            caller: API key and priority, sent with every call.
            tls: SSL context for https, for a private CA or a client certificate.
            transport: httpx transport, for tests and special networks.

        Raises:
            ValueError: if `url` is not such an address.
        """
        self._http = httpx.AsyncClient(
            base_url=http_url(url, tls=tls is not None),
            headers=caller.headers(),
            verify=tls or True,
            transport=transport,
        )
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
        call = http_wire.detect_call(data, options, request_id)
        return await self._call(call, http_wire.read_detect, timeout_s)

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
        call = http_wire.batch_call(data, options, request_id)
        if not call.files:
            return []
        read = partial(http_wire.read_batch, count=len(call.files))
        return await self._call(call, read, timeout_s)

    async def model(self, *, timeout_s: float | None = None) -> Model:
        """Returns the served model: name, classes, limits and engines.

        Raises:
            ServiceError: one of its subclasses, by cause.
        """
        return await self._call(http_wire.MODEL_CALL, http_wire.read_model, timeout_s)

    async def ready(self, *, timeout_s: float | None = None) -> bool:
        """Whether the service accepts requests. Not retried; False if it cannot be reached."""
        try:
            remaining_s = self._timeout_s if timeout_s is None else timeout_s
            return await self._send(http_wire.READY_CALL, http_wire.read_ready, remaining_s)
        except ServiceError:
            return False

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

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
        call: http_wire.HttpCall,
        read: Callable[[httpx.Response], _Result],
        timeout_s: float | None,
    ) -> _Result:
        attempts = Attempts(self._retries, self._timeout_s if timeout_s is None else timeout_s)
        return await retry_async(attempts, lambda remaining_s: self._send(call, read, remaining_s))

    async def _send(
        self,
        call: http_wire.HttpCall,
        read: Callable[[httpx.Response], _Result],
        remaining_s: float | None,
    ) -> _Result:
        try:
            # httpx limits each phase of a request; this limits the whole request.
            async with asyncio.timeout(http_wire.response_timeout_s(remaining_s)):
                response = await self._http.send(call.build(self._http, remaining_s))
        except (httpx.HTTPError, TimeoutError) as error:
            raise http_wire.transport_error(error) from http_wire.shown_cause(error)
        return read(response)
