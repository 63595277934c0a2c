"""The gRPC service that gets the load, and the checks before it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc

from service.load.grpc_loop import CHANNEL_OPTIONS, DETECT, GrpcLoad
from service.load.steps import Generator
from service.load.target import Address, Checked, ImageFile, TargetError
from service.rpc.pb import detection_pb2 as pb

_RESPONSE_SECONDS = 60.0
_Code = grpc.StatusCode


class GrpcTarget:
    """The call Detect."""

    def __init__(self, address: Address, key: str | None) -> None:
        """Takes the address, and the API key if one is required."""
        self._address = address
        self._metadata = () if key is None else (("authorization", f"Bearer {key}"),)
        self._credentials = grpc.ssl_channel_credentials() if address.tls else None

    def check(self, images: Sequence[ImageFile]) -> Checked:
        """Sends each image once; errors as for `Target`."""
        address = self._address.host_and_port
        channel = (
            grpc.insecure_channel(address, CHANNEL_OPTIONS)
            if self._credentials is None
            else grpc.secure_channel(address, self._credentials, CHANNEL_OPTIONS)
        )
        latencies, model = [], ""
        with channel:
            detect: Any = channel.unary_unary(DETECT)
            for image, request in zip(images, _requests(images), strict=True):
                started = time.perf_counter()
                try:
                    data = detect(request, _RESPONSE_SECONDS, metadata=self._metadata)
                except grpc.RpcError as error:
                    raise TargetError(self._explain(error, image)) from error
                latencies.append((time.perf_counter() - started) * 1000)
                response = pb.DetectResponse.FromString(data)
                model = f"{response.model.name} {response.model.version}"
        return Checked(model, min(latencies))

    @asynccontextmanager
    async def open(self, images: Sequence[ImageFile]) -> AsyncIterator[Generator]:
        """Opens a generator with its channels."""
        address = self._address.host_and_port
        load = GrpcLoad(address, _requests(images), self._metadata, self._credentials)
        try:
            yield load
        finally:
            await load.close()

    def _explain(self, error: grpc.RpcError, image: ImageFile) -> str:
        code, detail = error.code(), error.details() or ""
        url = self._address.url
        if code is _Code.UNAUTHENTICATED:
            given = "refuses the key" if self._metadata else "requires an API key"
            return f"the service {given}: see --api-key"
        if code is _Code.PERMISSION_DENIED:
            return "the API key lacks the scope detect"
        if code is _Code.INVALID_ARGUMENT:
            return f"the service refuses {image.name}: {detail}"
        if code is _Code.UNIMPLEMENTED:
            return f"{url} is not a Lite DETR service: it has no call {DETECT}"
        if code is _Code.UNAVAILABLE:
            return (
                f"there is no gRPC service at {url}, or it is not ready: {detail}. With --grpc the "
                "port of the URL is that of gRPC, 8001 by default"
            )
        return f"{url} responds with {code.name}: {detail}"


def _requests(images: Sequence[ImageFile]) -> list[bytes]:
    return [pb.DetectRequest(image=image.data).SerializeToString() for image in images]
