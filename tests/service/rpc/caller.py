"""A client without our client library, so that tests see the messages themselves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc

from service.core.detector import Detector
from service.observability.request_log import RequestLog
from service.rpc import RpcOptions, RpcServer
from service.rpc.pb import detection_pb2 as pb
from service.transport.grpc_call import GrpcService

PREFIX = "/litedetr.v1.DetectionService/"


def rpc_options(**overrides: Any) -> RpcOptions:
    defaults: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": 0,
        "max_message_bytes": 1 << 20,
        "max_image_pixels": 4_000_000,
        "max_images": 4,
        "max_tiles": 64,
    }
    return RpcOptions(**(defaults | overrides))


class Caller:
    """The service's methods over one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.detect = channel.unary_unary(
            PREFIX + "Detect", pb.DetectRequest.SerializeToString, pb.DetectResponse.FromString
        )
        self.detect_batch = channel.unary_unary(
            PREFIX + "DetectBatch",
            pb.DetectBatchRequest.SerializeToString,
            pb.DetectBatchResponse.FromString,
        )
        self.detect_stream = channel.stream_stream(
            PREFIX + "DetectStream", pb.DetectRequest.SerializeToString, pb.DetectOutcome.FromString
        )
        self.get_model = channel.unary_unary(
            PREFIX + "GetModel",
            pb.GetModelRequest.SerializeToString,
            pb.GetModelResponse.FromString,
        )
        self.raw: dict[str, Any] = {
            name: channel.unary_unary(PREFIX + name)
            for name in ("Detect", "DetectBatch", "GetModel")
        }
        self.raw_stream: Any = channel.stream_stream(
            PREFIX + "DetectStream", None, pb.DetectOutcome.FromString
        )


@asynccontextmanager
async def serving(
    detector: Detector,
    request_log: RequestLog | None = None,
    extra_services: Sequence[GrpcService] = (),
    **overrides: Any,
) -> AsyncIterator[RpcServer]:
    server = RpcServer(detector, rpc_options(**overrides), request_log, extra_services)
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0)


@asynccontextmanager
async def calling(server: RpcServer, **arguments: int) -> AsyncIterator[Caller]:
    options = [(f"grpc.{name}", value) for name, value in arguments.items()]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=options) as channel:
        yield Caller(channel)


def trailing(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    return dict(error.trailing_metadata() or ())
