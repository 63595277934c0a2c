"""One load on one server: rates, latencies, and CPU time relative to decoding with Pillow."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.serving.images import EncodedImage, decode_with_pillow
from benchmarks.serving.servers import Server

Figures = dict[str, float]


def run_load(server: Server, *arguments: str) -> dict[str, Any]:
    """One run of the load generator `benchmarks.serving.load`, in its own process.

    Returns:
        Its report.
    """
    kind = server.kind
    command = [sys.executable, "-m", "benchmarks.serving.load", "--port", str(server.port)]
    command += ["--path", kind.path, "--wire-format", kind.wire_format, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def measure_bare(images: Sequence[EncodedImage]) -> float:
    """CPU milliseconds per image to decode and resize with Pillow, in this process."""
    started = time.process_time()
    for image in images:
        decode_with_pillow(image.data)
    return (time.process_time() - started) * 1000 / len(images)


def measure(server: Server, images: Sequence[EncodedImage], *load: str) -> Figures:
    """Figures of one load; CPU time is that of all the server's processes, per right response.

    "bare" is the mean of `measure_bare` before and after the load; cpu_ratio = CPU time / bare.
    """
    bare, cpu = measure_bare(images), server.cpu_seconds()
    report = run_load(server, *load)
    cpu = server.cpu_seconds() - cpu
    bare = (bare + measure_bare(images)) / 2
    cpu_ms = cpu * 1000 / max(1, report["right"])
    return {
        "throughput": report["goodput"],
        "cpu_ms": cpu_ms,
        "bare_ms": bare,
        "cpu_ratio": cpu_ms / bare,
        "p50_ms": report["p50_ms"],
        "p90_ms": report["p90_ms"],
        "p99_ms": report["p99_ms"],
        "right": report["right"],
        "wrong": report["wrong"],
        "refused": report["refused"],
        "failed": report["failed"],
        "load_cpu_ms": report["load_cpu_seconds"] * 1000 / max(1, report["sent"]),
    }
