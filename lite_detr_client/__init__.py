"""A typed Python client of Lite DETR Serving: sync and async, HTTP and gRPC, without torch."""

from lite_detr_client.async_grpc_client import AsyncGrpcClient
from lite_detr_client.async_http_client import AsyncHttpClient
from lite_detr_client.errors import (
    ConnectionFailed,
    DeadlineExceeded,
    Forbidden,
    ImageTooLarge,
    InferenceFailed,
    InvalidImage,
    InvalidOptions,
    InvalidResponse,
    NotReady,
    Overloaded,
    ServiceError,
    ShuttingDown,
    TooManyConnections,
    Unauthenticated,
    UnsupportedImage,
)
from lite_detr_client.grpc_client import GrpcClient
from lite_detr_client.http_client import HttpClient
from lite_detr_client.inputs import Caller, DetectOptions, ImageSource
from lite_detr_client.results import Box, Detection, DetectionResult, Engine, Model, Timings
from lite_detr_client.retries import RetryPolicy

# Names of version 0.1.0.
Answer = DetectionResult
UnreadableAnswer = InvalidResponse

__all__ = [
    "Answer",
    "AsyncGrpcClient",
    "AsyncHttpClient",
    "Box",
    "Caller",
    "ConnectionFailed",
    "DeadlineExceeded",
    "DetectOptions",
    "Detection",
    "DetectionResult",
    "Engine",
    "Forbidden",
    "GrpcClient",
    "HttpClient",
    "ImageSource",
    "ImageTooLarge",
    "InferenceFailed",
    "InvalidImage",
    "InvalidOptions",
    "InvalidResponse",
    "Model",
    "NotReady",
    "Overloaded",
    "RetryPolicy",
    "ServiceError",
    "ShuttingDown",
    "Timings",
    "TooManyConnections",
    "Unauthenticated",
    "UnreadableAnswer",
    "UnsupportedImage",
]
