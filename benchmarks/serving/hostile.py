"""Every hostile client at once next to honest ones: are these served, how fast, and what it takes.

    python -m benchmarks.serving.hostile --seconds 600

The device is the fake device, which sleeps; the decoder is the one that breaks on marked files. API
keys are on. Honest clients send 10 requests per second over HTTP and 10 over gRPC, first alone,
then while the clients of `benchmarks.serving.hostile_clients` run. Each response is compared with
the detections of its own image.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc

from benchmarks.report import RESULTS, ROOT, conditions, table, write_report
from benchmarks.serving.images import EncodedImage, Found, make_images
from benchmarks.serving.load import Report, judge
from benchmarks.serving.servers import HOST, free_ports, process_tree
from benchmarks.serving.service_process import SERVE_FAKE_DEVICE, Service, run_service
from benchmarks.serving.wire_formats import WIRE_FORMATS, WireFormat
from lite_detr_client.pb import detection_pb2 as pb
from service.access.api_keys import Scope, key_line, new_key
from service.load.loop import Exchange, Load, post_request, schedule

RATE = 10.0  # honest requests per second over each protocol
GOAL_RATIO = 10.0  # of the p99 under attack to the quiet one
MAX_BODIES_BYTES = 256 << 20
DECODE_MEMORY_BYTES = 2 << 30
_MIB = 1 << 20
_MAX_CONNECTIONS = 64
_QUIET_SECONDS = 60.0  # at most
_AFTER_SECONDS = 10.0  # from the last hostile client to the last figures
_SAMPLE_SECONDS = 0.5
_TIMEOUT_SECONDS = 30.0
_SEED = 7
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_KINDS = ("edge", "decoders", "engine")
_HTTP_STATUS = {"OK": 200, "RESOURCE_EXHAUSTED": 429, "UNAVAILABLE": 503}  # for `judge`


@dataclass(frozen=True)
class Figures:
    """Resident memory in MiB (shared pages count in each process) and open files of the edge."""

    edge: float
    decoders: float
    engine: float
    open_files: int

    @property
    def memory(self) -> float:
        """Of all processes."""
        return self.edge + self.decoders + self.engine


def figures(edge: int) -> Figures:
    """The present figures of a service, by the process id of its edge."""
    memory = {"edge": 0, "decoders": 0, "engine": 0}
    for pid in process_tree(edge):
        command = _read(pid, "cmdline")
        is_decoder = b"service.decoding.template" in command
        kind = "edge" if pid == edge else "decoders" if is_decoder else "engine"
        pages = _read(pid, "statm").split()
        memory[kind] += int(pages[1]) * os.sysconf("SC_PAGE_SIZE") if pages else 0
    sizes = {kind: round(size / _MIB, 1) for kind, size in memory.items()}
    return Figures(**sizes, open_files=len(os.listdir(f"/proc/{edge}/fd")))


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


class Sampler:
    """Samples the figures of a service in a thread."""

    def __init__(self, edge: int) -> None:
        """Takes the process id of the edge."""
        self._edge = edge
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.samples: list[Figures] = []

    def __enter__(self) -> Sampler:
        """Starts."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(_SAMPLE_SECONDS):
            self.samples.append(figures(self._edge))


def _read_message(_headers: dict[bytes, bytes], body: bytes) -> Found:
    return tuple(
        (
            round(each.score, 4),
            each.class_id,
            tuple(
                round(side, 2)
                for side in (each.box.xmin, each.box.ymin, each.box.xmax, each.box.ymax)
            ),
        )
        for each in pb.DetectResponse.FromString(body).detections
    )


GRPC_FORMAT = WireFormat(lambda _data, _path: b"", _read_message)


