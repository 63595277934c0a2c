"""Examples for the OpenAPI document; tests validate each against its schema."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from service.errors import DetectionError
from service.transport.http_status import ERROR_KINDS

_REQUEST_ID = "5b0e4f5c0e9a4d6f8a7a3c1d2e4f6a8b"
MODELS: dict[str, Any] = {
    "models": [
        {
            "name": "lite-dino-codes",
            "version": "3f2a9c71d0be",
            "description": "Printed codes in photos.",
            "variant": "lite-dino-efficientnet-lite0",
            "kernel": "cpu",
            "engines": [
                {"device": "cpu", "kernel": "cpu", "precision": "fp32", "cuda_graphs": 0},
            ],
            "default_threshold": 0.3,
            "classes": [{"id": 0, "name": "qr_code"}, {"id": 1, "name": "data_matrix"}],
            "input": {
                "shortest_side": 480,
                "longest_side": 640,
                "resampling": "bilinear",
                "bucket_stride": 64,
                "jpeg_decoding": "exact",
            },
            "limits": {
                "max_body_bytes": 67108864,
                "max_image_pixels": 100000000,
                "max_files": 32,
                "max_detections": 100,
                "max_tiles": 64,
                "formats": ["JPEG", "PNG", "WebP", "BMP", "TIFF", "GIF", "AVIF", "HEIC"],
            },
            "output_formats": ["json", "coco", "image", "huggingface"],
        }
    ]
}
SAMPLES: dict[str, Any] = {
    "samples": [{"name": "parcel", "url": "samples/parcel.jpg", "classes": ["qr_code"]}]
}

_DETAILS = {
    "invalid_image": "the JPEG image cannot be decoded: it is truncated",
    "unsupported_image": "this looks like a PDF document; accepted are JPEG, PNG, WebP, BMP, "
    "TIFF, GIF, AVIF, HEIC",
    "image_too_large": "the image has 40000 x 30000 = 1200000000 pixels; at most 100000000 are "
    "accepted",
    "invalid_options": "threshold is '7'; it takes a number from 0 to 1",
    "overloaded": "all slots are taken; retry soon",
    "not_ready": "the model is loading",
    "shutting_down": "the service is shutting down",
    "deadline_exceeded": "the deadline passed before there was a result",
    "inference_failed": "the model failed on this image, also when run by itself",
}
_REFUSALS = (
    (400, "malformed_form", "Bad Request", "the multipart body is malformed: no boundary"),
    (400, "malformed_json", "Bad Request", "the request is not JSON: unexpected end of data"),
    (400, "invalid_header", "Bad Request", "Content-Length is 'x', which is not a number"),
    (
        413,
        "body_too_large",
        HTTPStatus(413).phrase,
        "the request's body is larger than the 67108864 bytes accepted",
    ),
    (408, "body_timeout", "Request Timeout", "the request's body paused for more than 30 s"),
    (500, "internal", "Internal Server Error", "An unexpected error."),
)


def problem(status: int, code: str, title: str, detail: str) -> dict[str, Any]:
    """An error as `problems.problem_response` writes it."""
    return {
        "type": f"urn:lite-detr:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": _REQUEST_ID,
    }


def detect_problems() -> dict[str, dict[str, Any]]:
    """Every error of POST /detect, by code."""
    problems = {
        error.code: problem(kind.status, error.code, kind.title, _detail(error))
        for error, kind in ERROR_KINDS.items()
    }
    for status, code, title, detail in _REFUSALS:
        problems[code] = problem(status, code, title, detail)
    return problems


def _detail(error: type[DetectionError]) -> str:
    return _DETAILS.get(error.code, (error.__doc__ or error.code).splitlines()[0])
