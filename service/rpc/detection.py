"""litedetr.v1.DetectionService: parses messages, calls the Detector, encodes what it found.

Requests arrive as bytes and are parsed here, so that a broken one is refused like any other bad
input instead of passing for a fault of the server.
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

_Answer = TypeVar("_Answer")

_log = structlog.get_logger(__name__)


class DetectionServicer:
    """Handles the service's four methods."""

    def __init__(self, detector: Detector, options: RpcOptions, request_log: RequestLog) -> None:
        """Shares a detector; its start and stop are not this adapter's business."""
        self._detector = detector
        self._request_log = request_log
        self._options = options
        self._calls = CallsInFlight()

    async def detect(self, data: bytes, context: Context) -> pb.DetectResponse:
        """Answers Detect."""
        with self._open("Detect", context) as call:
            return await self._answer(call, context, self._detect_alone(data, call))

    async def detect_batch(self, data: bytes, context: Context) -> pb.DetectBatchResponse:
        """Answers DetectBatch."""
        with self._open("DetectBatch", context) as call:
            return await self._answer(call, context, self._detect_all(data, call))

    async def detect_stream(self, frames: AsyncIterator[bytes], context: Context) -> None:
        """Answers DetectStream."""
        with self._open("DetectStream", context) as call:
            await self._answer(call, context, self._detect_frames(frames, call, context))

    async def get_model(self, data: bytes, context: Context) -> pb.GetModelResponse:
        """Answers GetModel."""
        with self._open("GetModel", context) as call:
            return await self._answer(call, context, self._describe(data))

    def begin_drain(self) -> None:
        """Refuses new images, and ends streams after the frames that were read."""
        self._calls.begin_drain()

    async def wait_idle(self) -> None:
        """Returns when no call is under way."""
        await self._calls.wait_idle()

    def _open(self, method: str, context: Context) -> AbstractContextManager[Call]:
        return open_call(context, self._request_log, f"{_SERVICE}/{method}")

    async def _answer(self, call: Call, context: Context, work: Awaitable[_Answer]) -> _Answer:
        """Awaits the work for a call; tells its failure as a status and counts how it ended."""

        def refuse(error: Exception) -> Refusal:
            _log_unexpected(error, call.request_id)
            return refusal_of(error)

        def note(outcome: str) -> None:
            self._detector.metrics.count_request(_PROTOCOL, outcome)

        return await self._calls.answer(call, context, work, refuse, note)

    async def _detect_alone(self, data: bytes, call: Call) -> pb.DetectResponse:
        self._calls.refuse_if_draining()
        request = parse_message(pb.DetectRequest, data)
        request_id = valid_request_id(request.request_id) or call.request_id
        call.scope.request_id = request_id  # for the log
        return await self._detect(request, request_id, call)

    async def _detect_all(self, data: bytes, call: Call) -> pb.DetectBatchResponse:
        self._calls.refuse_if_draining()
        requests = parse_message(pb.DetectBatchRequest, data).requests
        most = self._options.max_images
        if not 1 <= len(requests) <= most:
            raise InvalidOptions(f"a batch holds 1 to {most} requests, not {len(requests)}")
        room = asyncio.Semaphore(self._options.images_in_flight)

        async def one(index: int, request: pb.DetectRequest) -> pb.DetectOutcome:
            async with room:
                return await self._outcome(index, request, call)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(*item)) for item in enumerate(requests)]
        return pb.DetectBatchResponse(
            outcomes=[task.result() for task in tasks], request_id=call.request_id
        )

    async def _detect_frames(
        self, frames: AsyncIterator[bytes], call: Call, context: Context
    ) -> None:
        """Answers frame after frame."""

        async def answer(index: int, data: bytes) -> pb.DetectOutcome:
            try:
                request = parse_message(pb.DetectRequest, data)
            except MalformedMessage as error:
                return _failure(index, error, f"{call.request_id}-{index + 1}")
            return await self._outcome(index, request, call)

        most = self._options.images_in_flight
        await self._calls.answer_stream(frames, call, context, answer, most)

    async def _describe(self, data: bytes) -> pb.GetModelResponse:
        parse_message(pb.GetModelRequest, data)
        return model_message(self._detector, self._options)

    async def _outcome(self, index: int, request: pb.DetectRequest, call: Call) -> pb.DetectOutcome:
        """One image of several: what spoils it leaves the others be."""
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
    """Whole, for us: the client is not told."""
    if not isinstance(error, DetectionError | MalformedMessage):
        _log.error("unexpected error", request_id=request_id, exc_info=error)
