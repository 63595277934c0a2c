"""What the service itself costs: latency of the edge, memory, start, drain, and saturation.

    python -m benchmarks.serving.alone [--rounds 5] [--skip-model]

The edge is measured with the fake device at zero time; the latency that it adds is a response's
latency minus the decode and resize time that the response reports. Saturation compares the service
with its default model and the engine without the service (same images, threads and batch size), in
alternation.
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
from benchmarks.serving.images import make_images
from benchmarks.serving.measurements import measure, measure_bare, run_load
from benchmarks.serving.servers import HOST
from benchmarks.serving.service_process import SERVE_FAKE_DEVICE, Service, run_service
from model.weights.info import resolve_model
from service.cpus import PASSIVE_OMP_WAIT, usable_cpus

_DRAINED = 32
_BATCH = 8

Row = tuple[str, str, str]  # what, goal, seen


def edge_figures(options: argparse.Namespace, log: Path) -> dict[str, Any]:
    """Start, added latency, CPU time and memory with the fake device at zero time."""
    images = make_images()
    with run_service(log, SERVE_FAKE_DEVICE, fake_base_ms=0, fake_per_image_ms=0) as service:
        run_load(service, "--in-flight", "16", "--seconds", "1")
        rounds = []
        for number in range(options.rounds):
            slow = ("--rate", "10", "--arrivals", "constant", "--seconds", str(options.seconds))
            seldom = run_load(service, *slow, "--seed", str(number))
            report = run_load(service, "--in-flight", "1", "--seconds", str(options.seconds / 2))
            full = measure(service, images, "--in-flight", "48", "--seconds", str(options.seconds))
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
            "ready_seconds": service.ready_seconds,
            "edge_peak_mib": _peak_mib(service.process.pid),
            "all_processes_mib": service.memory_bytes() / 2**20,
            "bare_ms": measure_bare(images),
        }


def drain_figures(log: Path) -> dict[str, Any]:
    """SIGTERM with 32 requests in flight: how many get a response, and when the process exits."""
    slow = {"fake_base_ms": 100, "fake_per_image_ms": 0}
    with run_service(log, SERVE_FAKE_DEVICE, **slow, max_batch_size=8) as service:
        return _drain(service)


def _drain(service: Service) -> dict[str, Any]:
    completed: list[float] = []  # times of the responses
    image = make_images()[0]

    def detect() -> None:
        connection = http.client.HTTPConnection(HOST, service.port, timeout=60)
        connection.request("POST", "/detect", image.data, {"Content-Type": "image/jpeg"})
        response = connection.getresponse()
        response.read()
        if response.status == http.HTTPStatus.OK:
            completed.append(time.monotonic())

    threads = [threading.Thread(target=detect) for _ in range(_DRAINED)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while _slots_in_use(service) + len(completed) < _DRAINED and time.monotonic() < deadline:
        time.sleep(0.01)
    in_flight = _DRAINED - len(completed)
    service.process.send_signal(signal.SIGTERM)
    status = service.process.wait(60)
    ended = time.monotonic()
    for thread in threads:
        thread.join()
    return {
        "in_flight": in_flight,
        "responses": len(completed),
        "exit_status": status,
        "exit_after_last_response_seconds": ended - max(completed),
    }


def model_figures(options: argparse.Namespace, log: Path) -> dict[str, Any]:
    """The default model: start, and the service's share of the engine's throughput."""
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
    try:
        with run_service(log, engine_threads=threads, max_batch_size=_BATCH) as service:
            load = ("--in-flight", "24", "--unchecked", "--seconds")
            run_load(service, *load, str(options.model_seconds / 2))
            rounds = []
            for _ in range(options.rounds):
                offline.stdin.write(f"{options.model_seconds}\n")
                offline.stdin.flush()
                engine = json.loads(offline.stdout.readline())
                cpu = service.cpu_seconds()
                report = run_load(service, *load, str(options.model_seconds))
                cpu_ms = (service.cpu_seconds() - cpu) * 1000 / report["right"]
                rounds.append(
                    {
                        "engine_throughput": engine["throughput"],
                        "service_throughput": report["goodput"],
                        "share": report["goodput"] / engine["throughput"],
                        "engine_cpu_ms": engine["cpu_ms"],
                        "service_cpu_ms": cpu_ms,
                        "cpu_share": engine["cpu_ms"] / cpu_ms,
                        "without_right_response": report["sent"] - report["right"],
                    }
                )
            return {"rounds": rounds, "ready_seconds": service.ready_seconds}
    finally:
        offline.stdin.close()
        offline.wait()


def _rows(edge: dict[str, Any], drain: dict[str, Any], model: dict[str, Any] | None) -> list[Row]:
    def median(rounds: Sequence[dict[str, float]], key: str) -> float:
        return statistics.median(one[key] for one in rounds)

    last = drain["exit_after_last_response_seconds"]
    rows = [
        (
            "added to decode and resize, p50",
            "<= 2 ms",
            _spread(edge, "added_p50_ms", " ms"),
        ),
        ("the same with one request every 100 ms", "", _spread(edge, "added_seldom_p50_ms", " ms")),
        ("for comparison: decode and resize with Pillow", "", f"{edge['bare_ms']:.2f} ms"),
        (
            "CPU time per response, x decode and resize with Pillow",
            "<= 1.15",
            _spread(edge, "cpu_ratio"),
        ),
        ("peak memory of the edge", "<= 200 MiB", f"{edge['edge_peak_mib']:.0f} MiB"),
        (
            "memory of all processes after the load; shared pages count in each",
            "",
            f"{edge['all_processes_mib']:.0f} MiB",
        ),
        ("start to ready, fake device", "<= 5 s", f"{edge['ready_seconds']:.1f} s"),
        (
            f"drain with {drain['in_flight']} in flight: responses",
            str(_DRAINED),
            str(drain["responses"]),
        ),
        ("exit after the last response", "<= 1 s", f"{last:.2f} s"),
    ]
    if model is not None:
        share = median(model["rounds"], "share")
        cpu_share = median(model["rounds"], "cpu_share")
        rows += [
            ("start to ready, default model", "<= 12 s", f"{model['ready_seconds']:.1f} s"),
            ("throughput, share of the engine's", ">= 0.90", f"{share:.2f}"),
            ("CPU time per image, engine / service", "", f"{cpu_share:.2f}"),
        ]
    return rows


def _spread(figures: dict[str, Any], key: str, unit: str = "") -> str:
    """Median and range over the rounds."""
    values = [one[key] for one in figures["rounds"]]
    return f"{statistics.median(values):.2f}{unit} ({min(values):.2f} to {max(values):.2f})"


def _slots_in_use(service: Service) -> int:
    """The number of leased slots, from the service's metrics."""
    for line in service.get("/metrics")[1].decode().splitlines():
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
    parser = argparse.ArgumentParser(description="Measure the service itself.")
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
    write_report(RESULTS / "serving/alone", "What the service itself costs", document, [rows])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