async def honest(
    service: Service, grpc_port: int, key: str, images: Sequence[EncodedImage], seconds: float
) -> dict[str, Report]:
    """Sends honest requests over both protocols; returns the reports by protocol."""
    headers = {"Content-Type": "image/jpeg", "Authorization": f"Bearer {key}"}
    requests = [post_request("/detect?threshold=0", each.data, headers) for each in images]
    load = Load(service.port, requests, _MAX_CONNECTIONS)
    starts = schedule(RATE, seconds, "poisson", _SEED)
    _, exchanges = await asyncio.gather(
        load.run_open(starts), _grpc_calls(grpc_port, key, images, seconds)
    )
    load.close()
    return {
        "HTTP": judge(load.exchanges, images, WIRE_FORMATS["raw"]),
        "gRPC": judge(exchanges, images, GRPC_FORMAT),
    }


async def _grpc_calls(
    port: int, key: str, images: Sequence[EncodedImage], seconds: float
) -> list[Exchange]:
    options = pb.DetectOptions(threshold=0.0)
    messages = [
        pb.DetectRequest(image=each.data, options=options).SerializeToString() for each in images
    ]
    exchanges: list[Exchange] = []
    tasks = []
    async with grpc.aio.insecure_channel(f"{HOST}:{port}") as channel:
        detect: Any = channel.unary_unary("/litedetr.v1.DetectionService/Detect")

        async def call(exchange: Exchange) -> None:
            exchange.sent = time.perf_counter()
            try:
                exchange.body = await detect(
                    messages[exchange.image],
                    metadata=(("x-api-key", key),),
                    timeout=_TIMEOUT_SECONDS,
                )
                exchange.status = _HTTP_STATUS["OK"]
            except grpc.aio.AioRpcError as error:
                exchange.status = _HTTP_STATUS.get(error.code().name, 0)
                print(f"honest gRPC call: {error.code().name} {error.details()}", file=sys.stderr)
            exchange.done = time.perf_counter()

        begin = time.perf_counter()
        for number, start in enumerate(schedule(RATE, seconds, "poisson", _SEED + 1)):
            await asyncio.sleep(max(0.0, begin + start - time.perf_counter()))
            exchanges.append(Exchange(number % len(images), begin + start))
            tasks.append(asyncio.create_task(call(exchanges[-1])))
        await asyncio.gather(*tasks)
    return exchanges


