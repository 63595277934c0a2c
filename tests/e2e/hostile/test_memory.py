"""Images of many pixels: decoding takes the memory set aside for it, and not a share a thread."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.images.pool import MemoryBudget
from tests.e2e.hostile import bombs
from tests.support.pictures import solid_png
from tests.support.running import DEFAULTS, Service

MIB = 1 << 20
LARGE = 8
# The answers' own small change: connections, bodies, the resized pictures.
SLACK_BYTES = 192 * MIB


@pytest.mark.timeout(600)
def test_eight_pictures_of_100_megapixels_stay_within_the_budget() -> None:
    budget = {"decode_threads": "8", "decode_memory_bytes": str(1024 * MIB)}
    service = Service(**(DEFAULTS | budget | {"request_timeout_ms": "500000"}))
    picture = bombs.png(10_000, 10_000)
    try:
        service.wait_until_ready()
        before = service.rss_bytes()

        def post(data: bytes) -> int:
            return service.http.post(f"{service.url}/detect", content=data, timeout=500).status_code

        with ThreadPoolExecutor(LARGE) as clients:
            large = [clients.submit(post, picture) for _ in range(LARGE)]
            small = [post(solid_png((number, 1, 1))) for number in range(20)]
            waited = sum(not answer.done() for answer in large)
            assert [answer.result() for answer in large] == [200] * LARGE
        assert small == [200] * 20
        assert waited, "the small pictures were to be answered while large ones wait"
        assert service.rss_bytes("VmHWM") - before < 1024 * MIB + SLACK_BYTES
    finally:
        service.kill()


async def test_the_budget_is_given_in_turn_and_never_twice() -> None:
    budget = MemoryBudget(10)
    assert await budget.take(6) == 6
    second, third = asyncio.create_task(budget.take(5)), asyncio.create_task(budget.take(1))
    await asyncio.sleep(0)
    assert not second.done() and not third.done()  # the small one does not overtake
    budget.give_back(6)
    assert (await second, await third) == (5, 1)


async def test_what_is_larger_than_the_budget_gets_all_of_it() -> None:
    budget = MemoryBudget(10)
    assert await budget.take(1000) == 10
    next_one = asyncio.create_task(budget.take(1))
    await asyncio.sleep(0)
    assert not next_one.done()
    budget.give_back(10)
    assert await next_one == 1


async def test_who_gives_up_waiting_makes_room_for_the_next() -> None:
    budget = MemoryBudget(10)
    await budget.take(8)
    large, small = asyncio.create_task(budget.take(9)), asyncio.create_task(budget.take(2))
    await asyncio.sleep(0)
    large.cancel()
    assert await small == 2


async def test_who_gives_up_in_the_moment_of_its_turn_leaves_nothing_taken() -> None:
    budget = MemoryBudget(10)
    await budget.take(10)
    late = asyncio.create_task(budget.take(4))
    await asyncio.sleep(0)
    budget.give_back(10)
    late.cancel()
    await asyncio.gather(late, return_exceptions=True)
    assert await asyncio.wait_for(budget.take(10), 5) == 10
