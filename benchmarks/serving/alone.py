"""What the service costs by itself: latency of the edge, memory, start, drain, and saturation.

    python -m benchmarks.serving.alone [--rounds 5] [--skip-model]

The edge is measured with the fake device at zero time; what it adds is an answer's latency less
the decoding and resizing that the same answer tells of. Saturation compares the service with its
default model against the engine alone (same images, threads and batch size), in turns.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS, conditions, table, version_of, write_report
from benchmarks.serving.images import make_photos
from benchmarks.serving.peer_comparison import measure, measure_bare, run_load
from benchmarks.serving.servers import (
    HOST,
    Server,
    free_ports,
    start_own_service,
)
from benchmarks.serving.service_process import FAKE_SERVICE
from model.weights.info import resolve_model
from service.cpus import PASSIVE_OMP_WAIT, usable_cpus

_ZERO = {"module": FAKE_SERVICE, "fake_base_ms": 0, "fake_per_image_ms": 0}
_SLOW = {"module": FAKE_SERVICE, "fake_base_ms": 100, "fake_per_image_ms": 0}
_DRAINED = 32
_BATCH = 8
_START_SECONDS = 300.0

Row = tuple[str, str, str]  # what, goal, seen


def start_service(log: Path, **settings: Any) -> Server:
    """Starts the service and waits until it is ready; `ready_seconds` counts from the start.

    Args:
        log: gets what the service prints.
        **settings: see `start_own_service`.
    """
    (port,) = free_ports(1)
    started = time.monotonic()
    server = start_own_service(port, log, **settings)
    while time.monotonic() - started < _START_SECONDS:
        if _get(port, "/readyz") == http.HTTPStatus.OK:
            server.ready_seconds = time.monotonic() - started
            return server
        time.sleep(0.02)
    server.stop()
    raise TimeoutError(f"the service is not ready: {server.last_words}")


def edge_figures(options: argparse.Namespace, log: Path) -> dict[str, Any]:
    """Start, added latency, CPU time and memory with the fake device at zero time."""
    photos = make_photos()
    server = start_service(log, **_ZERO)
    try:
        run_load(server, "--in-flight", "16", "--seconds", "1")
        rounds = []
        for number in range(options.rounds):
            slow = ("--rate", "10", "--arrivals", "constant", "--seconds", str(options.seconds))
            seldom = run_load(server, *slow, "--seed", str(number))
            report = run_load(server, "--in-flight", "1", "--seconds", str(options.seconds / 2))
            full = measure(server, photos, "--in-flight", "48", "--seconds", str(options.seconds))
            rounds.append(
                {
                    "added_p50_ms": report["added_p50_ms"],
                    "added_seldom_p50_ms": seldom["added_p50_ms"],
                    "single_p50_ms": report["p50_ms"],
                    "cpu_ratio": full["cpu_ratio"],
                    "throughput": full["throughput"],
                }
            )
        return {
            "rounds": rounds,
            "ready_seconds": server.ready_seconds,
            "edge_peak_mib": _peak_mib(server.process.pid),
            "bare_ms": measure_bare(photos),
        }
    finally:
        server.stop()


def drain_figures(log: Path) -> dict[str, Any]:
    """SIGTERM with 32 requests in flight: how many are answered, and when the process is gone."""
    server = start_service(log, **_SLOW, max_batch_size=8)
    answered: list[float] = []
    photo = make_photos()[0]

    def ask() -> None:
        connection = http.client.HTTPConnection(HOST, server.port, timeout=60)
        connection.request("POST", "/detect", photo.data, {"Content-Type": "image/jpeg"})
        answer = connection.getresponse()
        answer.read()
        if answer.status == http.HTTPStatus.OK:
            answered.append(time.monotonic())

    threads = [threading.Thread(target=ask) for _ in range(_DRAINED)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while _in_flight(server.port) + len(answered) < _DRAINED and time.monotonic() < deadline:
        time.sleep(0.01)
    open_at_signal = _DRAINED - len(answered)
    server.process.send_signal(signal.SIGTERM)
    status = server.process.wait(60)
    ended = time.monotonic()
    for thread in threads:
        thread.join()
    return {
        "in_flight": open_at_signal,
        "answered": len(answered),
        "exit_status": status,
        "exit_after_last_answer_seconds": ended - max(answered),
    }


def model_figures(options: argparse.Namespace, log: Path) -> dict[str, Any]:
    """The default model: start, and the share of the engine's own throughput that is served."""
    threads = usable_cpus()
    model = str(resolve_model("default", None).resolve())
    command = [sys.executable, "-m", "benchmarks.serving.offline_engine", model]
    offline = subprocess.Popen(
        [*command, str(threads), str(_BATCH)],
        env=PASSIVE_OMP_WAIT | os.environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert offline.stdin is not None and offline.stdout is not None
    offline.stdout.readline()
    server = start_service(log, engine_threads=threads, max_batch_size=_BATCH)
    try:
        load = ("--in-flight", "24", "--unchecked", "--seconds")
        run_load(server, *load, str(options.model_seconds / 2))
        rounds = []
        for _ in range(options.rounds):
            offline.stdin.write(f"{options.model_seconds}\n")
            offline.stdin.flush()
            engine = json.loads(offline.stdout.readline())
            cpu = server.cpu_seconds()
            report = run_load(server, *load, str(options.model_seconds))
            cpu_ms = (server.cpu_seconds() - cpu) * 1000 / report["right"]
            rounds.append(
                {
                    "engine_throughput": engine["throughput"],
                    "service_throughput": report["goodput"],
                    "share": report["goodput"] / engine["throughput"],
                    "engine_cpu_ms": engine["cpu_ms"],
                    "service_cpu_ms": cpu_ms,
                    "cpu_share": engine["cpu_ms"] / cpu_ms,
                    "not_answered": report["sent"] - report["right"],
                }
            )
        return {"rounds": rounds, "ready_seconds": server.ready_seconds}
    finally:
        server.stop()
        offline.stdin.close()
        offline.wait()


def _rows(edge: dict[str, Any], drain: dict[str, Any], model: dict[str, Any] | None) -> list[Row]:
    def median(rounds: Sequence[dict[str, float]], key: str) -> float:
        return statistics.median(one[key] for one in rounds)

    last = drain["exit_after_last_answer_seconds"]
    rows = [
        ("added beyond decode and resize, p50", "<= 2 ms", _ms(edge, "added_p50_ms")),
        ("the same where one comes every 100 ms", "", _ms(edge, "added_seldom_p50_ms")),
        ("beside it: decoding and resizing with Pillow alone", "", f"{edge['bare_ms']:.2f} ms"),
        (
            "CPU of an answer, x decoding and resizing with Pillow alone",
            "<= 1.15",
            _ratio(edge, "cpu_ratio"),
        ),
        ("peak memory of the edge", "<= 200 MiB", f"{edge['edge_peak_mib']:.0f} MiB"),
        ("start to ready, fake device", "<= 5 s", f"{edge['ready_seconds']:.1f} s"),
        (
            f"drain with {drain['in_flight']} in flight: answered",
            str(_DRAINED),
            str(drain["answered"]),
        ),
        ("exit after the last answer", "<= 1 s", f"{last:.2f} s"),
    ]
    if model is not None:
        share = median(model["rounds"], "share")
        cpu_share = median(model["rounds"], "cpu_share")
        rows += [
            ("start to ready, default model", "<= 12 s", f"{model['ready_seconds']:.1f} s"),
            ("throughput, of the engine's own", ">= 0.90", f"{share:.2f}"),
            ("CPU of an image: engine's own, of the service's", "", f"{cpu_share:.2f}"),
        ]
    return rows


def _ms(figures: dict[str, Any], key: str) -> str:
    values = [one[key] for one in figures["rounds"]]
    return f"{statistics.median(values):.2f} ms ({min(values):.2f} to {max(values):.2f})"


def _ratio(figures: dict[str, Any], key: str) -> str:
    values = [one[key] for one in figures["rounds"]]
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _get(port: int, path: str) -> int:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def _in_flight(port: int) -> int:
    """Slots that are leased just now, by the service's own metrics."""
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    connection.request("GET", "/metrics")
    for line in connection.getresponse().read().decode().splitlines():
        if line.startswith("lite_detr_slots_in_use "):
            return int(float(line.split()[1]))
    return 0


def _peak_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def main(arguments: Sequence[str]) -> int:
    """Measures and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--model-seconds", type=float, default=15.0)
    parser.add_argument("--skip-model", action="store_true")
    options = parser.parse_args(arguments)
    document = conditions()
    document["version"] = version_of("lite-detr-service")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        edge = edge_figures(options, log)
        drain = drain_figures(log)
        model = None if options.skip_model else model_figures(options, log)
    document |= {"edge": edge, "drain": drain, "default_model": model}
    rows = table(("", "goal", "seen"), _rows(edge, drain, model))
    write_report(RESULTS / "serving/alone", "What the service costs by itself", document, [rows])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
