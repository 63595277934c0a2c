"""CPU time of a response under several Python interpreters: of the edge, and of all processes.

    python -m benchmarks.serving.interpreters --python "3.13=FOLDER/bin/python" [--rounds 5]

The interpreter of this command is the first one. The others need the service's packages without
torch: the device is the fake device. The services take turns, in a closed loop, while the others
are paused. Ratios are taken within a round. Writes interpreters.json and interpreters.md.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS, conditions, table, write_report
from benchmarks.serving.measurements import run_load
from benchmarks.serving.service_process import SERVE_FAKE_DEVICE, Service, start_service

Figures = dict[str, float]


def version_of(python: str) -> str:
    """Version of an interpreter."""
    command = [python, "-c", "import platform; print(platform.python_version())"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def measure(service: Service, in_flight: int, seconds: float) -> Figures:
    """CPU milliseconds per response in a closed loop."""
    edge, everything = service.own_cpu_seconds(), service.cpu_seconds()
    report = run_load(service, "--in-flight", str(in_flight), "--seconds", str(seconds))
    right = max(1, report["right"])
    return {
        "edge_ms": (service.own_cpu_seconds() - edge) * 1000 / right,
        "all_ms": (service.cpu_seconds() - everything) * 1000 / right,
        "responses_per_s": report["right"] / report["seconds"],
        "not_right": report["sent"] - report["right"],
    }


def run_rounds(pythons: dict[str, str], options: argparse.Namespace) -> dict[str, list[Figures]]:
    """The figures of each interpreter, one entry a round."""
    found: dict[str, list[Figures]] = {name: [] for name in pythons}
    with contextlib.ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        services: dict[str, Service] = {}
        for name, python in pythons.items():
            log = logs / f"{len(services)}.log"
            services[name] = start_service(log, SERVE_FAKE_DEVICE, python)
            stack.callback(services[name].stop)
            services[name].wait_until(True, poll_seconds=0.02)
            run_load(services[name], "--in-flight", "16", "--seconds", "2")
            services[name].pause()
        for _ in range(options.rounds):
            for name, service in services.items():
                service.resume()
                found[name].append(measure(service, options.in_flight, options.seconds))
                service.pause()
    return found


def summarise(rounds: dict[str, list[Figures]]) -> dict[str, Figures]:
    """Medians, and medians of each round's ratio to the first interpreter."""
    first = next(iter(rounds.values()))
    summary = {}
    for name, each in rounds.items():
        summary[name] = {key: statistics.median(one[key] for one in each) for key in each[0]}
        for key in ("edge_ms", "all_ms"):
            ratios = [one[key] / base[key] for one, base in zip(each, first, strict=True)]
            summary[name][f"{key}_ratio"] = statistics.median(ratios)
    return summary


def main() -> None:
    """Measures and writes the report."""
    parser = argparse.ArgumentParser(description="Compare Python interpreters.")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a load")
    parser.add_argument("--in-flight", type=int, default=16)
    options = parser.parse_args()
    pythons = {"this one": sys.executable}
    for each in options.python:
        name, equals, path = each.partition("=")
        if not equals or name in pythons:
            parser.error(f"--python {each}: give NAME=PATH, each name once")
        pythons[name] = path
    document: dict[str, Any] = conditions()
    versions = {name: version_of(python) for name, python in pythons.items()}
    rounds = run_rounds(pythons, options)
    summary = summarise(rounds)
    document |= {"versions": versions, "summary": summary, "rounds": rounds}
    columns = ("interpreter", "version", "edge CPU, ms", "ratio", "all CPU, ms", "ratio")
    rows = [
        (
            *(name, versions[name]),
            *(f"{one['edge_ms']:.3f}", f"{one['edge_ms_ratio']:.2f}"),
            *(f"{one['all_ms']:.2f}", f"{one['all_ms_ratio']:.2f}"),
        )
        for name, one in summary.items()
    ]
    sections = [
        table(columns, rows, texts=2),
        f"Per response; medians of {options.rounds} rounds, ratios those of the ratios within a "
        f"round; {options.in_flight} requests in flight, JPEGs of 640 x 480. Decoders and engine "
        "are processes of their own.\n",
    ]
    title = "Python interpreters under the service"
    write_report(RESULTS / "serving" / "interpreters", title, document, sections)


if __name__ == "__main__":
    main()
