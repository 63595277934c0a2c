"""A load generator in a process of its own: cheap, open-loop, and it checks every answer.

    python -m benchmarks.serving.load --port 8000 --path /detect --rate 100 --seconds 10

Open loop (`--rate`): requests leave when the seeded schedule says so, however slow the answers
are; a request that finds every connection busy waits for one, and its latency counts from the
time when it was meant to leave. Closed loop (`--in-flight`): so many requests are always under
way, which is how the most throughput is found. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import uvloop

from benchmarks.serving.images import Photo, make_photos
from benchmarks.serving.load_loop import Exchange, Load, schedule
from benchmarks.serving.wire_formats import DIALECTS, Dialect

_MOST_CONNECTIONS = 256
_OK = 200


@dataclass(frozen=True)
class Report:
    """What a run saw; latencies in milliseconds, of right answers alone."""

    seconds: float  # from the first intended start to the last answer
    sent: int
    right: int  # answers, each compared with what its own photo must give
    wrong: int  # 200 with another answer
    refused: int  # 429 and 503
    failed: int  # other statuses, broken connections, no answer at all
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    # From sending (this generator's timers are a millisecond late), less the answer's decode time.
    added_p50_ms: float | None
    load_cpu_seconds: float  # what this generator spent

    @property
    def goodput(self) -> float:
        """Right answers a second."""
        return self.right / self.seconds


def judge(
    exchanges: Sequence[Exchange], photos: Sequence[Photo] | None, dialect: Dialect
) -> Report:
    """Compares each answer with what its own photo must give (None: takes any)."""
    counts = {"right": 0, "wrong": 0, "refused": 0, "failed": 0}
    latencies: list[float] = []
    added: list[float] = []
    for exchange in exchanges:
        photo = None if photos is None else photos[exchange.photo]
        verdict = _judge_one(exchange, photo, dialect)
        counts[verdict] += 1
        if verdict == "right":
            latencies.append(exchange.latency_ms)
            decode_ms = _decode_ms(exchange)
            if decode_ms is not None:
                added.append((exchange.done - exchange.sent) * 1000 - decode_ms)
    first = min((exchange.intended for exchange in exchanges), default=0.0)
    last = max((exchange.done for exchange in exchanges), default=first)
    return Report(
        seconds=max(last - first, 1e-9),
        sent=len(exchanges),
        **counts,
        p50_ms=percentile(latencies, 0.50),
        p90_ms=percentile(latencies, 0.90),
        p99_ms=percentile(latencies, 0.99),
        max_ms=percentile(latencies, 1.0),
        added_p50_ms=percentile(added, 0.5) if added else None,
        load_cpu_seconds=time.process_time(),
    )


def _judge_one(exchange: Exchange, photo: Photo | None, dialect: Dialect) -> str:
    if exchange.status in (429, 503):
        return "refused"
    if exchange.status != _OK:
        return "failed"
    try:
        found = dialect.read(exchange.headers or {}, exchange.body)
    except (ValueError, KeyError, TypeError, IndexError):
        return "wrong"
    return "right" if photo is None or found == photo.found else "wrong"


def _decode_ms(exchange: Exchange) -> float | None:
    """What the answer says of its decoding, where it says so (this service does)."""
    timing = (exchange.headers or {}).get(b"server-timing", b"").decode()
    for stage in timing.split(", "):
        name, _, duration = stage.partition(";dur=")
        if name == "decode":
            return float(duration)
    return None


def percentile(values: Sequence[float], share: float) -> float:
    """By nearest rank; NaN of nothing."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]


async def _run(options: argparse.Namespace, requests: Sequence[bytes]) -> list[Exchange]:
    load = Load(options.port, requests, options.connections)
    if options.in_flight:
        await load.open_connections(options.in_flight)
        await load.run_closed(options.in_flight, options.seconds)
    else:
        await load.open_connections(options.open_first)
        await load.run_open(schedule(options.rate, options.seconds, options.arrivals, options.seed))
    return load.exchanges


def main(arguments: Sequence[str]) -> int:
    """Runs one load and prints its report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--dialect", choices=sorted(DIALECTS), default="raw")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rate", type=float, default=0.0, help="open loop: requests a second")
    parser.add_argument("--in-flight", type=int, default=0, help="closed loop: requests at once")
    parser.add_argument("--arrivals", choices=("poisson", "constant"), default="poisson")
    parser.add_argument(
        "--unchecked", action="store_true", help="for a real model: any answer of 200 is right"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--connections", type=int, default=_MOST_CONNECTIONS)
    parser.add_argument("--open-first", type=int, default=32, help="connections made beforehand")
    options = parser.parse_args(arguments)
    if (options.rate > 0) == (options.in_flight > 0):
        parser.error("give either --rate or --in-flight")
    photos, dialect = make_photos(), DIALECTS[options.dialect]
    requests = [dialect.request(photo.data, options.path) for photo in photos]
    prepared = time.process_time()
    exchanges = uvloop.run(_run(options, requests))
    spent = time.process_time() - prepared
    report = judge(exchanges, None if options.unchecked else photos, dialect)
    print(json.dumps(asdict(report) | {"load_cpu_seconds": spent, "goodput": report.goodput}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
