"""This service compared with other inference servers: same decoding and fake device, in one run.

    sh benchmarks/serving/peers/install.sh FOLDER
    python -m benchmarks.serving.peer_comparison --venvs FOLDER [--rounds 5] [--only pytriton,mosec]

As root it runs in its own network and process namespaces, because some peers listen on all
addresses. Each round restarts all servers (mosec was seen to stop responding after some ten
thousand requests). Each server, in changing order and with all others paused, then receives

- saturation: a closed loop, for the highest throughput and the CPU time per response;
- one request at a time, for the latency without queueing;
- an open loop at 70 % of the best peer's throughput in this round, for the latency under load.

The service configures glibc to keep the memory of decoded images, which saves page faults; peers
run with the default allocator settings, or with `--keep-memory` with the same ones.

CPU time is that of all the server's processes, as a multiple of decoding and resizing the same
images with Pillow, measured before and after each load. Figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.report import RESULTS, conditions, table, version_of, write_report
from benchmarks.serving.images import make_images
from benchmarks.serving.measurements import Figures, measure, run_load
from benchmarks.serving.servers import (
    PEERS,
    THIS_SERVICE,
    Server,
    ServerKind,
    StartError,
    free_ports,
    peer_command,
)
from benchmarks.serving.service_process import SERVE_FAKE_DEVICE, start_service

_LOAD_SHARE = 0.7
_WARM_UP = ("--in-flight", "16", "--seconds", "1")
_START_SECONDS = 180.0
_NOT_RIGHT = ("wrong", "refused", "failed")  # requests without a right response
_IN_NAMESPACE = "LITE_DETR_BENCH_IN_NAMESPACE"
_SERVICE = THIS_SERVICE.name


def start_all(options: argparse.Namespace, logs: Path) -> tuple[list[Server], dict[str, str]]:
    """Starts all servers at once and waits until they are ready.

    Returns:
        The running servers, and the reason for each one that is left out.
    """
    wanted = options.only.split(",") if options.only else [each.name for each in PEERS]
    chosen = [THIS_SERVICE, *(each for each in PEERS if each.name in wanted)]
    started: list[Server] = []
    failures: dict[str, str] = {}
    for kind in chosen:
        try:
            started.append(_start(kind, options, logs))
        except StartError as error:
            failures[kind.name] = str(error)
    servers, image = [], make_images()[0]
    for server in started:
        try:
            server.wait_for_detections(image, _START_SECONDS)
            servers.append(server)
        except StartError as error:
            failures[server.kind.name] = str(error)
            server.stop()
    for server in servers:
        run_load(server, *_WARM_UP)
    for name, reason in failures.items():
        print(f"{name} is left out: {reason}", file=sys.stderr, flush=True)
    return servers, failures


def _start(kind: ServerKind, options: argparse.Namespace, logs: Path) -> Server:
    log = logs / f"{kind.name}.log"
    base, per_image = str(options.base_ms), str(options.per_image_ms)
    if kind == THIS_SERVICE:
        times = {"fake_base_ms": base, "fake_per_image_ms": per_image}
        return start_service(log, SERVE_FAKE_DEVICE, **times)
    (port,) = free_ports(1)
    device = logs / f"{kind.name}.device"
    device.touch()
    environment = {"PEER_PORT": str(port), "PEER_BASE_MS": base, "PEER_PER_IMAGE_MS": per_image}
    environment["PEER_DEVICE"] = str(device)
    if options.keep_memory:
        environment["PEER_KEEPS_MEMORY"] = "1"
    return Server.start(kind, peer_command(kind, options.venvs), environment, log, port)


def run_round(
    servers: Sequence[Server], number: int, options: argparse.Namespace
) -> dict[str, dict[str, Figures]]:
    """The figures of one round, by server and load."""
    images = make_images()
    first = number % len(servers)
    order = [*servers[first:], *servers[:first]]
    seconds = str(options.seconds)
    found: dict[str, dict[str, Figures]] = {each.kind.name: {} for each in order}
    for server in _each_alone(order):
        load = ("--in-flight", str(options.in_flight), "--seconds", seconds)
        found[server.kind.name]["saturation"] = measure(server, images, *load)
    for server in _each_alone(order):
        load = ("--in-flight", "1", "--seconds", str(options.seconds / 2))
        found[server.kind.name]["single"] = measure(server, images, *load)
    peers = [each for name, each in found.items() if name != _SERVICE] or list(found.values())
    rate = _LOAD_SHARE * max(each["saturation"]["throughput"] for each in peers)
    for server in _each_alone(order):
        arrivals = ("--rate", f"{rate:.2f}", "--seed", str(number + 1))
        figures = measure(server, images, *arrivals, "--seconds", seconds)
        found[server.kind.name]["open"] = figures | {"rate": rate}
    return found


def run_rounds(
    start: Callable[[Path], list[Server]], options: argparse.Namespace
) -> tuple[list[dict[str, dict[str, Figures]]], dict[str, int]]:
    """Runs all rounds, each with servers that are started for it.

    Args:
        start: starts them with logs in this folder, and waits until they are ready.
        options: of the command.

    Returns:
        The figures of each round, and the MiB of each server at the end of the last one.
    """
    rounds: list[dict[str, dict[str, Figures]]] = []
    memory: dict[str, int] = {}
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as logs:
            servers = start(Path(logs))
            try:
                rounds.append(run_round(servers, number, options))
                memory = {one.kind.name: round(one.memory_bytes() / 2**20) for one in servers}
            finally:
                for server in servers:
                    server.stop()
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
    return rounds, memory


def enter_namespaces(module: str, arguments: Sequence[str]) -> None:
    """As root, runs `python -m module` in network and process namespaces of its own instead."""
    unshare = shutil.which("unshare")
    if _IN_NAMESPACE not in os.environ and unshare and os.geteuid() == 0:
        command = ["sh", "-c", 'ip link set lo up; exec "$@"', "sh", sys.executable, "-m", module]
        os.environ[_IN_NAMESPACE] = "1"
        flags = ["-n", "-p", "-f", "--kill-child", "--mount-proc"]
        os.execv(unshare, [unshare, *flags, *command, *arguments])
    # The first process of a namespace ignores signals that it has no handler for.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated; no report written"))


def _each_alone(servers: Sequence[Server]) -> Iterator[Server]:
    """Yields each server while all others are paused, after a warm-up."""
    for server in servers:
        server.pause()
    for server in servers:
        server.resume()
        run_load(server, *_WARM_UP)
        yield server
        server.pause()


def summarise(rounds: Sequence[dict[str, dict[str, Figures]]]) -> dict[str, dict[str, Figures]]:
    """Medians over the rounds; ratios are medians of each round's ratio to this service.

    Requests without a right response are summed. Servers missing in a round are left out.
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
                ratios = [one[name][load][key] / one[_SERVICE][load][key] for one in rounds]
                figures[f"{key}_to_service"] = statistics.median(ratios)
            for key in _NOT_RIGHT:
                figures[key] = sum(one[name][load][key] for one in rounds)
            summary[name][load] = figures
    return summary


