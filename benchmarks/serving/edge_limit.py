"""What limits one edge process: responses/s at saturation, and the CPU time of each process.

    python -m benchmarks.serving.edge_limit [--rounds 3] [--seconds 4]

The device is the fake device, which sleeps 1 ms + 1 ms per image. Service and load generator share
the CPUs, so the figures per request are worth more than the rates: with CPUs of its own, an edge
process saturates at about 1 / its CPU time per response. Three loads, in turns: 32 requests in
flight; the same with a device so slow that nearly all are refused; and, if HAProxy is installed,
32 in flight through HAProxy with one thread. `benchmarks.serving.fleet` reads the results.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.report import RESULTS, conditions, table, write_report
from benchmarks.serving.measurements import run_load
from benchmarks.serving.servers import HOST, Server, free_ports
from benchmarks.serving.service_process import SERVE_FAKE_DEVICE, Service, run_service

RESULT = RESULTS / "serving" / "edge-limit"
_IN_FLIGHT = 32
_SLOW = {"fake_base_ms": 1000, "slots": 1, "priority_slots": 0}  # nearly all are refused
_HAPROXY = """
global
    nbthread 1
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend in
    bind {host}:{front}
    default_backend out
backend out
    balance leastconn
    server one {host}:{back}
"""

Figures = dict[str, float]


def measure(service: Service, seconds: float, through: Server | None = None) -> Figures:
    """One load in a closed loop: responses/s, and CPU milliseconds per request by process."""
    watched = {"edge": service, "proxy": through}
    before = {name: each.own_cpu_seconds() if each else 0.0 for name, each in watched.items()}
    everything = service.cpu_seconds()
    load = ("--in-flight", str(_IN_FLIGHT), "--seconds", str(seconds))
    report = run_load(through or service, *load)
    sent = max(1, report["sent"])
    spent = {
        name: each.own_cpu_seconds() - before[name] if each else 0.0
        for name, each in watched.items()
    }
    whole = service.cpu_seconds() - everything
    return {
        "requests_per_s": report["sent"] / report["seconds"],
        "right": report["right"],
        "refused": report["refused"],
        "wrong_or_failed": report["wrong"] + report["failed"],
        "p50_ms": report["p50_ms"],
        "edge_cpu_ms": spent["edge"] * 1000 / sent,
        "other_cpu_ms": (whole - spent["edge"]) * 1000 / sent,  # decoders and engine
        "proxy_cpu_ms": spent["proxy"] * 1000 / sent,
        "generator_cpu_ms": report["load_cpu_seconds"] * 1000 / sent,
    }


@contextmanager
def run_haproxy(folder: Path, service: Service) -> Iterator[Server | None]:
    """HAProxy in front of a service; None where it is not installed."""
    program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    if program is None:
        yield None
        return
    (port,) = free_ports(1)
    file = folder / "haproxy.cfg"
    file.write_text(_HAPROXY.format(host=HOST, front=port, back=service.port))
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen([program, "-db", "-f", str(file)], stdout=log, stderr=log)
    proxy = Server(service.kind, port, process, folder / "haproxy.log", time.monotonic())
    try:
        time.sleep(0.5)
        proxy.check_running()
        yield proxy
    finally:
        proxy.stop()


def run_rounds(rounds: int, seconds: float) -> dict[str, list[Figures]]:
    """The figures of each load, one entry a round."""
    found: dict[str, list[Figures]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            run_service(folder / "fast.log", SERVE_FAKE_DEVICE) as fast,
            run_service(folder / "slow.log", SERVE_FAKE_DEVICE, **_SLOW) as slow,
            run_haproxy(folder, fast) as proxy,
        ):
            loads: dict[str, tuple[Service, Server | None]]
            loads = {"direct": (fast, None), "refused": (slow, None)}
            if proxy is not None:
                loads["through HAProxy"] = (fast, proxy)
            for number in range(rounds + 1):
                for load, (service, through) in loads.items():
                    figures = measure(service, seconds if number else 1.0, through)
                    if number:  # the first round warms up
                        found.setdefault(load, []).append(figures)
    return found


def medians(rounds: Sequence[Figures]) -> Figures:
    """The median of each figure."""
    return {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}


def _rows(loads: dict[str, Figures]) -> list[tuple[str, ...]]:
    keys = ("requests_per_s", "right", "refused", "wrong_or_failed")
    times = ("edge_cpu_ms", "other_cpu_ms", "proxy_cpu_ms", "generator_cpu_ms")
    return [
        (name, *(f"{one[key]:.0f}" for key in keys), *(f"{one[key]:.3f}" for key in times))
        for name, one in loads.items()
    ]


def main(arguments: Sequence[str]) -> int:
    """Measures and writes the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load in a round")
    parser.add_argument("--output", type=Path, default=RESULT, help="without a suffix")
    options = parser.parse_args(arguments)
    document = conditions()
    rounds = run_rounds(options.rounds, options.seconds)
    loads = {name: medians(each) for name, each in rounds.items()}
    document |= {"loads": loads, "rounds": rounds}
    columns = ["load", "requests/s", "right", "refused", "wrong or failed", "edge CPU, ms"]
    columns += ["decoders and engine CPU, ms", "HAProxy CPU, ms", "load generator CPU, ms"]
    sections = [
        table(columns, _rows(loads)),
        f"Medians of {options.rounds} rounds, {_IN_FLIGHT} requests in flight, JPEGs of 640 x 480; "
        "CPU times are per request. Service, proxy and load generator share the CPUs.\n",
    ]
    write_report(options.output, "Where one edge process saturates", document, sections)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
