from __future__ import annotations

import time

import numpy as np
import pytest

from model.detections import Detections
from service.core.result import ImageContext, make_result
from service.core.selection import resolve_options
from service.engine.device import DeviceResult
from service.types import DetectOptions
from tests.support.fake_device import FAKE_MODEL

FOUND = Detections(
    scores=np.array([0.9, 0.2], dtype=np.float32),
    labels=np.array([1, 0]),
    boxes_xyxy=np.arange(8, dtype=np.float32).reshape(2, 4),
)
BATCH = DeviceResult([FOUND], assemble_ms=1.0, forward_ms=20.0, postprocess_ms=3.0, copy_ms=0.5)


def context(started: float) -> ImageContext:
    return ImageContext(
        model=FAKE_MODEL,
        selection=resolve_options(DetectOptions(threshold=0.5), FAKE_MODEL),
        request_id="r-1",
        original_size=(480, 640),
        started=started,
        read_ms=7.0,
        decode_ms=4.0,
    )


def test_a_result_describes_the_image_and_the_model() -> None:
    result = make_result(context(time.monotonic()), FOUND, BATCH)
    assert (result.width, result.height, result.request_id) == (640, 480, "r-1")
    assert (result.model_name, result.model_version) == (FAKE_MODEL.name, FAKE_MODEL.version)
    assert result.label_names == FAKE_MODEL.labels
    assert result.detections.labels.tolist() == [1]


def test_time_that_no_stage_took_is_queue_time() -> None:
    timings = make_result(context(time.monotonic() - 1.0), FOUND, BATCH).timings
    assert (timings.read, timings.decode) == (7.0, 4.0)
    assert (timings.assemble, timings.copy, timings.forward) == (1.0, 0.5, 20.0)
    assert timings.postprocess >= 3.0
    assert timings.queue >= 1000 - (4.0 + 1.0 + 0.5 + 20.0) - timings.postprocess
    assert timings.total == pytest.approx(sum(timings[:-1]))


def test_queue_time_is_never_negative() -> None:
    timings = make_result(context(time.monotonic()), FOUND, BATCH).timings
    assert timings.queue == 0.0
    assert timings.total == pytest.approx(sum(timings[:-1]))