def tables(summary: dict[str, dict[str, Figures]], failures: dict[str, str]) -> list[str]:
    """The report's tables."""
    columns = ["", "responses/s", "of ours", "CPU x bare", "single p50, ms", "of ours"]
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
    parser = argparse.ArgumentParser(description="Compare this service with its peers.")
    parser.add_argument("--venvs", type=Path, default=Path.home() / ".cache/lite-detr/peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--in-flight", type=int, default=16)
    parser.add_argument("--base-ms", type=float, default=1.0)
    parser.add_argument("--per-image-ms", type=float, default=1.0)
    parser.add_argument("--keep-memory", action="store_true", help="for the peers too")
    parser.add_argument("--only", default="", help="names of peers, separated by commas")
    parser.add_argument("--name", default="peers", help="name of the report's files")
    options = parser.parse_args(arguments)
    options.venvs = options.venvs.resolve()
    enter_namespaces("benchmarks.serving.peer_comparison", arguments)
    document = conditions()
    failures: dict[str, str] = {}

    def start(logs: Path) -> list[Server]:
        servers, failed = start_all(options, logs)
        failures.update(failed)
        return servers

    rounds, memory = run_rounds(start, options)
    summary = summarise(rounds)
    document["versions"] = {
        each.name: version_of(each.package, each.python(options.venvs))
        for each in (THIS_SERVICE, *PEERS)
        if each.name in summary
    }
    document |= {"left_out": failures, "memory_mib": memory, "summary": summary, "rounds": rounds}
    title, sections = "This service compared with its peers", tables(summary, failures)
    write_report(RESULTS / "serving" / options.name, title, document, sections)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