def attack(
    http_port: int, grpc_port: int, key: str, seconds: float, clients: str
) -> subprocess.Popen[str]:
    """Starts the hostile clients whose names match a regular expression."""
    ports = ["--http-port", str(http_port), "--grpc-port", str(grpc_port)]
    command = [sys.executable, "-m", "benchmarks.serving.hostile_clients", *ports]
    process = subprocess.Popen(
        [*command, "--seconds", str(seconds), "--clients", clients],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(f"{key}\n")
    process.stdin.close()
    return process


def measure(seconds: float, clients: str) -> dict[str, Any]:
    """Runs the service, the quiet phase and the attack; returns the results."""
    images = make_images()
    (grpc_port,) = free_ports(1)
    key, hostile_key = new_key(), new_key()
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys"
        names = (("honest", key), ("hostile", hostile_key))
        keys.write_text("\n".join(key_line(name, [Scope.DETECT], each) for name, each in names))
        settings: dict[str, Any] = {
            "grpc_port": grpc_port,
            "api_keys_file": keys,
            "max_bodies_bytes": MAX_BODIES_BYTES,
            "decode_memory_bytes": DECODE_MEMORY_BYTES,
            "fake_base_ms": 5,
            "fake_per_image_ms": 5,
        }
        with run_service(Path(folder) / "log", SERVE_FAKE_DEVICE, **settings) as service:
            edge = service.process.pid
            quiet_seconds = min(seconds / 2, _QUIET_SECONDS)
            quiet = asyncio.run(honest(service, grpc_port, key, images, quiet_seconds))
            start = figures(edge)
            with Sampler(edge) as sampler:
                attackers = attack(service.port, grpc_port, hostile_key, seconds, clients)
                under_attack = asyncio.run(honest(service, grpc_port, key, images, seconds))
                assert attackers.stdout is not None
                outcomes = json.loads(attackers.stdout.read())
                attackers.wait()
                time.sleep(_AFTER_SECONDS)
            service.check_running()
            end = figures(edge)
    peak = max(sampler.samples, key=lambda each: each.memory)
    return {
        "seconds": seconds,
        "quiet_seconds": quiet_seconds,
        "quiet": {name: asdict(each) for name, each in quiet.items()},
        "under_attack": {name: asdict(each) for name, each in under_attack.items()},
        "p99_ratio": {
            name: round(under_attack[name].p99_ms / quiet[name].p99_ms, 2) for name in quiet
        },
        "start": asdict(start),
        "peak": asdict(peak),
        "end": asdict(end),
        "peak_open_files": max(each.open_files for each in sampler.samples),
        "bound_mib": round(start.memory + (MAX_BODIES_BYTES + DECODE_MEMORY_BYTES) / _MIB, 1),
        "hostile": outcomes,
    }


def _sections(results: dict[str, Any]) -> list[str]:
    phases = (("quiet", results["quiet"]), ("under attack", results["under_attack"]))
    rows = [
        (
            f"{protocol}, {phase}",
            *(str(report[name]) for name in ("sent", "right", "wrong", "refused", "failed")),
            *(f"{report[name]:.1f}" for name in ("p50_ms", "p99_ms", "max_ms")),
        )
        for phase, reports in phases
        for protocol, report in reports.items()
    ]
    columns = ("honest clients", "sent", "right", "wrong", "refused", "failed")
    ratios = ", ".join(f"{name} {ratio}" for name, ratio in results["p99_ratio"].items())
    memory = [
        (
            phase,
            *(str(results[phase][kind]) for kind in _KINDS),
            f"{sum(results[phase][kind] for kind in _KINDS):.1f}",
            str(results[phase]["open_files"]),
        )
        for phase in ("start", "peak", "end")
    ]
    hostile = [
        (name, ", ".join(f"{outcome}: {count}" for outcome, count in sorted(counts.items())))
        for name, counts in results["hostile"].items()
    ]
    return [
        f"Quiet phase: {results['quiet_seconds']:g} s. Attack: {results['seconds']:g} s. Fake "
        f"device, {RATE:g} honest requests per second over each protocol, Poisson, open loop. "
        "Service, honest and hostile clients share the CPUs.\n",
        table((*columns, "p50, ms", "p99, ms", "max, ms"), rows),
        f"p99 under attack divided by the quiet p99: {ratios} (goal: below {GOAL_RATIO:g}).\n",
        "Resident memory in MiB; shared pages count in each process. Open files are those of the "
        f"edge; their peak was {results['peak_open_files']}.\n",
        table(("", "edge", "decoders", "engine", "all", "open files"), memory),
        f"Bound: the start, `max_bodies_bytes` ({MAX_BODIES_BYTES >> 20} MiB) and "
        f"`decode_memory_bytes` ({DECODE_MEMORY_BYTES >> 20} MiB), together "
        f"{results['bound_mib']} MiB. Messages of gRPC calls with a key are bounded by their "
        "number and size, and are small here.\n",
        table(("hostile client", "attempts by outcome"), hostile, texts=2),
    ]


def main() -> None:
    """Measures and writes the report."""
    parser = argparse.ArgumentParser(description="Serve honest clients under attack.")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--clients", default="", help="regular expression of their names")
    parser.add_argument("--output", type=Path, default=RESULTS / "serving")
    options = parser.parse_args()
    document = conditions()
    document |= measure(options.seconds, options.clients)
    title = f"Honest clients next to hostile ones, {options.seconds:g} s"
    write_report(options.output / "hostile", title, document, _sections(document))


if __name__ == "__main__":
    main()
