from __future__ import annotations

import time

import pytest

from service.errors import DetectionError
from service.observability.statistics import Statistics, Total
from service.types import StageTimings
from tests.support.fake_service import EVERYTHING, fake_settings, open_fake_detector
from tests.support.images import solid_png

NS = 1_000_000
TIMINGS = StageTimings(
    read=1, decode=2, queue=3, assemble=3, copy=1, forward=5, postprocess=6, total=21
)


def test_it_starts_at_zero() -> None:
    statistics = Statistics()
    assert (statistics.inference_count, statistics.execution_count) == (0, 0)
    assert statistics.last_inference_ms == 0


def test_a_completed_image_counts_in_every_stage() -> None:
    statistics = Statistics()
    before = time.time() * 1000
    statistics.record_success(TIMINGS)
    statistics.record_success(TIMINGS)
    assert statistics.success == Total(2, 42 * NS)
    assert statistics.queue == Total(2, 6 * NS)
    assert statistics.compute_input == Total(2, 12 * NS)
    assert statistics.compute_infer == Total(2, 10 * NS)
    assert statistics.compute_output == Total(2, 12 * NS)
    assert statistics.fail == Total()
    assert statistics.inference_count == 2
    assert statistics.last_inference_ms >= before - 1


def test_a_failure_counts_only_its_time() -> None:
    statistics = Statistics()
    statistics.record_failure(0.25)
    assert statistics.fail == Total(1, 250 * NS)
    assert statistics.success == Total()


def test_batches_are_counted_by_size() -> None:
    statistics = Statistics()
    for images in (1, 4, 4):
        statistics.record_batch(images, 1.0, 2.0, 3.0)
    assert statistics.execution_count == 3
    assert sorted(statistics.batches) == [1, 4]
    assert statistics.batches[4].compute_infer == Total(2, 4 * NS)
    assert statistics.batches[4].compute_output == Total(2, 6 * NS)


async def test_a_detector_updates_the_statistics() -> None:
    async with open_fake_detector(fake_settings()) as detector:
        await detector.detect(solid_png((1, 2, 3)), EVERYTHING, request_id="a")
        with pytest.raises(DetectionError):
            await detector.detect(b"nothing", EVERYTHING, request_id="b")
        statistics = detector.metrics.statistics
        assert (statistics.success.count, statistics.fail.count) == (1, 1)
        assert statistics.execution_count == 1
        assert statistics.batches[1].compute_infer.count == 1
