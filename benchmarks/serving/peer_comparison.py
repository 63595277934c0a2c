"""This service beside its peers: the same decoding and fake device behind each, in one run.

    sh benchmarks/serving/peers/install.sh FOLDER
    python -m benchmarks.serving.peer_comparison --venvs FOLDER [--rounds 5] [--only pytriton,mosec]

Runs in network and process namespaces of its own where it may, as some peers listen on all
addresses. Each round starts all servers anew (after some ten thousand requests mosec was seen to
answer no more); each of them, in changing order and with all others stopped, then gets

- saturation: a closed loop of requests, for the most throughput and the CPU time of an answer;
- one request at a time, for the latency without queueing;
- an open loop at 70 % of the best peer's throughput in this round, for the latency under load.

The service has glibc keep the memory of images that it decoded for the next ones, which saves page
faults; peers run as they come, or with `--keep-memory` are given the same.

CPU time is that of the server's whole process tree, told as a multiple of decoding and resizing
the same images alone, measured just before and after. Figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS, conditions, table, version_of, write_report
from benchmarks.serving.images import decode_with_pillow, make_photos
from benchmarks.serving.servers import (
    CONTENDERS,
    SERVICE,
    CannotStart,
    Contender,
    Server,
    free_ports,
    peer_command,
    start_own_service,
)
from benchmarks.serving.service_process import FAKE_SERVICE

_LOAD_SHARE = 0.7
_WARM = ("--in-flight", "16", "--seconds", "1")
_BARE_ROUNDS = 1  # times all photos
_START_SECONDS = 180.0
_NOT_RIGHT = ("wrong", "refused", "failed")  # what became of a request that got no right answer
_INSIDE = "LITE_DETR_BENCH_INSIDE"

Figures = dict[str, float]


def measure_bare(photos: Sequence[Any]) -> float:
    """CPU milliseconds of Pillow alone to decode and resize one image, in this process."""
    started = time.process_time()
    for _ in range(_BARE_ROUNDS):
        for photo in photos:
            decode_with_pillow(photo.data)
    return (time.process_time() - started) * 1000 / (_BARE_ROUNDS * len(photos))


def run_load(server: Server, *arguments: str) -> dict[str, Any]:
    """One run of the load generator, in a process of its own."""
    contender = server.contender
    command = [sys.executable, "-m", "benchmarks.serving.load", "--port", str(server.port)]
    command += ["--path", contender.path, "--dialect", contender.dialect, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def measure(server: Server, photos: Sequence[Any], *load: str) -> Figures:
    """One load, with the server's CPU time beside that of bare decoding."""
    bare, cpu = measure_bare(photos), server.cpu_seconds()
    report = run_load(server, *load)
    cpu = server.cpu_seconds() - cpu
    bare = (bare + measure_bare(photos)) / 2
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


def start_all(options: argparse.Namespace, logs: Path) -> tuple[list[Server], dict[str, str]]:
    """Starts the contenders, all at once.

    Returns:
        Those that run, and why the others do not.
    """
    wanted = options.only.split(",") if options.only else [each.name for each in CONTENDERS]
    chosen = [each for each in CONTENDERS if each.name in (SERVICE, *wanted)]
    started: list[Server] = []
    failures: dict[str, str] = {}
    for contender, port in zip(chosen, free_ports(len(chosen)), strict=True):
        try:
            started.append(_start(contender, port, options, logs))
        except CannotStart as error:
            failures[contender.name] = str(error)
    servers, photo = [], make_photos()[0]
    for server in started:
        try:
            server.wait_until_it_answers(photo, _START_SECONDS)
            servers.append(server)
        except CannotStart as error:
            failures[server.contender.name] = str(error)
            server.stop()
    for server in servers:
        run_load(server, *_WARM)
    for name, reason in failures.items():
        print(f"{name} is left out: {reason}", file=sys.stderr, flush=True)
    return servers, failures


def _start(contender: Contender, port: int, options: argparse.Namespace, logs: Path) -> Server:
    log = logs / f"{contender.name}.log"
    base, per_image = str(options.base_ms), str(options.per_image_ms)
    if contender.name == SERVICE:
        times = {"fake_base_ms": base, "fake_per_image_ms": per_image}
        return start_own_service(port, log, module=FAKE_SERVICE, **times)
    device = logs / f"{contender.name}.device"
    device.touch()
    environment = {"PEER_PORT": str(port), "PEER_BASE_MS": base, "PEER_PER_IMAGE_MS": per_image}
    environment["PEER_DEVICE"] = str(device)
    if options.keep_memory:
        environment["PEER_KEEPS_MEMORY"] = "1"
    command = peer_command(contender, options.venvs)
    return Server.start(contender, command, environment, log, port)


