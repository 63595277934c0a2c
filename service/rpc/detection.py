"""litedetr.v1.DetectionService: parses messages, calls the Detector, encodes the results.

Requests arrive as bytes and are parsed here, so that a malformed one gets INVALID_ARGUMENT; gRPC's
own parsing would report it as INTERNAL.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import AbstractContextManager
from typing import TypeVar

import structlog

from service.core.detector import Detector
from service.core.selection import parse_priority
from service.errors import DetectionError, InvalidOptions
from service.observability.request_log import RequestLog
from service.observability.trace_context import valid_request_id
from service.rpc.messages import (
    error_message,
    model_message,
    read_options,
    result_message,
)
from service.rpc.options import RpcOptions
from service.rpc.pb import detection_pb2 as pb
from service.transport.grpc_call import Call, CallsInFlight, Context, open_call, parse_message
from service.transport.grpc_status import MalformedMessage, Refusal, refusal_of

_PROTOCOL = "grpc"  # in metrics
_SERVICE: str = pb.DESCRIPTOR.services_by_name["DetectionService"].full_name

_Response = TypeVar("_Response")

_log = structlog.get_logger(__name__)


class DetectionServicer:
    """Handles the four methods of the service."""

    def __init__(self, detector: Detector, options: RpcOptions, request_log: RequestLog) -> None:
        """Uses a detector that the caller starts and stops."""
        self._detector = detector
        self._request_log = request_log
        self._options = options
        self._calls = CallsInFlight()

    async def detect(self, data: bytes, context: Context) -> pb.DetectResponse:
        """Handles Detect."""
        with self._open("Detect", context) as call:
            return await self._run(call, context, self._detect_one(data, call))

    async def detect_batch(self, data: bytes, context: Context) -> pb.DetectBatchResponse:
        """Handles DetectBatch."""
        with self._open("DetectBatch", context) as call:
            return await self._run(call, context, self._detect_all(data, call))

    async def detect_stream(self, frames: AsyncIterator[bytes], context: Context) -> None:
        """Handles DetectStream."""
        with self._open("DetectStream", context) as call:
            await self._run(call, context, self._detect_frames(frames, call, context))

    async def get_model(self, data: bytes, context: Context) -> pb.GetModelResponse:
        """Handles GetModel."""
        with self._open("GetModel", context) as call:
            return await self._run(call, context, self._describe(data))

    @property
    def open_calls(self) -> int:
        """The number of calls in flight."""
        return self._calls.open_calls

    def begin_drain(self) -> None:
        """Refuses new images, and ends streams after the frames that were read."""
        self._calls.begin_drain()

    async def wait_idle(self) -> None:
        """Returns when no call is in flight."""
        await self._calls.wait_idle()

    def _open(self, method: str, context: Context) -> AbstractContextManager[Call]:
        return open_call(context, self._request_log, f"{_SERVICE}/{method}")

    async def _run(self, call: Call, context: Context, work: Awaitable[_Response]) -> _Response:
        """Awaits the work of a call; an exception becomes its status."""

        def refuse(error: Exception) -> Refusal:
            _log_unexpected(error, call.request_id)
            return refusal_of(error)

        def count(outcome: str) -> None:
            self._detector.metrics.count_request(_PROTOCOL, outcome)

        return await self._calls.run(call, context, work, refuse, count)

    async def _detect_one(self, data: bytes, call: Call) -> pb.DetectResponse:
        self._calls.refuse_if_draining()
        request = parse_message(pb.DetectRequest, data)
        request_id = valid_request_id(request.request_id) or call.request_id
        call.scope.request_id = request_id  # for the log
        return await self._detect(request, request_id, call)

    async def _detect_all(self, data: bytes, call: Call) -> pb.DetectBatchResponse:
        self._calls.refuse_if_draining()
        requests = parse_message(pb.DetectBatchRequest, data).requests
        maximum = self._options.max_images
        if not 1 <= len(requests) <= maximum:
            raise InvalidOptions(f"a batch holds 1 to {maximum} requests, not {len(requests)}")
        in_flight = asyncio.Semaphore(self._options.images_in_flight)

        async def one(index: int, request: pb.DetectRequest) -> pb.DetectOutcome:
            async with in_flight:
                return await self._outcome(index, request, call)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(*item)) for item in enumerate(requests)]
        return pb.DetectBatchResponse(
            outcomes=[task.result() for task in tasks], request_id=call.request_id
        )

    async def _detect_frames(
        self, frames: AsyncIterator[bytes], call: Call, context: Context
    ) -> None:
        """Detects in each frame of a stream."""

        async def respond(index: int, data: bytes) -> pb.DetectOutcome:
            try:
                request = parse_message(pb.DetectRequest, data)
            except MalformedMessage as error:
                return _failure(index, error, f"{call.request_id}-{index + 1}")
            return await self._outcome(index, request, call)

        in_flight = self._options.images_in_flight
        await self._calls.run_stream(frames, call, context, respond, in_flight)

    async def _describe(self, data: bytes) -> pb.GetModelResponse:
        parse_message(pb.GetModelRequest, data)
        return model_message(self._detector, self._options)

    async def _outcome(self, index: int, request: pb.DetectRequest, call: Call) -> pb.DetectOutcome:
        """One image of several; its failure does not affect the others."""
        request_id = valid_request_id(request.request_id) or f"{call.request_id}-{index + 1}"
        try:
            response = await self._detect(request, request_id, call)
        except Exception as error:
            return _failure(index, error, request_id)
        return pb.DetectOutcome(index=index, response=response)

    async def _detect(
        self, request: pb.DetectRequest, request_id: str, call: Call
    ) -> pb.DetectResponse:
        result = await self._detector.detect(
            request.image,
            read_options(request),
            request_id=request_id,
            deadline=call.deadline,
            priority=parse_priority(call.priority),
        )
        encode_started = time.monotonic()
        response = result_message(result)
        self._detector.metrics.observe_stage("encode", time.monotonic() - encode_started)
        return response


def _failure(index: int, error: Exception, request_id: str) -> pb.DetectOutcome:
    _log_unexpected(error, request_id)
    return pb.DetectOutcome(index=index, error=error_message(refusal_of(error), request_id))


def _log_unexpected(error: Exception, request_id: str) -> None:
    """Logs an unexpected exception with its traceback; the client gets no details."""
    if not isinstance(error, DetectionError | MalformedMessage):
        _log.error("unexpected error", request_id=request_id, exc_info=error)
