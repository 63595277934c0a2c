"""What a decoder may take for one image."""

from __future__ import annotations

import asyncio

import pytest

from model.images.limits import Cost
from service.decoding.grants import Grants

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
