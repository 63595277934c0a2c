"""The service over HTTP on a device: answers a second, from a real client on the same machine.

python -m benchmarks.gpu.service_throughput [--device cuda] [--seconds 15] [--json FILE]

Starts `python -m service serve` with the model that comes with it, waits until it is ready, sends
photos with `benchmarks.serving.load` (closed loop), and ends it again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.report import write

_NEEDED = ("fastapi", "uvicorn", "uvloop", "httptools", "pydantic_settings", "grpc", "typer")
_START_LIMIT_SECONDS = 45.0
_STOP_LIMIT_SECONDS = 15.0


def main() -> int:
    """Measures; 1 where the service did not serve."""
    parser = argparse.ArgumentParser(description="Measure the service over HTTP.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--json", type=Path)
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
    server = subprocess.Popen([*command, *ports])
    runs, failures = [], []
    try:
        if not _ready(port, server):
            return {"failures": ["the service did not become ready"]}
        for in_flight in options.in_flight:
            seconds = options.seconds / len(options.in_flight)
            load = [sys.executable, "-m", "benchmarks.serving.load", "--port", str(port)]
            how = ["--path", "/detect", "--seconds", str(seconds), "--in-flight", str(in_flight)]
            done = subprocess.run(
                [*load, *how],
                capture_output=True,
                text=True,
                check=False,
                timeout=options.seconds + 60,
            )
            if done.returncode != 0:
                failures.append(done.stderr.strip()[-500:])
                continue
            runs.append({"in_flight": in_flight, **json.loads(done.stdout.splitlines()[-1])})
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(_STOP_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
    return {"runs": runs, "failures": failures}


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
