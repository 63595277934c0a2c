"""Rate steps: doubled until saturation, refined, and ended by Ctrl-C; without sleeping."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from service.load.loop import Exchange
from service.load.report import StepReport
from service.load.steps import Generator, Plan, rounded, run_plan, sustained_rate

LATENCY = 0.05


class Queue:
    """A generator whose requests are served one after the other, `capacity` per second."""

    def __init__(self, capacity: float, interrupt: bool = False) -> None:
        self.capacity, self.interrupt = capacity, interrupt
        self.exchanges: list[Exchange] = []

    async def run_open(self, starts: Sequence[float]) -> None:
        free = 0.0
        for start in starts:
            free = max(free, start) + 1 / self.capacity
            self.exchanges.append(
                Exchange(
                    0,
                    100 + start,
                    100 + start,
                    100 + free + LATENCY,
                    200,
                    None,
                    b'{"detections":[]}',
                )
            )
        if self.interrupt:
            self.exchanges[-1].done = 0.0
            signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(60)


def run(capacity: float, plan: Plan, interrupt: bool = False) -> tuple[list[StepReport], int]:
    seen: list[StepReport] = []

    @asynccontextmanager
    async def opened() -> AsyncIterator[Generator]:
        yield Queue(capacity, interrupt)

    reports = asyncio.run(run_plan(plan, opened, 1000 * LATENCY, seen.append))
    assert seen == reports
    return reports, len(reports)


def test_the_rate_doubles_until_saturation_and_is_refined() -> None:
    reports, _ = run(30.0, Plan((), 4.0, 1000.0, 20.0))
    rates = [each.offered_per_s for each in reports]
    assert rates[:4] == [4.0, 8.0, 16.0, 32.0]
    assert [each.saturated for each in reports[:3]] == [False] * 3
    assert all(16 < rate < 64 for rate in rates[4:])
    found = sustained_rate(reports)
    assert found is not None
    assert 16 <= found <= 36


def test_a_first_rate_that_is_too_fast_is_halved() -> None:
    reports, _ = run(1.0, Plan((), 4.0, 1000.0, 20.0))
    assert [each.offered_per_s for each in reports[:3]] == [4.0, 2.0, 1.0]
    reports, count = run(0.01, Plan((), 4.0, 1000.0, 20.0))
    assert (sustained_rate(reports), count) == (None, 4)


def test_the_highest_rate_ends_the_search() -> None:
    reports, _ = run(1e6, Plan((), 4.0, 16.0, 1.0))
    assert [each.offered_per_s for each in reports] == [4.0, 8.0, 16.0]
    assert sustained_rate(reports) == 16.0


def test_given_rates_run_in_their_order() -> None:
    reports, _ = run(10.0, Plan((50.0, 2.0), 1.0, 1.0, 10.0))
    assert [(each.offered_per_s, each.saturated) for each in reports] == [
        (50.0, True),
        (2.0, False),
    ]


def test_a_slow_step_takes_longer_for_ten_requests() -> None:
    reports, _ = run(100.0, Plan((0.5, 0.01), 1.0, 1.0, 1.0))
    assert [each.seconds for each in reports] == [20.0, 30.0]
    assert all(each.sent for each in reports)


def test_ctrl_c_ends_the_run_with_the_results_so_far() -> None:
    before = signal.getsignal(signal.SIGINT)
    reports, count = run(100.0, Plan((20.0, 40.0), 1.0, 1.0, 1.0), interrupt=True)
    assert (count, reports[0].interrupted) == (1, True)
    assert reports[0].sent == reports[0].ok > 0
    assert signal.getsignal(signal.SIGINT) == before


def test_a_step_without_any_success_ends_the_run() -> None:
    class Gone(Queue):
        async def run_open(self, starts: Sequence[float]) -> None:
            self.exchanges += [Exchange(0, 100 + start) for start in starts]

    @asynccontextmanager
    async def opened() -> AsyncIterator[Generator]:
        yield Gone(1.0)

    plan = Plan((5.0, 10.0), 1.0, 1.0, 2.0)
    (report,) = asyncio.run(run_plan(plan, opened, 50.0, lambda _step: None))
    assert report.errors == {"no response": report.sent}


@pytest.mark.parametrize(("rate", "text"), [(0.0123, "0.012"), (22.63, "23"), (1234.0, "1200")])
def test_rates_have_two_significant_digits(rate: float, text: str) -> None:
    assert f"{rounded(rate):g}" == text
