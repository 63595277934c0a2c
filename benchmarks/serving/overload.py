"""A minute at five times the capacity: goodput, latencies and memory.

The device is the fake device, which sleeps, so that it and not the CPU is the bottleneck. Goodput
counts responses within the deadline that the client sent, by the client's clock, as a share of
what the device can compute in full batches.

    python -m benchmarks.serving.overload --seconds 60
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path

from benchmarks.report import RESULTS, conditions, table, write_report
from benchmarks.serving.images import flat_png
from benchmarks.serving.service_process import SERVE_FAKE_DEVICE, Service, run_service
from service.load.loop import Exchange, Load, post_request, schedule
from service.load.report import percentile

FACTOR = 5
BASE_MS, PER_IMAGE_MS, MAX_BATCH_SIZE = 40, 40, 4
CAPACITY = MAX_BATCH_SIZE / (BASE_MS + PER_IMAGE_MS * MAX_BATCH_SIZE) * 1000  # images per second
_WARM_UP_SECONDS = 3.0
_MAX_CONNECTIONS = 4096  # so that no request waits for a connection
_SEED = 7
_ACCEPTED = frozenset({HTTPStatus.OK, HTTPStatus.GATEWAY_TIMEOUT})


@dataclass(frozen=True)
class Row:
    """Figures of one run."""

    deadline_ms: float
    offered_per_s: float
    goodput_share: float  # responses of 200 within their deadline / capacity
    completed: int  # 200
    in_time: int  # of those, within the deadline by the client's clock
    refused: int  # 429, before decoding
    expired: int  # 504
    other: int
    accepted_p99_ms: float
    refusal_p50_ms: float
    generator_lag_p99_ms: float  # delay of the load generator behind its schedule
    start_mib: float
    end_mib: float
    peak_mib: float


async def measure(service: Service, image: bytes, deadline_ms: float, seconds: float) -> Row:
    """Sends five times the capacity for `seconds`, after a warm-up at half the capacity."""
    await _load(service, image, 10_000, CAPACITY / 2, _WARM_UP_SECONDS)
    sizes = [service.memory_bytes()]
    sampler = asyncio.create_task(_sample(service, sizes))
    exchanges = await _load(service, image, deadline_ms, FACTOR * CAPACITY, seconds)
    sampler.cancel()
    sizes.append(service.memory_bytes())
    return _row(deadline_ms, seconds, exchanges, sizes)


async def _load(
    service: Service, image: bytes, timeout_ms: float, rate: float, seconds: float
) -> list[Exchange]:
    """Sends requests with a timeout, at a mean rate (per second)."""
    headers = {"Content-Type": "image/png", "X-Request-Timeout-Ms": f"{timeout_ms:g}"}
    load = Load(service.port, [post_request("/detect", image, headers)], _MAX_CONNECTIONS)
    await load.run_open(schedule(rate, seconds, "poisson", _SEED))
    load.close()
    return load.exchanges


async def _sample(service: Service, sizes: list[int]) -> None:
    while True:
        await asyncio.sleep(1)
        sizes.append(service.memory_bytes())


def _row(
    deadline_ms: float, seconds: float, exchanges: Sequence[Exchange], sizes: Sequence[int]
) -> Row:
    statuses = Counter(one.status for one in exchanges)
    accepted = [one.latency_ms for one in exchanges if one.status in _ACCEPTED]
    refusals = [one.latency_ms for one in exchanges if one.status == HTTPStatus.TOO_MANY_REQUESTS]
    in_time = sum(
        one.status == HTTPStatus.OK and one.latency_ms <= deadline_ms for one in exchanges
    )
    lags = [one.lag_ms for one in exchanges if one.sent]
    mib = 1024 * 1024
    return Row(
        deadline_ms=deadline_ms,
        offered_per_s=round(len(exchanges) / seconds, 1),
        goodput_share=round(in_time / seconds / CAPACITY, 3),
        completed=statuses[200],
        in_time=in_time,
        refused=statuses[429],
        expired=statuses[504],
        other=len(exchanges) - statuses[200] - statuses[429] - statuses[504],
        accepted_p99_ms=round(percentile(accepted, 0.99), 1),
        refusal_p50_ms=round(percentile(refusals, 0.5), 1),
        generator_lag_p99_ms=round(percentile(lags, 0.99), 1),
        start_mib=round(sizes[0] / mib, 1),
        end_mib=round(sizes[-1] / mib, 1),
        peak_mib=round(max(sizes) / mib, 1),
    )


def _table(rows: Sequence[Row]) -> str:
    columns = ["deadline, ms", "offered/s", "goodput, share of capacity", "200", "in time"]
    columns += ["429", "504", "other", "accepted p99, ms", "429 p50, ms"]
    columns += ["generator lag p99, ms", "memory MiB: start / end / peak"]
    cells = [
        (
            f"{row.deadline_ms:g}",
            f"{row.offered_per_s:g}",
            f"{row.goodput_share:.3f}",
            f"{row.completed}",
            f"{row.in_time}",
            f"{row.refused}",
            f"{row.expired}",
            f"{row.other}",
            f"{row.accepted_p99_ms:g}",
            f"{row.refusal_p50_ms:g}",
            f"{row.generator_lag_p99_ms:g}",
            f"{row.start_mib:g} / {row.end_mib:g} / {row.peak_mib:g}",
        )
        for row in rows
    ]
    return table(columns, cells)


def main() -> None:
    """Runs all deadlines and writes the report."""
    parser = argparse.ArgumentParser(description="Overload the service.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--deadlines-ms", type=float, nargs="+", default=[500.0, 1000.0, 2000.0])
    parser.add_argument("--output", type=Path, default=RESULTS / "serving")
    options = parser.parse_args()
    document = conditions()
    image = flat_png()
    device = {"fake_base_ms": BASE_MS, "fake_per_image_ms": PER_IMAGE_MS}
    rows = []
    for deadline_ms in options.deadlines_ms:
        with (
            tempfile.TemporaryDirectory() as folder,
            run_service(
                Path(folder) / "log", SERVE_FAKE_DEVICE, **device, max_batch_size=MAX_BATCH_SIZE
            ) as service,
        ):
            row = asyncio.run(measure(service, image, deadline_ms, options.seconds))
        print(row, file=sys.stderr, flush=True)
        rows.append(row)
    document |= {"seconds": options.seconds, "capacity_per_s": CAPACITY}
    document["rows"] = [asdict(row) for row in rows]
    sections = [
        f"Device: fake, {BASE_MS} ms + {PER_IMAGE_MS} ms per image, batches of {MAX_BATCH_SIZE}: "
        f"{CAPACITY:g} images/s. Arrivals: Poisson, open loop, each with its deadline. Service and "
        "load generator share the CPUs.\n",
        _table(rows),
    ]
    title = "Overload: five times the capacity"
    write_report(options.output / "overload", title, document, sections)


if __name__ == "__main__":
    main()
