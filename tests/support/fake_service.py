"""A whole spine with the fake engine, and what it must answer."""

from __future__ import annotations

from typing import Any

import numpy as np

from model.images.decode import ImageLimits, decode_image
from service.core.detector import Detector
from service.engine.fake_device import FAKE_MODEL, fake_detections
from service.settings import Settings, load_settings
from service.types import DetectOptions, DetectResult

EVERYTHING = DetectOptions(threshold=0.0)


def fake_settings(**overrides: Any) -> Settings:
    defaults: dict[str, Any] = {
        "engine": "fake",
        "http_port": 0,
        "fake_base_ms": 0.0,
        "fake_per_image_ms": 0.0,
        "log_format": "json",
        "log_level": "error",
    }
    return load_settings(**(defaults | overrides))


def assert_is_answer_to(data: bytes, result: DetectResult) -> None:
    """The result is that of these very bytes and of no other image."""
    decoded = decode_image(data, FAKE_MODEL.config, ImageLimits(10**9, 10**9))
    expected = fake_detections(decoded.pixels, decoded.original_size)
    np.testing.assert_array_equal(result.detections.scores, expected.scores)
    np.testing.assert_array_equal(result.detections.labels, expected.labels)
    np.testing.assert_array_equal(result.detections.boxes_xyxy, expected.boxes_xyxy)
    assert (result.height, result.width) == decoded.original_size


async def detect(detector: Detector, data: bytes, **kwargs: Any) -> DetectResult:
    return await detector.detect(data, EVERYTHING, request_id="test", **kwargs)


def value(detector: Detector, name: str, /, **labels: str) -> float | None:
    return detector.metrics.registry.get_sample_value(f"lite_detr_{name}", labels)
