"""Examples for the API's description; tests hold each to its schema."""

from __future__ import annotations

from typing import Any

from service.errors import DetectionError
from service.transport.http_status import ERROR_KINDS

_REQUEST_ID = "5b0e4f5c0e9a4d6f8a7a3c1d2e4f6a8b"
_MODEL = {"name": "lite-dino-codes", "version": "3f2a9c71d0be"}
_DETECTIONS = [
    {
        "label": "qr_code",
        "class_id": 0,
        "score": 0.9731,
        "box": {"xmin": 120.25, "ymin": 88.5, "xmax": 268.0, "ymax": 239.75},
    }
]
_TIMINGS = {
    "read": 0.4,
    "decode": 6.1,
    "queue": 1.2,
    "assemble": 0.6,
    "copy": 0.0,
    "forward": 92.7,
    "postprocess": 0.5,
    "total": 101.5,
}

ANSWER: dict[str, Any] = {
    "model": _MODEL,
    "image": {"width": 640, "height": 480},
    "detections": _DETECTIONS,
    "timings_ms": _TIMINGS,
    "request_id": _REQUEST_ID,
}
ANSWERS: dict[str, Any] = {
    "results": [
        {"file": "shelf.jpg", **ANSWER, "request_id": f"{_REQUEST_ID}-1"},
        {
            "file": "notes.pdf",
            "error": {
                "code": "unsupported_image",
                "title": "This kind of file is not supported",
                "detail": "this looks like a PDF document; accepted are JPEG, PNG, WebP, BMP, "
                "TIFF, GIF",
                "status": 415,
            },
        },
    ],
    "request_id": _REQUEST_ID,
}
COCO: dict[str, Any] = {
    "info": {"description": "Detections by lite-dino-codes 3f2a9c71d0be"},
    "images": [{"id": 1, "file_name": "shelf.jpg", "width": 640, "height": 480}],
    "categories": [{"id": 0, "name": "qr_code"}, {"id": 1, "name": "data_matrix"}],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 0,
            "bbox": [120.25, 88.5, 147.75, 151.25],
            "area": 22347.19,
            "iscrowd": 0,
            "score": 0.9731,
        }
    ],
}
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
            },
            "limits": {
                "max_body_bytes": 67108864,
                "max_image_pixels": 100000000,
                "max_files": 32,
                "max_detections": 100,
                "formats": ["JPEG", "PNG", "WebP", "BMP", "TIFF", "GIF"],
            },
        }
    ]
}
SAMPLES: dict[str, Any] = {"samples": [{"name": "parcel", "url": "samples/parcel.jpg"}]}

_DETAILS = {
    "invalid_image": "the JPEG image cannot be decoded: it is truncated",
    "unsupported_image": "this looks like a PDF document; accepted are JPEG, PNG, WebP, BMP, "
    "TIFF, GIF",
    "image_too_large": "the image has 40000 x 30000 = 1200000000 pixels; at most 100000000 are "
    "accepted",
    "invalid_options": "threshold is '7'; it takes a number from 0 to 1",
    "overloaded": "all places are taken; try again soon",
    "not_ready": "the model is loading",
    "shutting_down": "the service takes nothing new",
    "deadline_exceeded": "the request's time ran out before its answer was there",
    "inference_failed": "the model failed on this image, also alone",
}
_REFUSALS = (
    (400, "malformed_form", "Bad Request", "the multipart body is malformed: no boundary"),
    (400, "invalid_header", "Bad Request", "Content-Length is 'x', which is not a number"),
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
    """Every error that POST /detect answers with, by code."""
    problems = {
        error.code: problem(kind.status, error.code, kind.title, _detail(error))
        for error, kind in ERROR_KINDS.items()
    }
    for status, code, title, detail in _REFUSALS:
        problems[code] = problem(status, code, title, detail)
    return problems


def _detail(error: type[DetectionError]) -> str:
    return _DETAILS.get(error.code, (error.__doc__ or error.code).splitlines()[0])
