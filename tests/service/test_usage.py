"""Who needs something at the moment."""

from __future__ import annotations

import asyncio

import pytest

from service.usage import UseCounter


async def test_gone_returns_when_the_last_one_has_left() -> None:
    users = UseCounter()
    await users.wait_for_zero()  # nobody came yet
    with users:
        waiting = asyncio.create_task(users.wait_for_zero())
        with users:
            assert users.count == 2
        await asyncio.sleep(0)
        assert not waiting.done()
    await asyncio.wait_for(waiting, 1)


async def test_gone_goes_on_waiting_for_one_that_came_at_once() -> None:
    users = UseCounter()
    with users:
        waiting = asyncio.create_task(users.wait_for_zero())
        await asyncio.sleep(0)
    with users:  # before the waiting task had its turn
        await asyncio.sleep(0)
        assert not waiting.done()
    await asyncio.wait_for(waiting, 1)


def test_the_last_one_that_leaves_is_told_of_whatever_made_it_leave() -> None:
    told: list[int] = []
    users = UseCounter(on_zero=lambda: told.append(users.count))
    with users:
        with pytest.raises(ValueError, match="left"), users:
            raise ValueError("left")
        assert told == []
    assert told == [0]
    with users:
        pass
    assert told == [0, 0]
