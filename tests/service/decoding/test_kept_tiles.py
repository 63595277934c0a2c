"""Tiles that are kept: their memory is counted and freed, whoever ends first."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from model.images.decode import ImageLimits
from model.images.errors import InvalidImage
from model.images.limits import Cost
from service.decoding.grants import Grants
from service.decoding.kept_tiles import KeptTiles, Region
from service.decoding.pool import DecoderPool
from service.decoding.tasks import Tile
from service.ipc.child_process import children_of
from service.ipc.slot_pool import SlotPool
from service.ipc.slots import SlotMemory, slot_layout
from tests.support.fake_device import FAKE_MODEL
from tests.support.images import encode_png

CONFIG, LIMITS = FAKE_MODEL.config, ImageLimits(10**8, 10**9)
REGIONS: tuple[Region, ...] = tuple((left, 0, left + 100, 100) for left in range(0, 400, 50))
SCENE = np.random.default_rng(1).integers(0, 256, (100, 500, 3), np.uint8)


@pytest_asyncio.fixture
async def pool() -> AsyncIterator[DecoderPool]:
    made = DecoderPool(1, 256 << 20, 10**7)
    made.start()
    yield made
    made.close()


async def _keep(pool: DecoderPool, data: bytes) -> KeptTiles | None:
    return await pool.keep_tiles(data, CONFIG, LIMITS, REGIONS)


def _free_bytes(pool: DecoderPool) -> int:
    return pool._grants._memory._free


def _mapping_processes(pool: DecoderPool, inode: int) -> int:
    """How many decoders map a memory file."""
    template = pool._dispatcher._workers._template
    assert template is not None
    maps = [Path(f"/proc/{pid}/maps").read_text() for pid in children_of(template.pid)]
    return sum(f" {inode} " in text for text in maps)


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.002)


async def test_kept_tiles_have_the_pixels_of_tiles_in_slots(pool: DecoderPool) -> None:
    slots = SlotPool(SlotMemory.create(slot_layout(CONFIG, 8)))
    data, before = encode_png(SCENE), _free_bytes(pool)
    kept = await _keep(pool, data)
    assert kept is not None and kept.decode_seconds > 0
    assert before - _free_bytes(pool) >= kept.num_tiles * 100 * 100
    inode = os.fstat(kept.tiles[0].lease.memory.fd).st_ino
    assert _mapping_processes(pool, inode) == 1
    leases = [slots.acquire() for _ in REGIONS]
    moved = [*kept.move(leases[:3]), *kept.move(leases[3:])]
    assert kept.num_left == 0
    kept.close()
    assert _free_bytes(pool) == before
    await _until(lambda: _mapping_processes(pool, inode) == 0)
    direct = SlotPool(SlotMemory.create(slot_layout(CONFIG, 8)))
    tiles = [Tile(direct.acquire(), region) for region in REGIONS]
    expected = await pool.decode_tiles(data, CONFIG, LIMITS, tiles)
    assert tuple(moved) == expected.images
    for lease, tile, image in zip(leases, tiles, moved, strict=True):
        np.testing.assert_array_equal(lease.pixels(image.size), tile.lease.pixels(image.size))
    slots.close()
    direct.close()


async def test_memory_of_tiles_is_freed_after_a_failure_or_a_cancelled_request(
    pool: DecoderPool,
) -> None:
    data, before = encode_png(SCENE), _free_bytes(pool)
    with pytest.raises(InvalidImage):
        await _keep(pool, data[: len(data) // 2])
    assert _free_bytes(pool) == before
    task = asyncio.create_task(_keep(pool, data))
    while not pool._dispatcher._busy:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await _until(lambda: _free_bytes(pool) == before)
    kept = await _keep(pool, data)
    assert kept is not None
    kept.close()


async def test_an_image_that_needs_the_memory_itself_gets_it(
    pool: DecoderPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would wait for the memory that its own tiles hold."""
    data, before = encode_png(SCENE), _free_bytes(pool)
    grants: Grants = pool._grants
    monkeypatch.setattr(grants, "without_asking", grants.without_asking._replace(memory_bytes=1))
    monkeypatch.setattr(grants, "for_large_images", 1_000_000)
    assert await _keep(pool, encode_png(np.tile(SCENE, (4, 1, 1)))) is None
    assert _free_bytes(pool) == before
    monkeypatch.setattr(grants, "for_large_images", before)
    kept = await _keep(pool, data)
    assert kept is not None
    kept.close()


async def test_memory_that_is_in_use_is_not_taken(pool: DecoderPool) -> None:
    memory = pool._grants.try_keep(_free_bytes(pool))
    assert memory is not None
    assert await _keep(pool, encode_png(SCENE)) is None
    memory.give_back()
    kept = await _keep(pool, encode_png(SCENE))
    assert kept is not None
    kept.close()


async def test_tiles_are_closed_for_an_image_that_needs_all_memory(pool: DecoderPool) -> None:
    kept = await _keep(pool, encode_png(SCENE))
    assert kept is not None and kept.num_left == len(REGIONS)
    everything = Cost(pool._grants.for_large_images, 0.0)
    async with asyncio.timeout(60):
        (give_back,) = await pool._grants.take(everything, 0)
    assert kept.num_left == 0
    kept.close()
    give_back()
    assert _free_bytes(pool) == everything.memory_bytes


async def test_keeping_tiles_does_not_block_a_more_urgent_image(
    pool: DecoderPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiles took memory, their decoding waits for the image, and the image for the memory."""
    grants, before = pool._grants, _free_bytes(pool)
    monkeypatch.setattr(grants, "without_asking", grants.without_asking._replace(memory_bytes=1))
    keeping = asyncio.create_task(_keep(pool, encode_png(SCENE)))
    while _free_bytes(pool) == before:
        await asyncio.sleep(0)
    async with asyncio.timeout(60):
        (give_back,) = await grants.take(Cost(before, 0.0), -1)
        give_back()
        kept = await keeping
    if kept is not None:  # otherwise it had been decoded, and its memory was needed
        kept.close()
    assert _free_bytes(pool) == before
