"""An image whose result is drawn counts once, with the outcome of drawing it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest
import pytest_asyncio

from model.images.decode import ImageLimits
from service.core.detector import Detector
from service.core.encoding import FileResult
from service.core.formats import OUTPUT_FORMATS, Encoded, EncodeInput
from service.decoding.tasks import DecoderBug
from service.errors import DeadlineExceeded, InvalidImage, InvalidOptions
from service.observability.request_scope import SCOPE, RequestScope
from service.observability.trace_context import open_trace
from service.types import DetectOptions, DetectResult
from tests.support.fake_service import EVERYTHING, fake_settings, open_fake_detector
from tests.support.images import solid_png

pytestmark = pytest.mark.asyncio(loop_scope="module")

DATA = solid_png((40, 90, 200))
IMAGE = OUTPUT_FORMATS["image"]


def fail(_job: EncodeInput) -> Encoded:
    raise RuntimeError("a bug")


FAILING = replace(IMAGE, encode=fail)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def detector() -> AsyncIterator[Detector]:
    async with open_fake_detector(fake_settings(explain=True)) as detector:
        yield detector


@pytest.fixture
def scope() -> Iterator[RequestScope]:
    """The scope of a request whose images are recorded."""
    scope = RequestScope("http", "POST", "r", open_trace(()), detailed=True)
    token = SCOPE.set(scope)
    yield scope
    SCOPE.reset(token)


def _outcomes(detector: Detector) -> dict[str, float]:
    return {
        sample.labels["outcome"]: sample.value
        for metric in detector.metrics.images.collect()
        for sample in metric.samples
        if sample.name.endswith("_total") and sample.value
    }


async def _counted(detector: Detector, before: dict[str, float]) -> dict[str, float]:
    """How many images have got each outcome since then."""
    await asyncio.sleep(0)  # successes are counted by the next iteration of the loop
    after = _outcomes(detector)
    changes = {name: after[name] - before.get(name, 0) for name in after}
    return {name: change for name, change in changes.items() if change}


async def _detected(detector: Detector) -> EncodeInput:
    result = await detector.detect(DATA, EVERYTHING, request_id="r", drawn=True)
    assert isinstance(result, DetectResult)
    return EncodeInput((FileResult("a", result),), limits=ImageLimits(10**6, 10**6))


async def test_a_drawn_image_counts_once(detector: Detector, scope: RequestScope) -> None:
    before = _outcomes(detector)
    job = await _detected(detector)
    assert await _counted(detector, before) == {}
    assert (await detector.encode_with_image(IMAGE, job, DATA)).media_type == "image/png"
    assert await _counted(detector, before) == {"ok": 1}
    assert (scope.images, scope.failed_images, scope.num_bytes) == (1, 0, len(DATA))


async def test_an_image_whose_drawing_fails_is_no_completed_one(
    detector: Detector, scope: RequestScope
) -> None:
    cases = (
        (IMAGE, DATA[:-30], None, InvalidImage),
        (IMAGE, DATA, time.monotonic() - 1, DeadlineExceeded),
    )
    for number, (output_format, data, deadline, error) in enumerate(cases, start=1):
        before = _outcomes(detector)
        job = await _detected(detector)
        with pytest.raises(error) as failed:
            await detector.encode_with_image(output_format, job, data, deadline)
        assert await _counted(detector, before) == {failed.value.code: 1}
        assert (scope.images, scope.failed_images, scope.num_bytes) == (0, number, 0)
        assert scope.failure is not None


async def test_an_image_that_meets_a_bug_in_the_drawing_is_an_internal_error(
    detector: Detector, scope: RequestScope
) -> None:
    before = _outcomes(detector)
    job = await _detected(detector)
    with pytest.raises(DecoderBug):
        await detector.encode_with_image(FAILING, job, DATA)
    assert await _counted(detector, before) == {"internal": 1}
    assert scope.images == 0


async def test_an_image_whose_client_leaves_during_the_drawing_is_cancelled(
    detector: Detector, scope: RequestScope
) -> None:
    before = _outcomes(detector)
    job = await _detected(detector)
    drawing = asyncio.create_task(detector.encode_with_image(IMAGE, job, DATA))
    await asyncio.sleep(0)
    drawing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await drawing
    assert await _counted(detector, before) == {"cancelled": 1}
    assert scope.images == 0


async def test_an_image_without_the_detection_to_explain_is_no_completed_one(
    detector: Detector, scope: RequestScope
) -> None:
    before = _outcomes(detector)
    options = DetectOptions(threshold=0.0, explain=99)
    with pytest.raises(InvalidOptions, match="no detection 99"):
        await detector.detect(DATA, options, request_id="r", drawn=True)
    assert await _counted(detector, before) == {"invalid_options": 1}
    assert (scope.images, scope.failed_images) == (0, 1)
