from __future__ import annotations

import asyncio

import pytest

from service.usage import UseCounter


async def test_wait_for_zero_returns_after_the_last_user() -> None:
    users = UseCounter()
    await users.wait_for_zero()  # returns at once
    with users:
        waiting = asyncio.create_task(users.wait_for_zero())
        with users:
            assert users.count == 2
        await asyncio.sleep(0)
        assert not waiting.done()
    await asyncio.wait_for(waiting, 120)


async def test_wait_for_zero_waits_for_a_user_that_follows_at_once() -> None:
    users = UseCounter()
    with users:
        waiting = asyncio.create_task(users.wait_for_zero())
        await asyncio.sleep(0)
    with users:  # before the waiting task runs
        await asyncio.sleep(0)
        assert not waiting.done()
    await asyncio.wait_for(waiting, 120)


def test_on_zero_is_called_after_an_exception_too() -> None:
    counts: list[int] = []
    users = UseCounter(on_zero=lambda: counts.append(users.count))
    with users:
        with pytest.raises(ValueError, match="left"), users:
            raise ValueError("left")
        assert counts == []
    assert counts == [0]
    with users:
        pass
    assert counts == [0, 0]
