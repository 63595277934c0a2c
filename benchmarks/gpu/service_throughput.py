"""Throughput and latency of the service over HTTP on a device, with a client on the same machine.

python -m benchmarks.gpu.service_throughput [--device cuda] [--seconds 15] [--json FILE] [-- FLAGS]

Starts `python -m service serve` with the default model (and FLAGS, for instance
`--max-cuda-graphs 0`), sends the sample photos repeatedly in a closed loop, and stops it. The
result includes what /v1/models reports about the engines.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.report import write
from benchmarks.report import ROOT

_REQUIRED = (
    *("fastapi", "uvicorn", "uvloop", "httptools", "orjson"),
    *("pydantic_settings", "grpc", "typer"),
)
_START_LIMIT_SECONDS = 45.0


def main() -> int:
    """Measures; returns 1 if the service did not start or a request failed."""
    parser = argparse.ArgumentParser(description="Measure the service over HTTP.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--json", type=Path)
    parser.add_argument("flags", nargs="*", help="of `serve`, after --")
    options = parser.parse_args()
    missing = [name for name in _REQUIRED if importlib.util.find_spec(name) is None]
    results: dict[str, Any] = {"missing_packages": missing, "failures": []}
    if missing:
        results["failures"].append(f"not run: {', '.join(missing)} are not installed")
    else:
        results.update(_measure(options))
    write(options.json, torch.device(options.device), results)
    return 1 if results["failures"] else 0


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    # These import packages that may be missing.
    from benchmarks.serving.measurements import run_load  # noqa: PLC0415
    from benchmarks.serving.servers import StartError  # noqa: PLC0415
    from benchmarks.serving.service_process import SERVE, run_service  # noqa: PLC0415

    runs: list[dict[str, Any]] = []
    failures: list[str] = []
    seconds = options.seconds / len(options.in_flight)
    command = (*SERVE, "--device", options.device, *options.flags)
    with tempfile.TemporaryDirectory() as folder:
        try:
            with run_service(Path(folder) / "log", command, _START_LIMIT_SECONDS) as service:
                engines = json.loads(service.get("/v1/models")[1])["models"][0]["engines"]
                for in_flight in options.in_flight:
                    load = ("--images", str(ROOT / "docs/samples"), "--in-flight", str(in_flight))
                    run_load(service, *load, "--seconds", str(seconds / 4))  # warm-up
                    run = run_load(service, *load, "--seconds", str(seconds * 3 / 4))
                    runs.append({"in_flight": in_flight, **run})
                    if run["right"] == 0 or run["right"] < run["sent"]:
                        failures.append(f"{in_flight} in flight: some requests failed")
        except StartError as error:
            return {"failures": [f"the service did not start: {error}"]}
    return {"flags": options.flags, "engines": engines, "runs": runs, "failures": failures}


if __name__ == "__main__":
    sys.exit(main())
