"""The handlers of a gRPC service, in a form that also lists them."""

from __future__ import annotations

from typing import Any

import grpc


class MethodHandlers(grpc.GenericRpcHandler):
    """The handlers of one service, by the names of its methods."""

    def __init__(self, service: str, handlers: dict[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        """Takes the full name of the service, and its handlers."""
        self.service_name = service
        self.handlers = handlers
        self._by_path = {f"/{service}/{name}": each for name, each in handlers.items()}

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of a call; None for other methods."""
        return self._by_path.get(handler_call_details.method)
