"""`lite-detr ray` with one replica compared with `lite-detr serve`, in one run.

    python -m benchmarks.serving.ray_overhead [--rounds 5]

Run it with an interpreter that has Ray (`make ray`). Both have the same fake device and the same
decoders; the loads, rounds and figures are those of `benchmarks.serving.peer_comparison`. As root
it runs in its own network and process namespaces, because Ray listens on all addresses.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.report import RESULTS, conditions, version_of, write_report
from benchmarks.serving.images import make_images
from benchmarks.serving.measurements import run_load
from benchmarks.serving.peer_comparison import enter_namespaces, run_rounds, summarise, tables
from benchmarks.serving.servers import THIS_SERVICE, Server, ServerKind, free_ports
from benchmarks.serving.service_process import SERVE_FAKE_DEVICE, start_service

WITH_RAY = ServerKind("with Ray Serve", "ray", "", "/detect?threshold=0")
_START_SECONDS = 180.0


def start_both(options: argparse.Namespace, logs: Path) -> list[Server]:
    """Starts both servers and waits until they are ready."""
    times = {"fake_base_ms": options.base_ms, "fake_per_image_ms": options.per_image_ms}
    alone = start_service(logs / "alone.log", SERVE_FAKE_DEVICE, **times)
    port, grpc_port = free_ports(2)
    settings = times | {
        "http_port": str(port),
        "grpc_port": str(grpc_port),
        "log_level": "error",
        "log_format": "json",
        "decode_threads": str(len(os.sched_getaffinity(0))),  # as the other one
    }
    environment = {f"LITE_DETR_{name.upper()}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "tests.support.fake_ray"]
    with_ray = Server.start(WITH_RAY, command, environment, logs / "ray.log", port)
    servers, image = [alone, with_ray], make_images()[0]
    for server in servers:
        server.wait_for_detections(image, _START_SECONDS)
        run_load(server, "--in-flight", "16", "--seconds", "1")
    return servers


def main(arguments: Sequence[str]) -> int:
    """Compares and writes the report."""
    parser = argparse.ArgumentParser(description="Compare `lite-detr ray` with `lite-detr serve`.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--in-flight", type=int, default=16)
    parser.add_argument("--base-ms", default="1")
    parser.add_argument("--per-image-ms", default="1")
    options = parser.parse_args(arguments)
    enter_namespaces("benchmarks.serving.ray_overhead", arguments)
    document = conditions()
    rounds, memory = run_rounds(partial(start_both, options), options)
    summary = summarise(rounds)
    versions = {each.name: version_of(each.package) for each in (THIS_SERVICE, WITH_RAY)}
    document |= {"versions": versions, "memory_mib": memory, "summary": summary, "rounds": rounds}
    document["options"] = vars(options)
    title = "One replica with Ray Serve compared with `lite-detr serve`"
    write_report(RESULTS / "serving" / "ray", title, document, tables(summary, {}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
