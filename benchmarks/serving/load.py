"""A load generator, run as its own process: low CPU use, open or closed loop, checked responses.

    python -m benchmarks.serving.load --port 8000 --path /detect --rate 100 --seconds 10

Open loop (`--rate`): requests are sent by a seeded schedule that does not depend on responses. If
all connections are busy, a request waits for one; its latency counts from its scheduled time.
Closed loop (`--in-flight`): a constant number of requests is in flight, which measures the highest
throughput. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop

from benchmarks.serving.images import EncodedImage, make_images
from benchmarks.serving.wire_formats import WIRE_FORMATS, WireFormat
from service.load.loop import Exchange, Load, schedule
from service.load.report import percentile

_MAX_CONNECTIONS = 256
_OK = 200


@dataclass(frozen=True)
class Report:
    """The results of a run; latencies in milliseconds, of right responses only."""

    seconds: float  # from the first scheduled start to the last response
    sent: int
    right: int  # 200 with the detections of the request's image
    wrong: int  # 200 with others
    refused: int  # 429 and 503
    failed: int  # other statuses, broken connections, no response
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    # Counted from sending (this generator's timers are up to a millisecond late), minus the decode
    # time that the response reports.
    added_p50_ms: float | None
    load_cpu_seconds: float  # of this generator

    @property
    def goodput(self) -> float:
        """Right responses per second."""
        return self.right / self.seconds


def judge(
    exchanges: Sequence[Exchange], images: Sequence[EncodedImage] | None, wire_format: WireFormat
) -> Report:
    """Compares each response with the detections of its image (None: any response of 200)."""
    counts = {"right": 0, "wrong": 0, "refused": 0, "failed": 0}
    latencies: list[float] = []
    added: list[float] = []
    for exchange in exchanges:
        image = None if images is None else images[exchange.image]
        verdict = _judge_one(exchange, image, wire_format)
        counts[verdict] += 1
        if verdict == "right":
            latencies.append(exchange.latency_ms)
            decode_ms = _decode_ms(exchange)
            if decode_ms is not None:
                added.append((exchange.done - exchange.sent) * 1000 - decode_ms)
    first = min((exchange.scheduled for exchange in exchanges), default=0.0)
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


def _judge_one(exchange: Exchange, image: EncodedImage | None, wire_format: WireFormat) -> str:
    if exchange.status in (429, 503):
        return "refused"
    if exchange.status != _OK:
        return "failed"
    try:
        found = wire_format.read(exchange.headers or {}, exchange.body)
    except (ValueError, KeyError, TypeError, IndexError):
        return "wrong"
    return "right" if image is None or found == image.found else "wrong"


def _decode_ms(exchange: Exchange) -> float | None:
    """The decode time in the response's Server-Timing header; None without one."""
    timing = (exchange.headers or {}).get(b"server-timing", b"").decode()
    for stage in timing.split(", "):
        name, _, duration = stage.partition(";dur=")
        if name == "decode":
            return float(duration)
    return None


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
    parser = argparse.ArgumentParser(description="Send load to an inference server.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--wire-format", choices=sorted(WIRE_FORMATS), default="raw")
    parser.add_argument("--images", type=Path, help="folder of JPEG files; implies --unchecked")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rate", type=float, default=0.0, help="open loop: requests per second")
    parser.add_argument("--in-flight", type=int, default=0, help="closed loop: requests in flight")
    parser.add_argument("--arrivals", choices=("poisson", "constant"), default="poisson")
    parser.add_argument(
        "--unchecked", action="store_true", help="for a real model: any response of 200 is right"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--connections", type=int, default=_MAX_CONNECTIONS)
    parser.add_argument("--open-first", type=int, default=32, help="connections opened first")
    options = parser.parse_args(arguments)
    if (options.rate > 0) == (options.in_flight > 0):
        parser.error("give either --rate or --in-flight")
    wire_format = WIRE_FORMATS[options.wire_format]
    images = None if options.unchecked or options.images else make_images()
    if options.images:
        files = [path.read_bytes() for path in sorted(options.images.glob("*.jpg"))]
    else:
        files = [image.data for image in images or make_images()]
    requests = [wire_format.request(data, options.path) for data in files]
    prepared = time.process_time()
    exchanges = uvloop.run(_run(options, requests))
    spent = time.process_time() - prepared
    report = judge(exchanges, images, wire_format)
    print(json.dumps(asdict(report) | {"load_cpu_seconds": spent, "goodput": report.goodput}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
