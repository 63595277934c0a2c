"""The gRPC adapter: litedetr.v1.DetectionService, health and reflection around a Detector."""

from service.rpc.options import RpcOptions
from service.rpc.server import RpcServer

__all__ = ["RpcOptions", "RpcServer"]
