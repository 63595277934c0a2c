"""A typed client of Lite DETR Serving: sync and async, over HTTP and gRPC; needs no torch."""

from lite_detr_client.async_grpc_client import AsyncGrpcClient
from lite_detr_client.async_http_client import AsyncHttpClient
from lite_detr_client.errors import (
    ConnectionFailed,
    DeadlineExceeded,
    ImageTooLarge,
    InferenceFailed,
    InvalidImage,
    InvalidOptions,
    NotReady,
    Overloaded,
    ServiceError,
    ShuttingDown,
    UnreadableAnswer,
    UnsupportedImage,
)
from lite_detr_client.grpc_client import GrpcClient
from lite_detr_client.http_client import HttpClient
from lite_detr_client.inputs import DetectOptions, ImageSource
from lite_detr_client.results import Answer, Box, Detection, Model, Timings
from lite_detr_client.retries import RetryPolicy

__all__ = [
    "Answer",
    "AsyncGrpcClient",
    "AsyncHttpClient",
    "Box",
    "ConnectionFailed",
    "DeadlineExceeded",
    "DetectOptions",
    "Detection",
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
    "UnreadableAnswer",
    "UnsupportedImage",
]
