"""Detectors with the fake device in the test's own event loop, and the results they must give."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

import numpy as np

from model.images.decode import ImageLimits, decode_image
from service.build import ServiceCore, open_core, open_detector
from service.core.detector import Detector
from service.settings import Settings
from service.types import DetectOptions, DetectResult
from tests.support.fake_device import FAKE_MODEL, fake_detections
from tests.support.fake_serve import FakeSettings, fake_backend

EVERYTHING = DetectOptions(threshold=0.0)
_QUIET: dict[str, Any] = {"http_port": 0, "log_format": "json", "log_level": "error"}
_NO_TIME: dict[str, Any] = {"fake_base_ms": 0.0, "fake_per_image_ms": 0.0}


def quiet_settings(**overrides: Any) -> Settings:
    """Settings for the torch device: a free port, and errors as the only log lines."""
    return Settings(**(_QUIET | overrides))


def fake_settings(**overrides: Any) -> FakeSettings:
    """Settings for the fake device, which takes no time unless they say otherwise."""
    return FakeSettings(**(_QUIET | _NO_TIME | overrides))


def open_fake_core(settings: FakeSettings) -> AbstractAsyncContextManager[ServiceCore]:
    return open_core(settings, fake_backend(settings))


def open_fake_detector(settings: FakeSettings) -> AbstractAsyncContextManager[Detector]:
    return open_detector(settings, fake_backend(settings))


def assert_is_result_of(data: bytes, result: DetectResult) -> None:
    """The result is that of this image and of no other."""
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
