"""The images of one request get results of one model, also if another one replaces it meanwhile."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from tests.support.fake_device import FAKE_MODEL
from tests.support.fake_service import (
    EVERYTHING,
    assert_is_result_of,
    fake_settings,
    open_fake_detector,
)
from tests.support.images import solid_png


async def test_an_image_of_a_request_that_began_before_a_swap_gets_the_earlier_model() -> None:
    async with open_fake_detector(fake_settings()) as detector:
        data = solid_png((40, 90, 200))
        with detector.one_model() as served:
            other: Any = SimpleNamespace(info=replace(FAKE_MODEL, version="2"))
            assert detector.swap(other) is served
            unused = asyncio.create_task(served.wait_until_unused())
            result = await detector.detect(data, EVERYTHING, request_id="r", served=served)
            assert_is_result_of(data, result)
            assert result.model_version == FAKE_MODEL.version
            assert not unused.done()
        await asyncio.wait_for(unused, 60)
        detector.swap(served)
