"""Throughput and latency of the service over HTTP on a device, with a client on the same machine.

    python -m benchmarks.gpu.service_throughput [--device cuda] [--results FILE] [-- FLAGS]

Starts `python -m service serve` with the default model, on a GPU in float16 (and FLAGS, for
instance `--max-cuda-graphs 0`), sends the sample photos repeatedly in a closed loop, and stops it.
On a GPU nearly every CPU decodes. The result includes what /v1/models reports about the engines,
the images of a batch, and the run time of all batches per second: far below 1, the CPUs are the
limit.
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
from benchmarks.serving.service_process import SERVE, Service, run_service
from service.cpus import usable_cpus

_START_LIMIT_SECONDS = 45.0  # on a GPU
_CPU_START_LIMIT_SECONDS = 300.0  # where the script is only tried, and the machine may be busy
_TOTALS = (
    "lite_detr_batch_seconds_sum",
    "lite_detr_batch_seconds_count",
    "lite_detr_batch_size_sum",
)


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
    precision = (
        "auto" if torch.device(options.device).type == "cpu" else "fp16"
    )  # as the pipeline it is compared with
    on_cpu = options.device == "cpu"
    limit = _CPU_START_LIMIT_SECONDS if on_cpu else _START_LIMIT_SECONDS
    decoders = [] if on_cpu else ["--decode-threads", str(_decoders())]
    flags = ["--device", options.device, "--precision", precision, *decoders, *options.flags]
    with tempfile.TemporaryDirectory() as folder:
        try:
            log = Path(folder) / "log"
            with run_service(log, (*SERVE, *flags), limit) as service:
                engines = json.loads(service.get("/v1/models")[1])["models"][0]["engines"]
                results.row(engines=engines, ready_seconds=round(service.ready_seconds, 1))
                for in_flight in options.in_flight:
                    load = ("--images", str(ROOT / "docs/samples"), "--in-flight", str(in_flight))
                    run_load(service, *load, "--seconds", str(seconds / 4))  # warm-up
                    before = _totals(service)
                    run = run_load(service, *load, "--seconds", str(seconds * 3 / 4))
                    ran = {name: total - before[name] for name, total in _totals(service).items()}
                    batches = _of_batches(ran, run["seconds"])
                    results.row(in_flight=in_flight, flags=flags, **batches, **run)
                    if run["right"] == 0 or run["right"] < run["sent"]:
                        results.fail(f"{in_flight} in flight: some requests failed")
        except StartError as error:
            results.fail(f"the service did not start: {error}")
    return results.exit_status


def _decoders() -> int:
    """One for each CPU but two: those of the edge and of the engine."""
    return max(1, usable_cpus() - 2)


def _totals(service: Service) -> dict[str, float]:
    """Sums and counts of all batches so far; 0 without any."""
    found = dict.fromkeys(_TOTALS, 0.0)
    for line in service.get("/metrics")[1].decode().splitlines():
        name, _, value = line.partition(" ")
        if name in found:
            found[name] = float(value)
    return found


def _of_batches(ran: dict[str, float], seconds: float) -> dict[str, float]:
    run_seconds, count, images = (ran[name] for name in _TOTALS)
    return {
        "images_of_a_batch": round(images / max(1.0, count), 2),
        "batch_seconds_per_second": round(run_seconds / seconds, 3),
    }


if __name__ == "__main__":
    sys.exit(main())
