"""The detector with a real engine process that runs the fake device."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from service.core.detector import Detector
from service.errors import (
    DeadlineExceeded,
    ImageTooLarge,
    InvalidImage,
    InvalidOptions,
    UnsupportedImage,
)
from service.types import DetectOptions, StageTimings
from tests.support.fake_device import FAKE_MODEL
from tests.support.fake_service import (
    EVERYTHING,
    assert_is_result_of,
    detect,
    fake_settings,
    open_fake_detector,
    value,
)
from tests.support.faulty_decode import wait_while
from tests.support.images import encode_png, solid_png

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def detector() -> AsyncIterator[Detector]:
    settings = fake_settings(slots=48, max_image_pixels=1_000_000, max_body_bytes=200_000)
    async with open_fake_detector(settings) as detector:
        yield detector


@pytest.fixture(autouse=True)
def every_slot_is_free_afterwards(detector: Detector) -> Iterator[None]:
    yield
    assert (detector.active, value(detector, "slots_in_use")) == (0, 0)


async def test_an_image_gets_its_own_detections(detector: Detector) -> None:
    data = solid_png((40, 90, 200), width=200, height=100)
    result = await detector.detect(data, EVERYTHING, request_id="r-7")
    assert_is_result_of(data, result)
    assert (result.model_name, result.request_id) == ("fake", "r-7")
    assert result.label_names == FAKE_MODEL.labels


async def test_concurrent_images_get_their_own_detections(detector: Detector) -> None:
    rng = random.Random(7)
    sizes = [(64, 48), (48, 64), (64, 64), (100, 30)]
    images = [
        solid_png((rng.randrange(256), rng.randrange(256), rng.randrange(256)), *sizes[number % 4])
        for number in range(40)
    ]
    batches = value(detector, "batch_size_count") or 0.0
    for _ in range(10):  # a slow machine may decode one image at a time
        results = await asyncio.gather(*(detect(detector, data) for data in images))
        for data, result in zip(images, results, strict=True):
            assert_is_result_of(data, result)
        before, batches = batches, value(detector, "batch_size_count") or 0.0
        if batches - before < len(images):
            return
    raise AssertionError("nothing was batched")


async def test_an_image_gets_the_same_detections_alone_and_in_a_batch(detector: Detector) -> None:
    data = encode_png(np.random.default_rng(3).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    alone = await detect(detector, data)
    others = [solid_png((number, 0, 0), 90, 60) for number in range(10)]
    together = await asyncio.gather(*(detect(detector, each) for each in [*others, data]))
    np.testing.assert_array_equal(alone.detections.boxes_xyxy, together[-1].detections.boxes_xyxy)


async def test_options_select_detections(detector: Detector) -> None:
    data = solid_png((100, 100, 103))  # four detections
    everything = await detect(detector, data)
    assert len(everything.detections) == 4
    label = FAKE_MODEL.labels[int(everything.detections.labels[1])]
    options = DetectOptions(threshold=0.0, labels=(label,))
    result = await detector.detect(data, options, request_id="r")
    assert {FAKE_MODEL.labels[int(found)] for found in result.detections.labels} == {label}
    options = DetectOptions(threshold=0.0, max_detections=2)
    assert len((await detector.detect(data, options, request_id="r")).detections) == 2


async def test_timings_add_up_to_the_total(detector: Detector) -> None:
    timings = (await detect(detector, solid_png((1, 2, 3)), read_ms=12.5)).timings
    stages = timings._asdict()
    total = stages.pop("total")
    assert timings.read == 12.5
    assert min(stages.values()) >= 0
    assert total == pytest.approx(sum(stages.values()), abs=1e-6)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", InvalidImage),
        (b"\x00\x01nothing", InvalidImage),
        (b"%PDF-1.7 and more", UnsupportedImage),
        (solid_png((0, 0, 0))[:-30], InvalidImage),
        (solid_png((0, 0, 0), 1001, 1000), ImageTooLarge),
        (b"\xff\xd8\xff" + bytes(200_000), ImageTooLarge),
    ],
    ids=["empty", "noise", "pdf", "truncated", "pixels", "bytes"],
)
async def test_a_bad_image_is_refused_and_frees_its_slot(
    detector: Detector, data: bytes, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await detect(detector, data)


@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000)])
async def test_a_very_elongated_image_gets_its_detections(
    detector: Detector, size: tuple[int, int]
) -> None:
    data = solid_png((9, 9, 9), *size)
    assert_is_result_of(data, await detect(detector, data))


async def test_a_bad_option_is_refused_before_any_work(detector: Detector) -> None:
    with pytest.raises(InvalidOptions):
        await detector.detect(b"not even an image", DetectOptions(threshold=2), request_id="r")


async def test_a_deadline_that_has_passed_is_refused(detector: Detector) -> None:
    with pytest.raises(DeadlineExceeded):
        await detect(detector, solid_png((1, 1, 1)), deadline=time.monotonic() - 1)


async def test_a_slot_stays_leased_while_a_decoder_works_after_the_deadline(
    detector: Detector, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    expired = value(detector, "expired_total")
    data = solid_png((1, 1, 1)) + wait_while(gate)
    with pytest.raises(DeadlineExceeded):
        await detect(detector, data, deadline=time.monotonic() + 0.2)
    assert value(detector, "slots_in_use") == 1
    gate.unlink()
    while value(detector, "slots_in_use"):
        await asyncio.sleep(0.001)
    assert expired is not None
    assert value(detector, "expired_total") == expired + 1


async def test_a_cancelled_request_is_counted_and_the_others_finish(
    detector: Detector,
) -> None:
    cancelled = value(detector, "cancelled_total")
    images = [solid_png((number, 5, 5)) for number in range(12)]
    tasks = [asyncio.create_task(detect(detector, data)) for data in images]
    await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for number, (data, result) in enumerate(zip(images, results, strict=True)):
        if number % 3 == 0:
            assert isinstance(result, asyncio.CancelledError)
        else:
            assert not isinstance(result, BaseException)
            assert_is_result_of(data, result)
    assert cancelled is not None
    assert value(detector, "cancelled_total") == cancelled + 4
    while value(detector, "slots_in_use"):  # an engine may still use some
        await asyncio.sleep(0.001)


async def test_every_stage_of_a_request_is_measured(detector: Detector) -> None:
    await detect(detector, solid_png((1, 2, 3)), read_ms=1.0)
    for stage in StageTimings._fields:
        assert value(detector, "stage_seconds_count", stage=stage)
    assert value(detector, "images_total", outcome="ok")
    assert value(detector, "ready") == value(detector, "live") == 1
    assert (
        value(
            detector,
            "model_info",
            name="fake",
            version="000000000000",
            variant=FAKE_MODEL.config.name,
        )
        == 1
    )


async def test_stages_of_batched_images_add_up_to_the_total(detector: Detector) -> None:
    images = [solid_png((number, 7, 7)) for number in range(12)]
    results = await asyncio.gather(*(detect(detector, data, read_ms=1.5) for data in images))
    for result in results:
        timings = result.timings._asdict()
        total = timings.pop("total")
        assert total > 1.5
        assert sum(timings.values()) == pytest.approx(total)


async def test_a_ready_detector_reports_its_state(detector: Detector) -> None:
    assert (detector.ready, detector.live, detector.not_ready_reason) == (True, True, "")
    assert detector.kernel == "fake"
