"""The memory limit that decoder processes share."""

from __future__ import annotations

import asyncio

from service.decoding.budget import Budget


async def test_the_budget_is_granted_in_order_and_never_twice() -> None:
    budget = Budget(10)
    assert await budget.take(6) == 6
    second, third = asyncio.create_task(budget.take(5)), asyncio.create_task(budget.take(1))
    await asyncio.sleep(0)
    assert not second.done() and not third.done()  # the small one does not overtake
    budget.give_back(6)
    assert (await second, await third) == (5, 1)


async def test_a_request_larger_than_the_budget_gets_all_of_it() -> None:
    budget = Budget(10)
    assert await budget.take(1000) == 10
    next_one = asyncio.create_task(budget.take(1))
    await asyncio.sleep(0)
    assert not next_one.done()
    budget.give_back(10)
    assert await next_one == 1


async def test_a_cancelled_wait_makes_room_for_the_next() -> None:
    budget = Budget(10)
    await budget.take(8)
    large, small = asyncio.create_task(budget.take(9)), asyncio.create_task(budget.take(2))
    await asyncio.sleep(0)
    large.cancel()
    assert await small == 2


async def test_a_wait_that_is_cancelled_as_it_is_granted_takes_nothing() -> None:
    budget = Budget(10)
    await budget.take(10)
    late = asyncio.create_task(budget.take(4))
    await asyncio.sleep(0)
    budget.give_back(10)
    late.cancel()
    await asyncio.gather(late, return_exceptions=True)
    assert await budget.take(10) == 10


async def test_the_most_urgent_wait_is_granted_first() -> None:
    budget = Budget(10)
    await budget.take(10)
    waits = [asyncio.create_task(budget.take(10, urgency)) for urgency in (5.0, 1.0, 5.0, 3.0)]
    await asyncio.sleep(0)
    for expected in (1, 3, 0, 2):
        budget.give_back(10)
        assert await waits[expected] == 10


async def test_waits_that_are_cancelled_together_take_nothing() -> None:
    """Each of them is cancelled when the first of them leaves, and runs only later."""
    budget = Budget(10)
    await budget.take(8)
    waits = [asyncio.create_task(budget.take(amount)) for amount in (9, 2, 1)]
    await asyncio.sleep(0)
    for wait in waits:
        wait.cancel()
    outcomes = await asyncio.gather(*waits, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 3
    assert budget.try_take(2)


async def test_what_is_given_back_goes_past_a_wait_that_is_being_cancelled() -> None:
    budget = Budget(10)
    await budget.take(10)
    leaving, staying = asyncio.create_task(budget.take(5)), asyncio.create_task(budget.take(6))
    await asyncio.sleep(0)
    leaving.cancel()
    budget.give_back(10)
    assert await staying == 6
    await asyncio.gather(leaving, return_exceptions=True)
    assert budget.try_take(4)
