"""The protocol over gRPC: a service that shares the port of our own.

Requests arrive as bytes and are parsed here, so that a broken one is refused like any other bad
input instead of passing for a fault of the server.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import grpc
import structlog
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message

from service.core.detector import Detector
from service.core.model_control import ModelControl
from service.core.selection import parse_priority
from service.errors import DetectionError
from service.observability.request_log import RequestLog
from service.oip.errors import OipRefused
from service.oip.grpc_management import ManagementMethods, Method
from service.oip.grpc_messages import (
    read_infer_request,
    response_message,
    stream_message,
)
from service.oip.inference import Inference, InferResult, RequestInfo
from service.oip.model_description import ModelDescription
from service.oip.pb import grpc_service_pb2 as pb
from service.oip.repository import Repository
from service.oip.request import InferRequest
from service.settings import Settings
from service.transport.grpc_call import Call, CallsInFlight, Context, open_call, parse_message
from service.transport.grpc_status import MalformedMessage, Refusal, refusal_of

_PROTOCOL = "oip_grpc"  # in metrics
_IN_FLIGHT = 8  # of one stream
_PROBES = frozenset({"ServerLive", "ServerReady", "ModelReady"})
_NAME: str = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

_Answer = TypeVar("_Answer")

_log = structlog.get_logger(__name__)


class InferenceService:
    """Handles the methods of inference.GRPCInferenceService."""

    def __init__(
        self,
        detector: Detector,
        control: ModelControl,
        settings: Settings,
        request_log: RequestLog | None = None,
    ) -> None:
        """Shares a detector; its start and stop are not this adapter's business.

        Args:
            detector: the core.
            control: over what is served.
            settings: limits, and whether clients may load and unload.
            request_log: follows each call; None: one that logs and traces nothing.
        """
        self._detector = detector
        self._request_log = request_log or RequestLog()
        self._model = ModelDescription(detector, settings)
        self._inference = Inference(detector, self._model)
        self._descriptions = ManagementMethods(detector, self._model, Repository(control, settings))
        self._max_images = settings.max_files
        self._calls = CallsInFlight()

    @property
    def name(self) -> str:
        """Its full name, for health and reflection."""
        return _NAME

    @property
    def descriptors(self) -> DescriptorPool:
        """Where reflection finds its messages: not in protobuf's default pool."""
        pool: DescriptorPool = pb.DESCRIPTOR.pool
        return pool

    def handlers(self) -> grpc.GenericRpcHandler:
        """For the server; they take bytes and parse them themselves."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.unary_unary_rpc_method_handler(self._plain(name, method), None, _to_bytes)
            for name, method in self._descriptions.methods().items()
        }
        handlers["ModelInfer"] = grpc.unary_unary_rpc_method_handler(
            self.model_infer, None, _to_bytes
        )
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self.model_stream_infer, None, _to_bytes
        )
        return grpc.method_handlers_generic_handler(_NAME, handlers)

    def begin_drain(self) -> None:
        """Refuses new images, and ends streams after the requests that were read."""
        self._calls.begin_drain()

    async def wait_idle(self) -> None:
        """Returns when no call is under way."""
        await self._calls.wait_idle()

    async def model_infer(self, data: bytes, context: Context) -> pb.ModelInferResponse:
        """Answers ModelInfer."""
        with self._open("ModelInfer", context) as call:

            async def infer() -> pb.ModelInferResponse:
                self._calls.refuse_if_draining()
                return await self._infer(data, call, response_message)

            return await self._answer(call, context, infer(), counted=True)

    async def model_stream_infer(self, frames: AsyncIterator[bytes], context: Context) -> None:
        """Answers ModelStreamInfer."""
        with self._open("ModelStreamInfer", context) as call:
            work = self._infer_frames(frames, call, context)
            await self._answer(call, context, work, counted=True)

    def _open(
        self, method: str, context: Context, *, quiet: bool = False
    ) -> AbstractContextManager[Call]:
        return open_call(context, self._request_log, f"{_NAME}/{method}", quiet=quiet)

    def _plain(self, name: str, method: Method) -> Callable[[bytes, Context], Awaitable[Message]]:
        """A method that detects nothing, as gRPC calls it."""

        async def answer(data: bytes, context: Context) -> Message:
            with self._open(name, context, quiet=name in _PROBES) as call:
                return await self._answer(call, context, method(data))

        return answer

    async def _infer_frames(
        self, frames: AsyncIterator[bytes], call: Call, context: Context
    ) -> None:
        """Answers request after request."""

        async def answer(_index: int, data: bytes) -> pb.ModelStreamInferResponse:
            try:
                return await self._infer(data, call, stream_message)
            except Exception as error:
                _log_unexpected(error, call.request_id)
                return _failure(data, error)

        await self._calls.answer_stream(frames, call, context, answer, _IN_FLIGHT)

    async def _infer(
        self, data: bytes, call: Call, encode: Callable[[InferRequest, InferResult], _Answer]
    ) -> _Answer:
        started = time.monotonic()
        message = parse_message(pb.ModelInferRequest, data)
        self._model.check(message.model_name, message.model_version)
        request = read_infer_request(message, self._max_images)
        priority = parse_priority(call.priority)
        arrival = RequestInfo(call.request_id, started, call.deadline, priority)
        return await self._inference.run(request, arrival, encode)

    async def _answer(
        self, call: Call, context: Context, work: Awaitable[_Answer], *, counted: bool = False
    ) -> _Answer:
        """Awaits the work for a call; tells its failure as a status and counts how it ended."""

        def refuse(error: Exception) -> Refusal:
            _log_unexpected(error, call.request_id)
            return _refusal(error)

        def note(outcome: str) -> None:
            if counted:
                self._detector.metrics.count_request(_PROTOCOL, outcome)

        return await self._calls.answer(call, context, work, refuse, note)


def _to_bytes(message: Message) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def _failure(data: bytes, error: Exception) -> pb.ModelStreamInferResponse:
    """An error on a stream; with the name of its request, where that can be read."""
    try:
        request_id = parse_message(pb.ModelInferRequest, data).id
    except MalformedMessage:
        request_id = ""
    return pb.ModelStreamInferResponse(
        error_message=_refusal(error).detail, infer_response=pb.ModelInferResponse(id=request_id)
    )


def _refusal(error: Exception) -> Refusal:
    if isinstance(error, OipRefused):
        return Refusal(error.kind.grpc_status, error.kind.code, error.detail)
    return refusal_of(error)


def _log_unexpected(error: Exception, request_id: str) -> None:
    """Whole, for us: the client is not told."""
    if not isinstance(error, DetectionError | MalformedMessage | OipRefused):
        _log.error("unexpected error", request_id=request_id, exc_info=error)
