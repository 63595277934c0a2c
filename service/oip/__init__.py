"""The adapter for the Open Inference Protocol v2, over HTTP and gRPC, around a Detector."""

from service.oip.routes import oip_routes
from service.oip.servicer import InferenceService

__all__ = ["InferenceService", "oip_routes"]
