"""Scaled JPEGs in the running service: whole images are scaled, tiles are not."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from model.images.decode import ImageLimits, JpegDecoding, decode_image
from model.images.regions import decode_regions
from service.core.detector import Detector
from service.core.tiling.grid import Region, TileSize, tile_regions
from service.core.tiling.merge import Part, merge_detections, shifted
from service.types import DetectOptions, TileOptions
from tests.support.fake_device import FAKE_MODEL, fake_detections
from tests.support.fake_service import EVERYTHING, fake_settings, open_fake_detector

pytestmark = pytest.mark.asyncio(loop_scope="module")

RULE, LIMITS = FAKE_MODEL.config, ImageLimits(10**9, 10**9)
WIDTH, HEIGHT = 2100, 1603


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def detector() -> AsyncIterator[Detector]:
    async with open_fake_detector(fake_settings(jpeg_decoding="scaled")) as detector:
        yield detector


@pytest.fixture(scope="module")
def upright_jpeg() -> bytes:
    """Noise, which is another image if it is scaled, to be rotated by 90 degrees."""
    noise = np.random.default_rng(8).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(noise).save(file, "JPEG", exif=exif, quality=60)
    return file.getvalue()


def _boxes(data: bytes, mode: JpegDecoding) -> list[list[float]]:
    decoded = decode_image(data, RULE, LIMITS, jpeg_decoding=mode)
    boxes: list[list[float]] = fake_detections(
        decoded.pixels, decoded.original_size
    ).boxes_xyxy.tolist()
    return boxes


async def test_a_whole_image_is_scaled_and_has_boxes_in_its_own_pixels(
    detector: Detector, upright_jpeg: bytes
) -> None:
    result = await detector.detect(upright_jpeg, EVERYTHING, request_id="scaled")
    assert (result.width, result.height) == (HEIGHT, WIDTH)
    assert result.detections.boxes_xyxy.tolist() == _boxes(upright_jpeg, "scaled")
    assert result.detections.boxes_xyxy.tolist() != _boxes(upright_jpeg, "exact")


async def test_tiles_are_cut_from_the_image_at_full_size(
    detector: Detector, upright_jpeg: bytes
) -> None:
    tile, pixels = TileSize(900, 1200), []
    options = DetectOptions(threshold=0.0, tiles=TileOptions(tile, 0.2))
    result = await detector.detect(upright_jpeg, options, request_id="tiled")
    whole = decode_image(upright_jpeg, RULE, LIMITS, jpeg_decoding="scaled")
    size = whole.original_size
    regions = tile_regions(size, tile, 0.2)

    def place(_number: int, shape: tuple[int, int]) -> np.ndarray:
        pixels.append(np.empty((*shape, 3), np.uint8))
        return pixels[-1]

    decode_regions(upright_jpeg, RULE, LIMITS, None, regions, place)
    parts = [Part(Region(0, 0, size[1], size[0]), fake_detections(whole.pixels, size))]
    for region, part in zip(regions, pixels, strict=True):
        parts.append(Part(region, shifted(fake_detections(part, region.size), region)))
    expected = merge_detections(parts, size).boxes_xyxy[:100]
    np.testing.assert_array_equal(result.detections.boxes_xyxy, expected)