def run_round(
    servers: Sequence[Server], number: int, options: argparse.Namespace
) -> dict[str, dict[str, Figures]]:
    """Every measurement of one round, by contender."""
    photos = make_photos()
    turn = number % len(servers)
    order = [*servers[turn:], *servers[:turn]]
    seconds = str(options.seconds)
    found: dict[str, dict[str, Figures]] = {each.contender.name: {} for each in order}
    for server in _one_after_the_other(order):
        load = ("--in-flight", str(options.in_flight), "--seconds", seconds)
        found[server.contender.name]["saturation"] = measure(server, photos, *load)
    for server in _one_after_the_other(order):
        load = ("--in-flight", "1", "--seconds", str(options.seconds / 2))
        found[server.contender.name]["single"] = measure(server, photos, *load)
    peers = [each for name, each in found.items() if name != SERVICE] or list(found.values())
    rate = _LOAD_SHARE * max(each["saturation"]["throughput"] for each in peers)
    for server in _one_after_the_other(order):
        load = ("--rate", f"{rate:.2f}", "--seconds", seconds, "--seed", str(number + 1))
        figures = measure(server, photos, *load)
        found[server.contender.name]["open"] = figures | {"rate": rate}
    return found


def _one_after_the_other(servers: Sequence[Server]) -> Iterator[Server]:
    """Each server while all others are stopped, warm again after its own stop."""
    for server in servers:
        server.pause()
    for server in servers:
        server.resume()
        run_load(server, *_WARM)
        yield server
        server.pause()


def summarise(rounds: Sequence[dict[str, dict[str, Figures]]]) -> dict[str, dict[str, Figures]]:
    """Medians over the rounds; ratios are medians of each round's own ratio to this service.

    What was not answered rightly is the sum. Who was missing in a round is left out.
    """
    summary: dict[str, dict[str, Figures]] = {}
    for name in rounds[0]:
        if any(name not in one for one in rounds):
            continue
        summary[name] = {}
        for load in rounds[0][name]:
            keys = rounds[0][name][load]
            figures = {
                key: statistics.median(one[name][load][key] for one in rounds) for key in keys
            }
            for key in ("throughput", "p50_ms", "p99_ms", "cpu_ms"):
                ratios = [one[name][load][key] / one[SERVICE][load][key] for one in rounds]
                figures[f"{key}_to_service"] = statistics.median(ratios)
            for key in _NOT_RIGHT:
                figures[key] = sum(one[name][load][key] for one in rounds)
            summary[name][load] = figures
    return summary


def tables(summary: dict[str, dict[str, Figures]], failures: dict[str, str]) -> list[str]:
    """The report's tables."""
    columns = ["", "answers/s", "of ours", "CPU x bare", "single p50, ms", "of ours"]
    columns += ["p50 at 70 %, ms", "p99 at 70 %, ms", "of ours", "CPU x bare at 70 %", *_NOT_RIGHT]
    rows = []
    for name, loads in summary.items():
        full, single, steady = loads["saturation"], loads["single"], loads["open"]
        rows.append(
            [
                name,
                f"{full['throughput']:.0f}",
                f"{full['throughput_to_service']:.2f}",
                f"{full['cpu_ratio']:.2f}",
                f"{single['p50_ms']:.1f}",
                f"{single['p50_ms_to_service']:.2f}",
                f"{steady['p50_ms']:.0f}",
                f"{steady['p99_ms']:.0f}",
                f"{steady['p99_ms_to_service']:.2f}",
                f"{steady['cpu_ratio']:.2f}",
                *(f"{sum(load[key] for load in loads.values()):.0f}" for key in _NOT_RIGHT),
            ]
        )
    left_out = [f"Left out: {name}: {reason}\n" for name, reason in failures.items()]
    return [table(columns, rows), *left_out]


def main(arguments: Sequence[str]) -> int:
    """Compares and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venvs", type=Path, default=Path.home() / ".cache/lite-detr/peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--in-flight", type=int, default=16)
    parser.add_argument("--base-ms", type=float, default=1.0)
    parser.add_argument("--per-image-ms", type=float, default=1.0)
    parser.add_argument("--keep-memory", action="store_true", help="for the peers, too")
    parser.add_argument("--only", default="", help="names of peers, parted by commas")
    parser.add_argument("--name", default="peers", help="of the report's files")
    options = parser.parse_args(arguments)
    options.venvs = options.venvs.resolve()
    if _INSIDE not in os.environ and (unshare := shutil.which("unshare")) and os.geteuid() == 0:
        inside = ["sh", "-c", 'ip link set lo up; exec "$@"', "sh", sys.executable]
        inside += ["-m", "benchmarks.serving.peer_comparison", *arguments]
        os.environ[_INSIDE] = "1"
        os.execv(unshare, [unshare, "-n", "-p", "-f", "--kill-child", "--mount-proc", *inside])
    # The first process of a namespace is ended by nothing that it has no handler for.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended; nothing is written"))
    document = conditions()
    rounds, memory, failures = [], {}, {}
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as logs:
            servers, failed = start_all(options, Path(logs))
            failures |= failed
            try:
                rounds.append(run_round(servers, number, options))
                memory = {one.contender.name: round(one.memory_bytes() / 2**20) for one in servers}
            finally:
                for server in servers:
                    server.stop()
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
    summary = summarise(rounds)
    document["versions"] = {
        each.name: version_of(each.package, each.python(options.venvs))
        for each in CONTENDERS
        if each.name in summary
    }
    document |= {"left_out": failures, "memory_mib": memory, "summary": summary, "rounds": rounds}
    title, sections = "This service beside its peers", tables(summary, failures)
    write_report(RESULTS / "serving" / options.name, title, document, sections)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
