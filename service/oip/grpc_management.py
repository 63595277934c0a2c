"""The protocol's gRPC methods besides inference: health, metadata, statistics, repository."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from google.protobuf.message import Message

from service.core.detector import Detector
from service.oip.grpc_messages import described, index_message, parameter_values
from service.oip.model_description import ModelDescription
from service.oip.pb import grpc_service_pb2 as pb
from service.oip.repository import Repository
from service.oip.server_description import server_metadata
from service.transport.grpc_call import parse_message

_Request = TypeVar("_Request", bound=Message)

Method = Callable[[bytes], Coroutine[Any, Any, Message]]


class ManagementMethods:
    """Handles them from the state at each call."""

    def __init__(self, detector: Detector, model: ModelDescription, repository: Repository) -> None:
        """Takes the sources of the responses."""
        self._detector = detector
        self._model = model
        self._repository = repository

    def methods(self) -> dict[str, Method]:
        """The handlers by method name; each takes the bytes of the request."""
        return {
            "ServerLive": _parsed(pb.ServerLiveRequest, self._server_live),
            "ServerReady": _parsed(pb.ServerReadyRequest, self._server_ready),
            "ServerMetadata": _parsed(pb.ServerMetadataRequest, self._server_metadata),
            "ModelReady": _parsed(pb.ModelReadyRequest, self._model_ready),
            "ModelMetadata": _parsed(pb.ModelMetadataRequest, self._model_metadata),
            "ModelConfig": _parsed(pb.ModelConfigRequest, self._model_config),
            "ModelStatistics": _parsed(pb.ModelStatisticsRequest, self._model_statistics),
            "RepositoryIndex": _parsed(pb.RepositoryIndexRequest, self._index),
            "RepositoryModelLoad": _parsed(pb.RepositoryModelLoadRequest, self._load),
            "RepositoryModelUnload": _parsed(pb.RepositoryModelUnloadRequest, self._unload),
        }

    async def _server_live(self, _request: pb.ServerLiveRequest) -> Message:
        return pb.ServerLiveResponse(live=self._detector.live)

    async def _server_ready(self, _request: pb.ServerReadyRequest) -> Message:
        return pb.ServerReadyResponse(ready=self._detector.ready)

    async def _server_metadata(self, _request: pb.ServerMetadataRequest) -> Message:
        return described(pb.ServerMetadataResponse(), server_metadata())

    async def _model_ready(self, request: pb.ModelReadyRequest) -> Message:
        ready = self._model.is_ready(request.name, request.version)
        return pb.ModelReadyResponse(ready=ready)

    async def _model_metadata(self, request: pb.ModelMetadataRequest) -> Message:
        metadata = self._model.metadata(request.name, request.version)
        return described(pb.ModelMetadataResponse(), metadata)

    async def _model_config(self, request: pb.ModelConfigRequest) -> Message:
        config = self._model.config(request.name, request.version)
        return described(pb.ModelConfigResponse(), {"config": config})

    async def _model_statistics(self, request: pb.ModelStatisticsRequest) -> Message:
        statistics = self._model.statistics(request.name, request.version)
        return described(pb.ModelStatisticsResponse(), statistics)

    async def _index(self, request: pb.RepositoryIndexRequest) -> Message:
        return index_message(self._repository.index(ready_only=request.ready))

    async def _load(self, request: pb.RepositoryModelLoadRequest) -> Message:
        await self._repository.load(request.model_name, parameter_values(request.parameters))
        return pb.RepositoryModelLoadResponse()

    async def _unload(self, request: pb.RepositoryModelUnloadRequest) -> Message:
        await self._repository.unload(request.model_name, parameter_values(request.parameters))
        return pb.RepositoryModelUnloadResponse()


def _parsed(
    message_type: type[_Request], handle: Callable[[_Request], Coroutine[Any, Any, Message]]
) -> Method:
    async def from_bytes(data: bytes) -> Message:
        return await handle(parse_message(message_type, data))

    return from_bytes
