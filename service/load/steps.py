"""Rate steps until the service is saturated.

start -> twice as fast, ... -> saturated -> between the last two rates, twice
"""

from __future__ import annotations

import asyncio
import math
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from service.load.loop import Exchange, schedule
from service.load.report import StepReport, step_report

_FACTOR = 2.0
_REFINEMENTS = 2
_MAX_HALVINGS = 3  # if the first rate is too fast already
_MIN_REQUESTS = 10  # in a step
_MAX_SECONDS = 30.0  # of a step that is lengthened for them
_SIGNIFICANT_DIGITS = 2


class Generator(Protocol):
    """Sends requests by a schedule."""

    exchanges: list[Exchange]

    async def run_open(self, starts: Sequence[float]) -> None:
        """Sends one request at each of these times; waits for the responses."""


OpenGenerator = Callable[[], AbstractAsyncContextManager[Generator]]
_Step = Callable[[float], Coroutine[Any, Any, StepReport]]


@dataclass(frozen=True)
class Plan:
    """Which rates are offered.

    Attributes:
        rates: requests per second, one step each; empty: steps until the service is saturated.
        first_rate: of these.
        max_rate: likewise.
        step_seconds: duration of a step.
        seed: of the arrivals, a Poisson process.
    """

    rates: tuple[float, ...]
    first_rate: float
    max_rate: float
    step_seconds: float
    seed: int = 1


async def run_plan(
    plan: Plan,
    open_generator: OpenGenerator,
    usual_ms: float,
    on_step: Callable[[StepReport], None],
) -> list[StepReport]:
    """Runs the steps; SIGINT (Ctrl-C) ends them early.

    Args:
        plan: the rates.
        open_generator: opens a generator for one step.
        usual_ms: latency of a request without load.
        on_step: called after each step.

    Returns:
        The steps in the order in which they ran; the last one is `interrupted` after a SIGINT, or
        had no success.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, stop.set)
    reports: list[StepReport] = []

    async def step(rate: float) -> StepReport:
        report = await _run_step(plan, rate, open_generator, usual_ms, stop)
        reports.append(report)
        on_step(report)
        return report

    try:
        steps = _given(plan, step) if plan.rates else _search(plan, step)
        async for report in steps:
            if report.interrupted or not report.ok:  # without any success, the service is gone
                break
    finally:
        loop.remove_signal_handler(signal.SIGINT)
    return reports


async def _given(plan: Plan, step: _Step) -> AsyncIterator[StepReport]:
    for rate in plan.rates:
        yield await step(rate)


async def _search(plan: Plan, step: _Step) -> AsyncIterator[StepReport]:
    """Doubles the rate until the service is saturated, then tries rates in between."""
    sustained, saturated = None, None
    rate = plan.first_rate
    while saturated is None and rate <= plan.max_rate:
        report = await step(rate)
        yield report
        sustained, saturated = (sustained, rate) if report.saturated else (rate, saturated)
        rate *= _FACTOR
    for _ in range(_MAX_HALVINGS):
        if sustained is not None or saturated is None:
            break
        report = await step(saturated / _FACTOR)
        yield report
        if report.saturated:
            saturated /= _FACTOR
        else:
            sustained = saturated / _FACTOR
    for _ in range(_REFINEMENTS):
        if sustained is None or saturated is None:
            break
        between = rounded(math.sqrt(sustained * saturated))
        report = await step(between)
        yield report
        sustained, saturated = (sustained, between) if report.saturated else (between, saturated)


async def _run_step(
    plan: Plan, rate: float, open_generator: OpenGenerator, usual_ms: float, stop: asyncio.Event
) -> StepReport:
    seconds = max(plan.step_seconds, min(_MIN_REQUESTS / rate, _MAX_SECONDS))
    starts = schedule(rate, seconds, "poisson", plan.seed) or [0.0]
    async with open_generator() as generator:
        work = asyncio.ensure_future(generator.run_open(starts))
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
        interrupted = not work.done()
        stopped.cancel()
        work.cancel()
        await asyncio.gather(work, stopped, return_exceptions=True)
        if not interrupted:
            await work  # raises what went wrong in the generator itself
        return step_report(generator.exchanges, rate, seconds, usual_ms, interrupted=interrupted)


def rounded(rate: float) -> float:
    """A rate with two significant digits."""
    digits = _SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(rate))
    return round(rate, digits)


def sustained_rate(reports: Sequence[StepReport]) -> float | None:
    """The highest rate that did not saturate the service; None if none was."""
    kept = [each.offered_per_s for each in reports if not each.saturated and not each.interrupted]
    return max(kept, default=None)
