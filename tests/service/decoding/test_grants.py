"""What a decoder may take for one image."""

from __future__ import annotations

import asyncio

import pytest

from model.images.limits import Cost
from service.decoding.grants import Grants, KeptMemory

MIB = 1 << 20
LONG = 100.0  # seconds


async def test_cheap_images_need_no_grant() -> None:
    grants = Grants(90 * MIB, 2)
    assert grants.without_asking.memory_bytes == 15 * MIB
    assert not grants.is_long(Cost(MIB, 0.01))
    assert await grants.take(Cost(MIB, 0.01), 0) == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Cost(45 * MIB, 0.01), Cost(30 * MIB, 0.01)),  # memory
        (Cost(1, LONG), Cost(1, LONG)),  # time
        (Cost(40 * MIB, LONG), Cost(1, LONG)),
        (Cost(1000 * MIB, LONG), Cost(1000 * MIB, LONG)),
    ],
)
async def test_costly_images_wait_for_each_other(first: Cost, second: Cost) -> None:
    grants = Grants(90 * MIB, 1)
    release = await grants.take(first, 0)
    waiting = asyncio.create_task(grants.take(second, 0))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    for give_back in release:
        give_back()
    assert await waiting


async def test_a_cancelled_wait_gives_back_what_it_had() -> None:
    grants = Grants(90 * MIB, 1)
    release = await grants.take(Cost(1, LONG), 0)
    waiting = asyncio.create_task(
        grants.take(Cost(45 * MIB, LONG), 0)
    )  # has memory, waits for time
    for _ in range(5):
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    async with asyncio.timeout(60):
        await grants.take(Cost(45 * MIB, 0.01), 0)
    for give_back in release:
        give_back()
    async with asyncio.timeout(60):
        await grants.take(Cost(1, LONG), 0)


def _keep(grants: Grants, num_bytes: int) -> KeptMemory:
    kept = grants.try_keep(num_bytes)
    assert kept is not None
    kept.on_needed = kept.give_back
    return kept


def _is_needed(kept: KeptMemory) -> bool:
    return kept.is_needed


async def _granted(grants: Grants, num_bytes: int, kept: KeptMemory | None = None) -> None:
    for give_back in await grants.take(Cost(num_bytes, 0.01), 0, kept):
        give_back()


@pytest.mark.parametrize("busy_mib", [0, 10])
async def test_an_image_gets_kept_memory_only_if_it_does_not_fit_next_to_it(busy_mib: int) -> None:
    grants = Grants(80 * MIB, 3)
    kept = [_keep(grants, 5 * MIB), _keep(grants, 5 * MIB)]
    release = await grants.take(Cost(20 * MIB, 0.01), 0)
    waiting = asyncio.create_task(_granted(grants, (20 + busy_mib) * MIB))
    await asyncio.sleep(0)
    assert not waiting.done()  # it waits for the other image
    assert not any(map(_is_needed, kept))
    too_large = asyncio.create_task(_granted(grants, 31 * MIB))
    await asyncio.sleep(0)
    assert all(map(_is_needed, kept))
    release[0]()
    async with asyncio.timeout(60):
        await asyncio.gather(waiting, too_large)
    kept[0].give_back()  # again
    assert grants.try_keep(40 * MIB) is not None


async def test_a_task_that_waits_for_more_does_not_hold_what_it_keeps() -> None:
    grants = Grants(80 * MIB, 3)
    release = await grants.take(Cost(20 * MIB, 0.01), 0)
    kept = grants.try_keep(5 * MIB)
    assert kept is not None
    decoding = asyncio.create_task(grants.take(Cost(20 * MIB, 0.01), 1, kept))
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        await _granted(grants, 20 * MIB)  # more urgent
        release[0]()
        release = await decoding
        assert not _is_needed(kept)
        needs_all = asyncio.create_task(_granted(grants, 40 * MIB))
        await asyncio.sleep(0)
        assert _is_needed(kept)
        release[0]()
        kept.give_back()
        await needs_all


async def test_memory_that_was_taken_before_an_image_which_needs_it_is_marked() -> None:
    grants = Grants(80 * MIB, 3)
    kept = grants.try_keep(5 * MIB)
    assert kept is not None
    release = await grants.take(Cost(30 * MIB, 0.01), 0)
    decoding = asyncio.create_task(grants.take(Cost(20 * MIB, 0.01), 0, kept))
    await asyncio.sleep(0)
    needs_all = asyncio.create_task(_granted(grants, 40 * MIB))
    await asyncio.sleep(0)
    assert not _is_needed(kept)  # nothing is kept yet
    release[0]()
    release = await decoding
    assert _is_needed(kept)
    release[0]()
    kept.give_back()
    async with asyncio.timeout(60):
        await needs_all
