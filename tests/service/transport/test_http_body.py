"""Limits of bodies that arrive slowly, and of all bodies together, by a clock of the test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from starlette.types import Message, Receive

from service.errors import Overloaded
from service.transport import http_body
from service.transport.http_body import BodyAccount, BodyLimits, BodyMemory, read_body
from service.transport.http_request import RequestRefused
from tests.support.virtual_time import run_in_virtual_time

LIMITS = BodyLimits(max_bytes=10**9, max_pause_s=30, min_bytes_per_s=1024, max_s=300)


class Body:
    """Sends chunks at given times of the loop's clock."""

    def __init__(self, *chunks: tuple[float, int], complete: bool = False) -> None:
        self._chunks = list(chunks)
        self._complete = complete

    async def receive(self) -> Message:
        if not self._chunks:
            if not self._complete:
                await asyncio.get_running_loop().create_future()
            return {"type": "http.request", "body": b""}
        at, num_bytes = self._chunks.pop(0)
        await asyncio.sleep(max(0.0, at - asyncio.get_running_loop().time()))
        return {"type": "http.request", "body": bytes(num_bytes), "more_body": True}


@pytest.fixture(autouse=True)
def _loop_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    class Time:
        @staticmethod
        def monotonic() -> float:
            return asyncio.get_running_loop().time()

    monkeypatch.setattr(http_body, "time", Time)


async def _read(receive: Receive) -> bytes:
    """Reads a body with as much memory as it may take."""
    with BodyMemory(LIMITS.max_bytes).account() as account:
        return await read_body({}, receive, LIMITS, None, account)


def _refused_after(receive: Receive) -> tuple[float, str]:
    async def read() -> tuple[float, str]:
        loop = asyncio.get_running_loop()
        started = loop.time()
        with pytest.raises(RequestRefused) as refused:
            await _read(receive)
        return loop.time() - started, str(refused.value)

    return run_in_virtual_time(read())


def test_a_fast_start_earns_no_time_for_a_slow_rest() -> None:
    drip = [(float(second), 10) for second in range(1, 400)]
    seconds, reason = _refused_after(Body((0, 60_000_000), *drip).receive)
    assert 30 <= seconds < 32
    assert "less than 1024 bytes a second" in reason


def test_a_body_of_the_minimum_rate_ends_at_the_maximum_time() -> None:
    steady = [(float(second), 2048) for second in range(1, 400)]
    seconds, reason = _refused_after(Body(*steady).receive)
    assert seconds == pytest.approx(300)
    assert "took more than 300 s" in reason


def test_a_pause_is_refused() -> None:
    seconds, reason = _refused_after(Body((0, 10_000_000)).receive)
    assert seconds == pytest.approx(30)
    assert "paused for more than 30 s" in reason


def test_a_pause_within_the_limit_is_accepted() -> None:
    body = Body((0, 10_000_000), (29, 10_000_000), (58, 1), complete=True)
    assert len(run_in_virtual_time(_read(body.receive))) == 20_000_001


class Bodies:
    """Accounts of one memory by a clock that the test moves."""

    def __init__(self, max_bytes: int) -> None:
        self.now = 0.0
        self.memory = BodyMemory(max_bytes, lambda: self.now)
        self.given_up: list[str] = []

    def begin(self, name: str, num_bytes: int) -> BodyAccount:
        account = self.memory.account()
        self.memory.begin(account, lambda: self.given_up.append(name))
        account.take(num_bytes)
        return account


def _after(bodies: Bodies, seconds: float) -> Callable[[str, int], BodyAccount]:
    bodies.now += seconds
    return bodies.begin


def test_the_body_that_began_first_gives_way() -> None:
    bodies = Bodies(100)
    first, second = bodies.begin("first", 60), bodies.begin("second", 40)
    _after(bodies, 6)("new", 50)
    assert bodies.given_up == ["first"]
    assert (first.held_bytes, second.held_bytes) == (0, 40)


def test_as_many_give_way_as_needed_and_no_more() -> None:
    bodies = Bodies(100)
    for number in range(10):
        bodies.begin(str(number), 10)
    _after(bodies, 6)("new", 25)
    assert bodies.given_up == ["0", "1", "2"]


def test_a_body_that_began_a_moment_ago_does_not_give_way() -> None:
    bodies = Bodies(100)
    bodies.begin("first", 100)
    with pytest.raises(Overloaded):
        _after(bodies, 4)("new", 1)
    assert not bodies.given_up


def test_a_complete_body_does_not_give_way() -> None:
    bodies = Bodies(100)
    bodies.memory.end(bodies.begin("first", 100))
    with pytest.raises(Overloaded):
        _after(bodies, 60)("new", 1)


def test_a_body_does_not_give_way_to_itself() -> None:
    bodies = Bodies(100)
    only = bodies.begin("only", 100)
    bodies.now = 60
    with pytest.raises(Overloaded):
        only.take(1)
    assert not bodies.given_up


def test_a_body_that_gives_way_is_refused_as_overload() -> None:
    async def slow_and_new() -> None:
        memory = BodyMemory(1000, asyncio.get_running_loop().time)
        with memory.account() as slow, memory.account() as new:
            slow_body = Body((0, 900))
            task = asyncio.create_task(read_body({}, slow_body.receive, LIMITS, None, slow))
            await asyncio.sleep(10)
            assert await read_body({}, Body((0, 500), complete=True).receive, LIMITS, None, new)
            with pytest.raises(Overloaded):
                await task

    run_in_virtual_time(slow_and_new())
