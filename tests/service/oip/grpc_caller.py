"""The gRPC service and the HTTP routes with a stand-in detector, in the test's event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from fastapi import FastAPI

from service.core.model_control import ModelControl
from service.oip import InferenceService, oip_routes
from service.oip.pb import grpc_service_pb2 as pb
from service.oip.tensors import pack_elements
from service.rest import create_app
from service.rpc import RpcServer
from service.settings import Settings, load_settings
from tests.service.oip.running_service import StandInControl
from tests.service.rest.standin import MODEL, StandIn
from tests.service.rpc.caller import rpc_options

PREFIX = "/inference.GRPCInferenceService/"


def standing_settings(**overrides: Any) -> Settings:
    defaults = {"model_control": "explicit", "max_body_bytes": 1 << 20, "max_files": 12}
    return load_settings(**(defaults | overrides))


def build_app(standin: StandIn, control: StandInControl | None = None, **overrides: Any) -> FastAPI:
    settings, detector = standing_settings(**overrides), standin.as_detector()
    routes = oip_routes(detector, control or StandInControl("stand-in"), settings)
    return create_app(detector, settings, extra_routes=routes)


@asynccontextmanager
async def standing(
    standin: StandIn, control: ModelControl | None = None
) -> AsyncIterator[RpcServer]:
    detector = standin.as_detector()
    service = InferenceService(detector, control or StandInControl("stand-in"), standing_settings())
    server = RpcServer(detector, rpc_options(), extra_services=[service])
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0)


class OipCaller:
    """Methods of the service over one channel, with our messages."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.infer = self._unary("ModelInfer", pb.ModelInferRequest, pb.ModelInferResponse)
        self.live = self._unary("ServerLive", pb.ServerLiveRequest, pb.ServerLiveResponse)
        self.load = self._unary(
            "RepositoryModelLoad", pb.RepositoryModelLoadRequest, pb.RepositoryModelLoadResponse
        )
        self.unload = self._unary(
            "RepositoryModelUnload",
            pb.RepositoryModelUnloadRequest,
            pb.RepositoryModelUnloadResponse,
        )
        self.raw: Any = channel.unary_unary(PREFIX + "ModelInfer")
        self.stream: Any = channel.stream_stream(
            PREFIX + "ModelStreamInfer",
            pb.ModelInferRequest.SerializeToString,
            pb.ModelStreamInferResponse.FromString,
        )
        self.raw_stream: Any = channel.stream_stream(
            PREFIX + "ModelStreamInfer", None, pb.ModelStreamInferResponse.FromString
        )

    def _unary(self, name: str, request: Any, response: Any) -> Any:
        return self.channel.unary_unary(
            PREFIX + name, request.SerializeToString, response.FromString
        )


@asynccontextmanager
async def asking(server: RpcServer) -> AsyncIterator[OipCaller]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield OipCaller(channel)


def infer_request(*images: bytes, request_id: str = "", **fields: Any) -> pb.ModelInferRequest:
    tensor = pb.ModelInferRequest.InferInputTensor(
        name="IMAGE", datatype="BYTES", shape=[len(images)]
    )
    return pb.ModelInferRequest(
        model_name=MODEL.name,
        id=request_id,
        inputs=[tensor],
        raw_input_contents=[pack_elements(images)],
        **fields,
    )
