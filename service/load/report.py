"""Exchanges of one step -> its figures: throughput, latencies from the scheduled start, errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson

from service.load.loop import Exchange

_OK = 200
_NO_RESPONSE = "no response"
_NOT_DETECTIONS = "200 without detections"
_MAX_FAILED_SHARE = 0.01
_MAX_UNFINISHED_SHARE = 0.05
_MAX_UNFINISHED = 3  # of a step with few requests, in addition to those below
_MAX_USUAL_IN_FLIGHT = 2  # times the requests that are in flight at the usual latency


@dataclass(frozen=True)
class StepReport:
    """The figures of one rate; latencies in milliseconds, of successful responses."""

    offered_per_s: float
    seconds: float  # of the schedule
    sent: int
    ok: int
    ok_per_s: float  # from the first scheduled start to the last response
    p50_ms: float | None  # None: no response was successful
    p90_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    errors: Mapping[str, int]  # by kind
    unfinished: int  # requests without a response at the end of the schedule
    late_p99_ms: float  # of the generator itself, behind its schedule
    saturated: bool
    interrupted: bool


def percentile(values: Sequence[float], share: float) -> float:
    """The percentile by nearest rank; NaN for no values."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]


def step_report(
    exchanges: Sequence[Exchange],
    rate: float,
    seconds: float,
    usual_ms: float,
    *,
    interrupted: bool = False,
) -> StepReport:
    """Computes the figures of a step.

    A step is saturated if more than 1 % of its requests failed, or if a queue was left at its end:
    more unfinished requests than 5 %, and than a service that keeps up has in flight.

    Args:
        exchanges: of the step.
        rate: that was offered, requests per second.
        seconds: of the schedule.
        usual_ms: latency of a request without load.
        interrupted: whether the step was ended early; then requests without a response are left
            out, and it is not saturated.
    """
    if interrupted:
        exchanges = [each for each in exchanges if each.done]
    first = min((each.scheduled for each in exchanges), default=0.0)
    kinds = Counter(error_kind(each) for each in exchanges)
    ok = kinds.pop("", 0)
    latencies = [each.latency_ms for each in exchanges if not error_kind(each)]
    sent = len(exchanges)
    end = first + seconds
    unfinished = sum(not 0 < each.done <= end for each in exchanges)
    in_flight = _MAX_UNFINISHED + _MAX_USUAL_IN_FLIGHT * rate * usual_ms / 1000
    queued = unfinished > max(_MAX_UNFINISHED_SHARE * sent, in_flight)
    failed = sent - ok > _MAX_FAILED_SHARE * sent
    last = max((each.done for each in exchanges if each.done), default=first)
    return StepReport(
        offered_per_s=rate,
        seconds=round(seconds, 2),
        sent=sent,
        ok=ok,
        ok_per_s=round(ok / max(last - first, _shortest(seconds, interrupted)), 3),
        p50_ms=_figure(latencies, 0.5),
        p90_ms=_figure(latencies, 0.9),
        p99_ms=_figure(latencies, 0.99),
        max_ms=_figure(latencies, 1.0),
        errors=dict(kinds.most_common()),
        unfinished=unfinished,
        late_p99_ms=_figure([each.lag_ms for each in exchanges if each.sent], 0.99) or 0.0,
        saturated=not interrupted and (failed or queued),
        interrupted=interrupted,
    )


def error_kind(exchange: Exchange) -> str:
    """What went wrong: "429 overloaded", "no response"; empty for detections."""
    if exchange.error:
        return exchange.error
    if not exchange.status:
        return "" if exchange.done else _NO_RESPONSE
    try:
        document = orjson.loads(exchange.body)
    except orjson.JSONDecodeError:
        document = None
    found = document if isinstance(document, dict) else {}
    if exchange.status == _OK:
        return "" if "detections" in found else _NOT_DETECTIONS
    code = found.get("code")
    return f"{exchange.status} {code}" if isinstance(code, str) else str(exchange.status)


def _shortest(seconds: float, interrupted: bool) -> float:
    return 1e-3 if interrupted else seconds


def _figure(values: Sequence[float], share: float) -> float | None:
    return round(percentile(values, share), 2) if values else None
