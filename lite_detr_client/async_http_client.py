"""The HTTP client for asyncio."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

import httpx

from lite_detr_client import http_wire
from lite_detr_client.errors import ServiceError
from lite_detr_client.inputs import (
    ANYBODY,
    MODEL_DEFAULTS,
    Caller,
    DetectOptions,
    ImageSource,
    read_image,
)
from lite_detr_client.results import Answer, Model
from lite_detr_client.retries import Attempts, RetryPolicy, retry_async

_Result = TypeVar("_Result")


class AsyncHttpClient:
    """Keeps connections to one service; tasks of one event loop may share it."""

    def __init__(  # noqa: PLR0913 - options, by keyword
        self,
        url: str,
        *,
        timeout_s: float | None = 30.0,
        retries: RetryPolicy = RetryPolicy(),  # noqa: B008 (frozen)
        caller: Caller = ANYBODY,
        tls: ssl.SSLContext | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Connects at the first call.

        Args:
            url: of the service, such as http://localhost:8000.
            timeout_s: for each call that names no other; None: the service's own alone.
            retries: how often and when a call is tried again.
            caller: API key and priority.
            tls: for https with an authority or a client certificate of your own.
            transport: of httpx, for tests and special networks.
        """
        self._http = httpx.AsyncClient(
            base_url=url, headers=caller.headers(), verify=tls or True, transport=transport
        )
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
        call = http_wire.detect_call(data, options, request_id)
        return await self._call(call, http_wire.read_detect, timeout_s)

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
        call = http_wire.batch_call(data, options, request_id)
        if not call.files:
            return []
        read = partial(http_wire.read_batch, count=len(call.files))
        return await self._call(call, read, timeout_s)

    async def model(self, *, timeout_s: float | None = None) -> Model:
        """Which model is served.

        Raises:
            ServiceError: where that cannot be told.
        """
        return await self._call(http_wire.MODEL_CALL, http_wire.read_model, timeout_s)

    async def ready(self, *, timeout_s: float | None = None) -> bool:
        """Whether the service takes requests; asked once, an unreachable one is not ready."""
        try:
            left_s = self._timeout_s if timeout_s is None else timeout_s
            return await self._send(http_wire.READY_CALL, http_wire.read_ready, left_s)
        except ServiceError:
            return False

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

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
        call: http_wire.HttpCall,
        read: Callable[[httpx.Response], _Result],
        timeout_s: float | None,
    ) -> _Result:
        attempts = Attempts(self._retries, self._timeout_s if timeout_s is None else timeout_s)
        return await retry_async(attempts, lambda left_s: self._send(call, read, left_s))

    async def _send(
        self,
        call: http_wire.HttpCall,
        read: Callable[[httpx.Response], _Result],
        left_s: float | None,
    ) -> _Result:
        try:
            # httpx bounds each phase of a request; this bounds them together.
            async with asyncio.timeout(http_wire.patience_s(left_s)):
                response = await self._http.send(call.build(self._http, left_s))
        except (httpx.HTTPError, TimeoutError) as error:
            raise http_wire.transport_error(error) from error
        return read(response)
