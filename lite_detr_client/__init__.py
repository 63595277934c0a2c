"""A typed client of Lite DETR Serving: sync and async, over HTTP and gRPC; needs no torch."""

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
    NotReady,
    Overloaded,
    ServiceError,
    ShuttingDown,
    Unauthenticated,
    UnreadableAnswer,
    UnsupportedImage,
)
from lite_detr_client.grpc_client import GrpcClient
from lite_detr_client.http_client import HttpClient
from lite_detr_client.inputs import Caller, DetectOptions, ImageSource
from lite_detr_client.results import Answer, Box, Detection, Engine, Model, Timings
from lite_detr_client.retries import RetryPolicy

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
    "Engine",
    "Forbidden",
    "GrpcClient",
    "HttpClient",
    "ImageSource",
    "ImageTooLarge",
    "InferenceFailed",
    "InvalidImage",
    "InvalidOptions",
    "Model",
    "NotReady",
    "Overloaded",
    "RetryPolicy",
    "ServiceError",
    "ShuttingDown",
    "Timings",
    "Unauthenticated",
    "UnreadableAnswer",
    "UnsupportedImage",
]
