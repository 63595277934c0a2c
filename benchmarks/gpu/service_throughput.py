"""Throughput and latency of the service over HTTP on a device, with a client on the same machine.

    python -m benchmarks.gpu.service_throughput [--device cuda] [--results FILE] [-- FLAGS]

Starts `python -m service serve` with the default model, on a GPU in float16 (and FLAGS, for
instance `--max-cuda-graphs 0`), sends the sample photos repeatedly in a closed loop, and stops it.
The result includes what /v1/models reports about the engines.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.gpu.results import Results
from benchmarks.report import ROOT
from benchmarks.serving.measurements import run_load
from benchmarks.serving.servers import StartError
from benchmarks.serving.service_process import SERVE, run_service

_START_LIMIT_SECONDS = 45.0


def main() -> int:
    """Measures; returns 1 if the service did not start or a request failed."""
    parser = argparse.ArgumentParser(description="Measure the service over HTTP.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[64, 1])
    parser.add_argument("--results", type=Path)
    parser.add_argument("flags", nargs="*", help="of `serve`, after --")
    options = parser.parse_args()
    # A part that takes too long is ended by it; the service, a session of its own, must not stay.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    results = Results(options.results, torch.device(options.device))
    seconds = options.seconds / len(options.in_flight)
    precision = "auto" if options.device == "cpu" else "fp16"  # as the pipeline it is compared with
    command = (*SERVE, "--device", options.device, "--precision", precision, *options.flags)
    with tempfile.TemporaryDirectory() as folder:
        try:
            with run_service(Path(folder) / "log", command, _START_LIMIT_SECONDS) as service:
                engines = json.loads(service.get("/v1/models")[1])["models"][0]["engines"]
                results.row(engines=engines, ready_seconds=round(service.ready_seconds, 1))
                for in_flight in options.in_flight:
                    load = ("--images", str(ROOT / "docs/samples"), "--in-flight", str(in_flight))
                    run_load(service, *load, "--seconds", str(seconds / 4))  # warm-up
                    run = run_load(service, *load, "--seconds", str(seconds * 3 / 4))
                    results.row(in_flight=in_flight, flags=options.flags, **run)
                    if run["right"] == 0 or run["right"] < run["sent"]:
                        results.fail(f"{in_flight} in flight: some requests failed")
        except StartError as error:
            results.fail(f"the service did not start: {error}")
    return results.exit_status


if __name__ == "__main__":
    sys.exit(main())
