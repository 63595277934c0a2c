"""Tiles for which no slots are free are decoded once, within the memory of the decoders."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio

from model.images.limits import Cost
from service.core.detector import Detector
from service.core.tiling.grid import TileSize
from service.decoding import messages, pool
from service.decoding.dispatch import Dispatcher
from service.decoding.grants import Grants, KeptMemory
from service.decoding.kept_tiles import KeptTiles
from service.decoding.messages import Message
from service.decoding.tasks import Task
from service.ipc.slot_pool import SlotLease
from service.ipc.slots import SlotImage
from service.types import DetectOptions, TileOptions
from tests.service.core.test_tiled_detector import _expected, _scene
from tests.support.fake_service import fake_settings, open_fake_detector
from tests.support.images import encode_png

pytestmark = pytest.mark.asyncio(loop_scope="module")

OPTIONS = DetectOptions(threshold=0.0, tiles=TileOptions((200, 150), 0.2))
TILES = 20
TILE_BYTES = 112 * 152 * 3  # at least, of a tile as the fake model resizes it


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def detector() -> AsyncIterator[Detector]:
    """With so few slots that tiles get none but that of their image."""
    settings = fake_settings(max_tiles=40, slots=4, priority_slots=0)
    async with open_fake_detector(settings) as detector:
        yield detector


@pytest.fixture
def tiles_decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tiles of each decoding."""
    run = Dispatcher.run
    counts: list[int] = []

    async def counting(self: Dispatcher, task: Task) -> Message:
        if task.kind == messages.DECODE_TILES:
            counts.append(len(task.leases))
        return await run(self, task)

    monkeypatch.setattr(Dispatcher, "run", counting)
    return counts


@pytest.fixture
def memory_taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes that were taken for tiles, and those given back as negative numbers."""
    keep, give_back = Grants.try_keep, KeptMemory.give_back
    changes: list[int] = []

    def recorded(self: Grants, num_bytes: int) -> KeptMemory | None:
        kept = keep(self, num_bytes)
        if kept is not None:
            changes.append(num_bytes)
        return kept

    def giving_back(self: KeptMemory) -> None:
        changes.append(-self.num_bytes)
        give_back(self)

    monkeypatch.setattr(Grants, "try_keep", recorded)
    monkeypatch.setattr(KeptMemory, "give_back", giving_back)
    return changes


async def _boxes(detector: Detector, data: bytes) -> list[list[float]]:
    result = await detector.detect(data, OPTIONS, request_id="tiled")
    boxes: list[list[float]] = result.detections.boxes_xyxy.tolist()
    return boxes


async def test_a_file_is_decoded_once_for_all_tiles(
    detector: Detector, tiles_decoded: list[int], memory_taken: list[int]
) -> None:
    data = encode_png(_scene())
    assert await _boxes(detector, data) == _expected(data, TileSize(200, 150))
    assert tiles_decoded == [TILES]
    taken, given_back = memory_taken
    assert taken == -given_back >= TILES * TILE_BYTES


async def test_tiles_that_the_memory_cannot_keep_are_decoded_later(
    detector: Detector,
    tiles_decoded: list[int],
    memory_taken: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = encode_png(_scene())
    await _boxes(detector, data)
    one, all_bytes = memory_taken[0] // TILES, fake_settings().decode_memory_bytes
    monkeypatch.setattr(pool, "_KEPT_SHARE", (all_bytes - all_bytes // 2) // (8 * one))
    tiles_decoded.clear()
    assert await _boxes(detector, data) == _expected(data, TileSize(200, 150))
    assert tiles_decoded == [8, 8, 4]
    assert sum(memory_taken) == 0


async def test_without_memory_each_group_of_tiles_is_decoded(
    detector: Detector, tiles_decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Grants, "try_keep", lambda *_: None)
    data = encode_png(_scene())
    assert await _boxes(detector, data) == _expected(data, TileSize(200, 150))
    assert tiles_decoded == [1] * TILES


async def test_tiles_whose_memory_an_image_needs_are_decoded_again(
    detector: Detector, tiles_decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    grants, move = detector._decoders._grants, KeptTiles.move
    images: list[asyncio.Task[None]] = []

    async def large_image() -> None:
        for give_back in await grants.take(Cost(grants.for_large_images, 0.0), 0):
            give_back()

    def moved(self: KeptTiles, leases: Sequence[SlotLease]) -> tuple[SlotImage, ...]:
        if not images:
            images.append(asyncio.create_task(large_image()))
        return move(self, leases)

    monkeypatch.setattr(KeptTiles, "move", moved)
    data = encode_png(_scene())
    assert await _boxes(detector, data) == _expected(data, TileSize(200, 150))
    assert images[0].done()
    assert tiles_decoded == [TILES, TILES - 1]
