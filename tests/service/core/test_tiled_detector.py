"""Images that are cut into tiles, with real decoder and engine processes and the fake device."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from model.detections import Detections
from model.images.decode import ImageLimits, decode_image
from model.images.regions import decode_regions
from service.core import tiled_images
from service.core.detector import Detector
from service.core.tiling.grid import Region, TileSize, tile_regions
from service.core.tiling.merge import Part, merge_detections, shifted
from service.core.tiling.selected import merge_selected
from service.errors import DeadlineExceeded, InferenceFailed, InvalidOptions
from service.types import DetectOptions, DetectResult, TileOptions
from tests.support.fake_device import FAKE_MODEL, fake_detections
from tests.support.fake_service import fake_settings, open_fake_detector, value
from tests.support.images import encode_png, solid_png

pytestmark = pytest.mark.asyncio(loop_scope="module")

TILES = TileOptions((200, 150), 0.2)
OPTIONS = DetectOptions(threshold=0.0, tiles=TILES)
ERROR = "fe0102"
RULE, LIMITS = FAKE_MODEL.config, ImageLimits(10**9, 10**9)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def detector() -> AsyncIterator[Detector]:
    settings = fake_settings(max_tiles=40, explain=True, fake_error_colour=ERROR)
    async with open_fake_detector(settings) as detector:
        yield detector


@pytest.fixture(autouse=True)
def every_slot_is_free_afterwards(detector: Detector) -> Iterator[None]:
    yield
    assert detector.active == 0


async def _wait_for_slots(detector: Detector) -> None:
    while value(detector, "slots_in_use"):
        await asyncio.sleep(0.001)


def _scene(height: int = 500, width: int = 700) -> np.ndarray:
    """Patches of colours, so that every tile has detections of its own."""
    rng = np.random.default_rng(11)
    patches = rng.integers(0, 250, (-(-height // 90), -(-width // 90), 3), dtype=np.uint8)
    return np.kron(patches, np.ones((90, 90, 1), np.uint8))[:height, :width]


def _expected(data: bytes, tile: TileSize) -> list[list[float]]:
    """The merged boxes, from the stages called one by one."""
    whole = decode_image(data, RULE, LIMITS)
    size = whole.original_size
    parts = [Part(Region(0, 0, size[1], size[0]), fake_detections(whole.pixels, size))]
    regions = tile_regions(size, tile, 0.2)
    pixels: dict[int, np.ndarray] = {}

    def place(number: int, shape: tuple[int, int]) -> np.ndarray:
        return pixels.setdefault(number, np.empty((*shape, 3), np.uint8))

    decode_regions(data, RULE, LIMITS, None, regions, place)
    for number, region in enumerate(regions):
        parts.append(Part(region, shifted(fake_detections(pixels[number], region.size), region)))
    merged: list[list[float]] = merge_detections(parts, size).boxes_xyxy[:100].tolist()
    return merged


async def _detect(
    detector: Detector, data: bytes, deadline: float | None = None, read_ms: float = 0.0
) -> DetectResult:
    return await detector.detect(
        data, OPTIONS, request_id="tiled", deadline=deadline, read_ms=read_ms
    )


async def test_an_image_gets_the_merged_detections_in_its_own_pixels(detector: Detector) -> None:
    data = encode_png(_scene())
    before = value(detector, "images_total", outcome="ok") or 0.0
    result = await _detect(detector, data)
    assert result.detections.boxes_xyxy.tolist() == _expected(data, TileSize(200, 150))
    assert (result.width, result.height) == (700, 500)
    assert len(result.detections) > 20
    await asyncio.sleep(0)
    assert value(detector, "images_total", outcome="ok") == before + 1
    assert value(detector, "tile_grid_size_sum") == 5 * 4


async def test_tiles_equal_images_that_a_client_cuts_and_sends(detector: Detector) -> None:
    scene = _scene()
    size = (scene.shape[0], scene.shape[1])
    regions = [Region(0, 0, size[1], size[0]), *tile_regions(size, TileSize(200, 150), 0.2)]
    parts = []
    for region in regions:
        image = encode_png(scene[region.top : region.bottom, region.left : region.right])
        plain = await detector.detect(image, DetectOptions(threshold=0.0), request_id="cut")
        assert (plain.height, plain.width) == region.size
        parts.append(Part(region, shifted(plain.detections, region)))
    expected = merge_detections(parts, size).keep(slice(100))
    found = (await _detect(detector, encode_png(scene))).detections
    np.testing.assert_array_equal(found.boxes_xyxy, expected.boxes_xyxy)
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.labels, expected.labels)


async def test_many_detections_are_merged_outside_of_the_event_loop(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def merged(*arguments: Any) -> Detections:
        threads.append(threading.current_thread())
        return merge_selected(*arguments)

    monkeypatch.setattr(tiled_images, "merge_selected", merged)
    few = await _detect(detector, encode_png(_scene(200, 250)))
    many = await _detect(detector, encode_png(_scene()))
    assert 0 < len(few.detections) < len(many.detections)
    assert threads[0] is threading.current_thread()
    assert threads[1] is not threading.current_thread()


async def test_tiles_lie_in_the_upright_image(detector: Detector) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    file = io.BytesIO()
    Image.fromarray(_scene()).save(file, "JPEG", exif=exif, quality=95)
    result = await _detect(detector, file.getvalue())
    assert (result.width, result.height) == (500, 700)
    assert result.detections.boxes_xyxy.tolist() == _expected(file.getvalue(), TileSize(200, 150))


async def test_an_image_that_needs_no_tiles_gets_the_usual_detections(detector: Detector) -> None:
    data = encode_png(_scene(150, 200))
    plain = await detector.detect(data, DetectOptions(threshold=0.0), request_id="plain")
    for tiles in (TILES, TileOptions()):
        options = DetectOptions(threshold=0.0, tiles=tiles)
        result = await detector.detect(data, options, request_id="tiled")
        assert result.detections.boxes_xyxy.tolist() == plain.detections.boxes_xyxy.tolist()


async def test_options_select_from_the_merged_detections(detector: Detector) -> None:
    data = encode_png(_scene())
    everything = await _detect(detector, data)
    options = DetectOptions(threshold=0.9, max_detections=7, tiles=TILES)
    best = await detector.detect(data, options, request_id="tiled")
    assert len(best.detections) == 7
    assert best.detections.scores.min() >= np.float32(0.9)
    label = FAKE_MODEL.labels[int(everything.detections.labels[0])]
    options = DetectOptions(threshold=0.0, labels=(label,), tiles=TILES)
    some = await detector.detect(data, options, request_id="tiled")
    assert {FAKE_MODEL.labels[int(each)] for each in some.detections.labels} == {label}


async def test_stages_add_up_to_the_total(detector: Detector) -> None:
    started = time.monotonic()
    result = await _detect(detector, encode_png(_scene()), read_ms=3.0)
    wall_ms = (time.monotonic() - started) * 1000
    stages = result.timings._asdict()
    total = stages.pop("total")
    assert total == pytest.approx(sum(stages.values()))
    assert min(stages.values()) >= 0
    assert 3.0 < total <= wall_ms + 3.0 + 1.0


async def test_several_images_at_once_get_their_own_detections(detector: Detector) -> None:
    images = [encode_png(np.roll(_scene(300, 400), 50 * shift, axis=1)) for shift in range(6)]
    results = await asyncio.gather(*(_detect(detector, data) for data in images))
    for data, result in zip(images, results, strict=True):
        assert result.detections.boxes_xyxy.tolist() == _expected(data, TileSize(200, 150))


async def test_too_many_tiles_are_refused_with_the_limit(detector: Detector) -> None:
    options = DetectOptions(tiles=TileOptions((64, 64)))
    with pytest.raises(InvalidOptions, match="at most 40"):
        await detector.detect(encode_png(_scene()), options, request_id="tiled")


async def test_tiles_of_an_explained_detection_are_refused(detector: Detector) -> None:
    options = DetectOptions(explain=1, tiles=TILES)
    with pytest.raises(InvalidOptions, match="explain"):
        await detector.detect(solid_png((1, 2, 3)), options, request_id="tiled")


async def test_one_tile_that_fails_fails_the_request(detector: Detector) -> None:
    scene = _scene()
    scene[350:, 500:] = (0xFE, 0x01, 0x02)  # the last tile begins at (500, 350)
    with pytest.raises(InferenceFailed):
        await _detect(detector, encode_png(scene))
    await _wait_for_slots(detector)
    assert len((await _detect(detector, encode_png(_scene()))).detections)


async def test_a_deadline_or_a_client_that_leaves_ends_all_tiles(detector: Detector) -> None:
    data = encode_png(_scene())
    with pytest.raises(DeadlineExceeded):
        await _detect(detector, data, deadline=time.monotonic() + 0.01)
    task = asyncio.create_task(_detect(detector, data))
    while not value(detector, "slots_in_use"):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await _wait_for_slots(detector)
    assert value(detector, "queue_depth") == 0


async def test_tiles_that_wait_for_those_of_two_others_delay_nobody(detector: Detector) -> None:
    data, plain = encode_png(_scene()), solid_png((1, 2, 3))
    turns = detector._stages._tiled._turns
    async with turns, turns:  # as if held by images that take long
        # Alone: tiles behind others may be refused at once, by the predicted time of each tile.
        with pytest.raises(DeadlineExceeded):
            await _detect(detector, data, deadline=time.monotonic() + 0.1)
        waiting = asyncio.create_task(_detect(detector, data))
        assert len((await detector.detect(plain, DetectOptions(0.0), request_id="x")).detections)
        assert not waiting.done()
    assert (await waiting).detections.boxes_xyxy.tolist() == _expected(data, TileSize(200, 150))


async def test_tiles_survive_the_death_of_the_engine(detector: Detector) -> None:
    data = encode_png(_scene())
    task = asyncio.create_task(_detect(detector, data))
    while not value(detector, "slots_in_use"):
        await asyncio.sleep(0)
    await asyncio.sleep(0.02)
    (pid,) = detector.served.engine_pids
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    result = await task
    assert result.detections.boxes_xyxy.tolist() == _expected(data, TileSize(200, 150))
    while not detector.ready:
        await asyncio.sleep(0.01)
