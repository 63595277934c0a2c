"""A minute at five times the capacity: what is of use to anybody, and what it costs in memory.

The device is the fake device, a sleeping one, so that the device and not the CPU of this machine
is the bottleneck. Goodput counts answers that came within the deadline that the client had sent,
by the client's own clock, as a share of what the device can do in full batches.

    python -m benchmarks.serving.overload --seconds 60
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.serving.load import percentile
from benchmarks.serving.load_loop import Exchange, Load, schedule
from benchmarks.serving.pictures import flat_png
from benchmarks.serving.service_process import FAKE_SERVICE, ROOT, RunningService, run_service
from benchmarks.serving.wire_formats import post_request

RESULT = ROOT / "benchmarks" / "results" / "serving" / "overload"
FACTOR = 5
BASE_MS, PER_IMAGE_MS, MAX_BATCH_SIZE = 40, 40, 4
CAPACITY = MAX_BATCH_SIZE / (BASE_MS + PER_IMAGE_MS * MAX_BATCH_SIZE) * 1000  # images a second
_WARM_UP_SECONDS = 3.0
_MOST_CONNECTIONS = 4096  # no request is to wait for another's
_SEED = 7
_ACCEPTED = frozenset({HTTPStatus.OK, HTTPStatus.GATEWAY_TIMEOUT})


@dataclass(frozen=True)
class Row:
    """One run."""

    deadline_ms: float
    offered_per_s: float
    goodput_share: float  # of the capacity, answers within their deadline
    answered: int  # 200
    in_time: int  # of those, within the deadline by the client's clock
    refused: int  # 429, before decoding
    expired: int  # 504
    other: int
    accepted_p99_ms: float
    refusal_p50_ms: float
    generator_lag_p99_ms: float  # how late this machine let the generator send
    start_mib: float
    end_mib: float
    peak_mib: float


async def measure(service: RunningService, image: bytes, deadline_ms: float, seconds: float) -> Row:
    """Floods the service."""
    await _load(service, image, 10_000, CAPACITY / 2, _WARM_UP_SECONDS)
    sizes = [service.resident_bytes()]
    sampler = asyncio.create_task(_sample(service, sizes))
    exchanges = await _load(service, image, deadline_ms, FACTOR * CAPACITY, seconds)
    sampler.cancel()
    sizes.append(service.resident_bytes())
    return _row(deadline_ms, seconds, exchanges, sizes)


async def _load(
    service: RunningService, image: bytes, timeout_ms: float, rate: float, seconds: float
) -> list[Exchange]:
    """Requests that give the service so much time, at a mean rate and for so long."""
    headers = {"Content-Type": "image/png", "X-Request-Timeout-Ms": f"{timeout_ms:g}"}
    port = urlsplit(service.url).port
    assert port is not None
    load = Load(port, [post_request("/detect", image, headers)], _MOST_CONNECTIONS)
    await load.run_open(schedule(rate, seconds, "poisson", _SEED))
    load.close()
    return load.exchanges


async def _sample(service: RunningService, sizes: list[int]) -> None:
    while True:
        await asyncio.sleep(1)
        sizes.append(service.resident_bytes())


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
        answered=statuses[200],
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


def _markdown(rows: Sequence[Row], seconds: float, load: float) -> str:
    lines = [
        "# Overload: five times the capacity",
        "",
        f"`python -m benchmarks.serving.overload --seconds {seconds:g}` on {os.cpu_count()} cores "
        f"that service, load generator and others shared (load average {load:.1f}).",
        f"Device: fake, {BASE_MS} ms + {PER_IMAGE_MS} ms an image, batches of {MAX_BATCH_SIZE}: "
        f"{CAPACITY:g} images/s. Arrivals: Poisson, open loop, each with its deadline.",
        "",
        "| deadline ms | offered/s | goodput, share of capacity | 200 | in time | 429 | 504 "
        "| other | p99 of accepted ms | p50 of a refusal ms | p99 of the generator's own lag ms "
        "| memory MiB start / end / peak |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.deadline_ms:g} | {row.offered_per_s:g} | {row.goodput_share:.3f} | {row.answered} "
        f"| {row.in_time} | {row.refused} | {row.expired} | {row.other} | {row.accepted_p99_ms:g} "
        f"| {row.refusal_p50_ms:g} | {row.generator_lag_p99_ms:g} "
        f"| {row.start_mib:g} / {row.end_mib:g} / {row.peak_mib:g} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs all deadlines and writes both results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--deadlines-ms", type=float, nargs="+", default=[500.0, 1000.0, 2000.0])
    options = parser.parse_args()
    image = flat_png()
    rows = []
    for deadline_ms in options.deadlines_ms:
        with (
            tempfile.TemporaryDirectory() as folder,
            run_service(
                Path(folder) / "log",
                FAKE_SERVICE,
                fake_base_ms=BASE_MS,
                fake_per_image_ms=PER_IMAGE_MS,
                max_batch_size=MAX_BATCH_SIZE,
            ) as service,
        ):
            row = asyncio.run(measure(service, image, deadline_ms, options.seconds))
        print(row, flush=True)
        rows.append(row)
    load = os.getloadavg()[0]
    record = {
        "seconds": options.seconds,
        "capacity_per_s": CAPACITY,
        "load_average": load,
        "cpus": os.cpu_count(),
        "day": time.strftime("%Y-%m-%d"),
        "rows": [asdict(row) for row in rows],
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    RESULT.with_suffix(".md").write_text(_markdown(rows, options.seconds, load))


if __name__ == "__main__":
    main()
