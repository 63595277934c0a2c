"""The service over HTTP on a device: answers a second, from a real client on the same machine.

python -m benchmarks.gpu.service_throughput [--device cuda] [--seconds 15] [--json FILE] [-- FLAGS]

Starts `python -m service serve` with the model that comes with it (and FLAGS, for instance
`--max-cuda-graphs 0`), waits until it is ready, sends the sample photos over and over (closed
loop), and ends it again. What the engines say that they compute with stands in the result.
"""

from __future__ import annotations

import argparse
import http.client
import importlib.util
import itertools
import json
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.report import write

_NEEDED = ("fastapi", "uvicorn", "uvloop", "pydantic_settings", "grpc", "typer")
_PHOTOS = Path(__file__).resolve().parents[2] / "docs" / "samples"
_OK = 200
_START_LIMIT_SECONDS = 45.0
_STOP_LIMIT_SECONDS = 15.0


def main() -> int:
    """Measures; 1 where the service did not serve."""
    parser = argparse.ArgumentParser(description="Measure the service over HTTP.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--json", type=Path)
    parser.add_argument("flags", nargs="*", help="of `serve`, after --")
    options = parser.parse_args()
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    results: dict[str, Any] = {"missing_packages": missing, "failures": []}
    if missing:
        results["failures"].append(f"not run: {', '.join(missing)} are not installed")
    else:
        results.update(_measure(options))
    write(options.json, torch.device(options.device), results)
    return 1 if results["failures"] else 0


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    port, grpc_port = _free_port(), _free_port()
    command = [sys.executable, "-m", "service", "serve", "--device", options.device]
    ports = ["--host", "127.0.0.1", "--port", str(port), "--grpc-port", str(grpc_port)]
    server = subprocess.Popen([*command, *ports, *options.flags])
    engines: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    failures: list[str] = []
    try:
        if not _ready(port, server):
            return {"failures": ["the service did not become ready"]}
        engines = _engines(port)
        for in_flight in options.in_flight:
            run = _closed_loop(port, in_flight, options.seconds / len(options.in_flight))
            runs.append(run)
            if run["answers"] == 0 or run["other_statuses"]:
                failures.append(f"{in_flight} in flight: not all were answered")
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(_STOP_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
    return {"flags": options.flags, "engines": engines, "runs": runs, "failures": failures}


def _closed_loop(port: int, in_flight: int, seconds: float) -> dict[str, Any]:
    """So many clients, each with one photo under way; the first quarter of the time warms up."""
    photos = [path.read_bytes() for path in sorted(_PHOTOS.glob("*.jpg"))]
    begin = time.monotonic() + seconds / 4
    end = time.monotonic() + seconds
    latencies: list[float] = []
    others: list[int] = []

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for turn in itertools.count(number):
            started = time.monotonic()
            if started >= end:
                break
            headers = {"Content-Type": "image/jpeg"}
            connection.request("POST", "/detect", photos[turn % len(photos)], headers)
            response = connection.getresponse()
            response.read()
            if response.status != _OK:
                others.append(response.status)
            elif started >= begin:
                latencies.append(1000 * (time.monotonic() - started))
        connection.close()

    with ThreadPoolExecutor(in_flight) as clients:
        for done in [clients.submit(client, number) for number in range(in_flight)]:
            done.result()
    counted = sorted(latencies)
    return {
        "in_flight": in_flight,
        "answers": len(counted),
        "answers_per_second": round(len(counted) / (time.monotonic() - begin), 1),
        "p50_ms": round(statistics.median(counted), 2) if counted else None,
        "p99_ms": round(counted[int(0.99 * (len(counted) - 1))], 2) if counted else None,
        "other_statuses": sorted(set(others)),
    }


def _engines(port: int) -> list[dict[str, Any]]:
    """Device, kernel, precision and CUDA graphs of each engine."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5) as response:
        engines: list[dict[str, Any]] = json.load(response)["models"][0]["engines"]
    return engines


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _ready(port: int, server: subprocess.Popen[bytes]) -> bool:
    end = time.monotonic() + _START_LIMIT_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2)
        except (urllib.error.URLError, OSError):
            time.sleep(0.25)
        else:
            return True
    return False


if __name__ == "__main__":
    sys.exit(main())
