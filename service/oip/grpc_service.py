"""The protocol over gRPC, on the port of `service.rpc.server`.

Requests arrive as bytes and are parsed here, so that a malformed one gets INVALID_ARGUMENT; gRPC's
own parsing would report it as INTERNAL.
"""

from __future__ import annotations

import asyncio
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
from service.transport.grpc_methods import MethodHandlers
from service.transport.grpc_status import MalformedMessage, Refusal, refusal_of

_PROTOCOL = "oip_grpc"  # in metrics
_IN_FLIGHT = 8  # of one stream
_LARGE_BYTES = 1 << 18  # of a message that is read in a thread
_PROBES = frozenset({"ServerLive", "ServerReady", "ModelReady"})
_NAME: str = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

_Response = TypeVar("_Response")

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
        """Uses a detector that the caller starts and stops.

        Args:
            detector: the core.
            control: loads and unloads the model.
            settings: limits, and whether clients may load and unload.
            request_log: follows each call; None: one that neither logs nor traces.
        """
        self._detector = detector
        self._request_log = request_log or RequestLog()
        self._model = ModelDescription(detector, settings)
        self._inference = Inference(detector, self._model)
        self._management = ManagementMethods(detector, self._model, Repository(control, settings))
        self._max_images = settings.max_files
        self._calls = CallsInFlight()

    @property
    def name(self) -> str:
        """The service's full name, for health and reflection."""
        return _NAME

    @property
    def descriptors(self) -> DescriptorPool:
        """The pool of its messages, for reflection: not protobuf's default pool."""
        pool: DescriptorPool = pb.DESCRIPTOR.pool
        return pool

    def handlers(self) -> MethodHandlers:
        """The handlers of all methods; they take bytes and parse them."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.unary_unary_rpc_method_handler(self._plain(name, method), None, _to_bytes)
            for name, method in self._management.methods().items()
        }
        handlers["ModelInfer"] = grpc.unary_unary_rpc_method_handler(
            self.model_infer, None, _to_bytes
        )
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self.model_stream_infer, None, _to_bytes
        )
        return MethodHandlers(_NAME, handlers)

    @property
    def open_calls(self) -> int:
        """The number of calls in flight."""
        return self._calls.open_calls

    def begin_drain(self) -> None:
        """Refuses new images, and ends streams after the requests that were read."""
        self._calls.begin_drain()

    async def wait_idle(self) -> None:
        """Returns when no call is in flight."""
        await self._calls.wait_idle()

    async def model_infer(self, data: bytes, context: Context) -> pb.ModelInferResponse:
        """Handles ModelInfer."""
        with self._open("ModelInfer", context) as call:

            async def infer() -> pb.ModelInferResponse:
                self._calls.refuse_if_draining()
                return await self._infer(data, call, response_message)

            return await self._run(call, context, infer(), counted=True)

    async def model_stream_infer(self, frames: AsyncIterator[bytes], context: Context) -> None:
        """Handles ModelStreamInfer."""
        with self._open("ModelStreamInfer", context) as call:
            work = self._infer_frames(frames, call, context)
            await self._run(call, context, work, counted=True)

    def _open(
        self, method: str, context: Context, *, quiet: bool = False
    ) -> AbstractContextManager[Call]:
        return open_call(context, self._request_log, f"{_NAME}/{method}", quiet=quiet)

    def _plain(self, name: str, method: Method) -> Callable[[bytes, Context], Awaitable[Message]]:
        """A method without images, in the form that gRPC calls."""

        async def handle(data: bytes, context: Context) -> Message:
            with self._open(name, context, quiet=name in _PROBES) as call:
                return await self._run(call, context, method(data))

        return handle

    async def _infer_frames(
        self, frames: AsyncIterator[bytes], call: Call, context: Context
    ) -> None:
        """Infers for each request of a stream."""

        async def respond(_index: int, data: bytes) -> pb.ModelStreamInferResponse:
            try:
                return await self._infer(data, call, stream_message)
            except Exception as error:
                _log_unexpected(error, call.request_id)
                return _failure(data, error)

        await self._calls.run_stream(frames, call, context, respond, _IN_FLIGHT)

    async def _infer(
        self, data: bytes, call: Call, encode: Callable[[InferRequest, InferResult], _Response]
    ) -> _Response:
        started = time.monotonic()
        message = parse_message(pb.ModelInferRequest, data)
        self._model.check(message.model_name, message.model_version)
        request = await self._read(message, len(data))
        priority = parse_priority(call.priority)
        arrival = RequestInfo(call.request_id, started, call.deadline, priority)
        return await self._inference.run(request, arrival, encode)

    async def _read(self, message: pb.ModelInferRequest, size: int) -> InferRequest:
        """Reads a message of `size` bytes; a large one in a thread, as base64 takes time."""
        if size > _LARGE_BYTES:
            return await asyncio.to_thread(read_infer_request, message, self._max_images)
        return read_infer_request(message, self._max_images)

    async def _run(
        self, call: Call, context: Context, work: Awaitable[_Response], *, counted: bool = False
    ) -> _Response:
        """Awaits the work of a call; an exception becomes its status."""

        def refuse(error: Exception) -> Refusal:
            _log_unexpected(error, call.request_id)
            return _refusal(error)

        def count(outcome: str) -> None:
            if counted:
                self._detector.metrics.count_request(_PROTOCOL, outcome)

        return await self._calls.run(call, context, work, refuse, count)


def _to_bytes(message: Message) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def _failure(data: bytes, error: Exception) -> pb.ModelStreamInferResponse:
    """An error on a stream, with the id of its request if that can be read."""
    try:
        request_id = parse_message(pb.ModelInferRequest, data).id
    except MalformedMessage:
        request_id = ""
    return pb.ModelStreamInferResponse(
        error_message=_refusal(error).detail, infer_response=pb.ModelInferResponse(id=request_id)
    )


def _refusal(error: Exception) -> Refusal:
    if isinstance(error, OipRefused):
        return Refusal(error.kind.grpc_status, error.code, error.detail)
    return refusal_of(error)


def _log_unexpected(error: Exception, request_id: str) -> None:
    """Logs an unexpected exception with its traceback; the client gets no details."""
    if not isinstance(error, DetectionError | MalformedMessage | OipRefused):
        _log.error("unexpected error", request_id=request_id, exc_info=error)
