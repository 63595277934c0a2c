"""The adapter for the Open Inference Protocol v2, over HTTP and gRPC, around a Detector."""

from service.oip.grpc_service import InferenceService
from service.oip.http_routes import oip_routes

__all__ = ["InferenceService", "oip_routes"]
