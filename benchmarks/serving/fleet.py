"""A fleet of replicas behind a load balancer, on a simulated clock.

The admission, slots, queues, batching rules, predictions and recovery of `service` run unchanged;
only edge, decoders, engines, balancer and network are replaced by times. Nothing is served.

The report of benchmarks/results/serving/fleet.md, in some minutes on one core:

    python -m benchmarks.serving.fleet
    python -m benchmarks.serving.fleet --only load failures

Your own fleet, printed and not written: --rate, and what differs from the defaults:

    python -m benchmarks.serving.fleet --rate 120 --replicas 10
    python -m benchmarks.serving.fleet --rate 500 --replicas 4 --engines 2 --engine 2+6 --seconds 30
    python -m benchmarks.serving.fleet --rate 60 --traffic diurnal --seconds 1200 --autoscale 0.7
    python -m benchmarks.serving.fleet --rate 80 --replicas 8 --fail engine@10 machine@20

An engine is "default" (the default model on two CPU cores, as measured), another measured one,
BASE+PER_IMAGE in milliseconds for 640 x 480, or a file: {"384x512": {"1": 12.5, "8": 60.0}} with
padded height x width, images in the batch, milliseconds.

Each edge process has one core of its own; decoders and the balancer's threads likewise. Times per
request at the edge come from benchmarks/results/serving/edge-limit.json.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.report import RESULTS, conditions, table, write_report
from benchmarks.serving.simulation.autoscaler import AutoscaleOptions
from benchmarks.serving.simulation.balancer import BALANCERS
from benchmarks.serving.simulation.figures import Figures
from benchmarks.serving.simulation.fleet_run import FAILURES, Failure, FleetOptions, simulate
from benchmarks.serving.simulation.replica import OK, ReplicaOptions
from benchmarks.serving.simulation.study import SIZES, Row, Section, Study
from benchmarks.serving.simulation.times import EdgeTimes, engine_times, parse_shapes
from benchmarks.serving.simulation.traffic import Segment, bursty, diurnal, steady
from service.batching.scheduler import BatchPolicy

_COLUMNS = (
    *("", "offered/s", "results/s", "p50, ms", "p99, ms", "p99.9, ms", "batch", "padding"),
    *("without a result", "engines", "edge", "decoders", "balancer", "limit", "replicas"),
)
_SECTIONS = tuple(
    ["formula", "load", "balancers", "traffic", "autoscaling", "failures", "bottleneck", "large"]
)

_OF_REPORT = {"only", "scale", "output"}
_OF_ONE = {
    *("traffic", "seconds", "replicas", "engines", "engine", "sizes", "max_batch_size", "decoders"),
    *("timeout_ms", "balancer", "balancer_threads", "autoscale", "max_replicas", "fail"),
}
_INTERRUPTED = 130
_MANY = 200_000  # requests, from which on the time is announced
_SECONDS_PER_REQUEST = 0.00015  # of CPU time, as seen

_Number = TypeVar("_Number", int, float)


def row_of(name: str, figures: Figures) -> tuple[str, ...]:
    """One line of a table."""
    failed = {kind: count for kind, count in figures.outcomes.items() if kind != OK}
    kinds = ", ".join(f"{kind} {count}" for kind, count in failed.items())
    share = f"{figures.refused_share:.2%} ({kinds})" if failed else "0"
    least, most = figures.replicas
    replicas = f"{least}" if least == most else f"{least} to {most}"
    if least != most:
        replicas += f", {figures.replica_seconds / figures.seconds:.1f} on average"
    return (
        name,
        f"{figures.requests / figures.seconds:.1f}" if figures.seconds else "-",
        f"{figures.per_second:.1f}",
        *(_milliseconds(one) for one in (figures.p50_ms, figures.p99_ms, figures.p999_ms)),
        f"{figures.batch_size:.2f}",
        f"{figures.padding_share:.1%}",
        share,
        f"{figures.engines_busy:.2f}",
        f"{figures.edge_busy:.2f}",
        f"{figures.decoders_busy:.2f}",
        f"{figures.balancer_busy:.2f}",
        figures.bottleneck or "-",
        replicas,
    )


def _milliseconds(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0f}"


def _section(section: Section, found: Sequence[tuple[Row, Figures]]) -> str:
    head = f"## {section.title}\n\n{section.text}\n\n"
    if found[0][0].expected_wait_ms:
        columns = ("", "requests", "formula, ms", "simulated, ms", "difference")
        return head + table(columns, [_check(row, figures) for row, figures in found])
    return head + table(_COLUMNS, [row_of(row.name, figures) for row, figures in found])


def _check(row: Row, figures: Figures) -> tuple[str, ...]:
    expected, seen = row.expected_wait_ms, figures.mean_wait_ms
    difference = f"{seen / expected - 1:+.1%}"
    return row.name, str(figures.requests), f"{expected:.2f}", f"{seen:.2f}", difference


def _run_study(options: argparse.Namespace) -> None:
    output = options.output
    if output is None and not options.only and options.scale == 1:
        output = RESULTS / "serving" / "fleet"
    if output is not None:
        _check_writable(output)
    document = conditions()
    study = Study(options.seed, options.scale)
    sections, results, started = study.sections(), {}, time.process_time()
    texts = [_introduction(study)]
    for name in options.only or _SECTIONS:
        found = study.run(sections[name], lambda line: print(line, file=sys.stderr, flush=True))
        texts.append(_section(sections[name], found))
        results[name] = {row.name: _plain(figures) for row, figures in found}
    if output is None:
        print("\n".join(texts))
        return
    document |= {
        "seed": options.seed,
        "edge_seconds": asdict(study.edge),
        "engines": [study.slow.source, study.fast.source],
        "sizes": SIZES,
        "cpu_seconds_of_this_run": round(time.process_time() - started, 1),
        "sections": results,
    }
    write_report(output, "Simulated fleets", document, texts)


def _check_writable(output: Path) -> None:
    """Raises OSError now and not at the end of the run."""
    output.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".json", ".md"):
        with output.with_suffix(suffix).open("a"):
            pass


def _introduction(study: Study) -> str:
    edge = study.edge
    times = ", ".join(
        f"{name} {seconds * 1000:.3f} ms"
        for name, seconds in (
            ("until admission", edge.receive),
            ("for the response", edge.respond),
            ("decoding", edge.decode),
            ("HAProxy", edge.balance),
        )
    )
    return (
        "The service's own admission, slots, batching and recovery, on a simulated clock; edge, "
        "decoders, engines and balancer only take time. Not simulated: the network, that parts on "
        f"one machine share its CPUs, retries of clients. Times per request: {times} (measured, "
        "edge-limit.md); each edge process, decoder and balancer thread has a core of its own. "
        f"Sizes of the images: {SIZES}. Latencies count from the arrival at the balancer and are "
        "those of requests with a result. Columns engines to balancer: share of the time that each "
        "was busy (engines: mean, others: the busiest); above 1 its queue grows.\n"
    )


def _plain(figures: Figures) -> dict[str, Any]:
    document = asdict(figures) | {"bottleneck": figures.bottleneck}
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in document.items()
    }


def fleet_of(options: argparse.Namespace) -> FleetOptions:
    """The fleet that the command line describes."""
    scale = None
    if options.autoscale is not None:
        scale = AutoscaleOptions(options.autoscale, most=options.max_replicas)
    return FleetOptions(
        replica=ReplicaOptions(
            times=options.engine,
            edge=EdgeTimes.measured(),
            engines=options.engines,
            decoders=options.decoders or max(2, 2 * options.engines),
            policy=BatchPolicy(max_batch_size=options.max_batch_size),
            timeout_seconds=options.timeout_ms / 1000,
            jitter=0.1,
        ),
        traffic=_traffic(options),
        shapes=options.sizes,
        replicas=options.replicas,
        balancer=options.balancer,
        balancer_threads=options.balancer_threads,
        seed=options.seed,
        warm_up=min(5.0, options.seconds / 10),
        failures=options.fail,
        autoscale=scale,
    )


def _traffic(options: argparse.Namespace) -> list[Segment]:
    if options.traffic == "diurnal":
        return diurnal(options.rate, options.seconds)
    if options.traffic == "bursty":
        return bursty(options.rate, options.seconds, options.seed)
    return steady(options.rate, options.seconds)


def _at_least(kind: type[_Number], least: float, most: float = 1e6) -> Any:
    def read(text: str) -> _Number:
        value = kind(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not between {least:g} and {most:g}")
        return value

    read.__name__ = "whole number" if kind is int else "number"
    return read


def _reading(parse: Any) -> Any:
    """Shows the message of a ValueError."""

    def read(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def _failure(text: str) -> Failure:
    kind, _, at = text.partition("@")
    try:
        seconds = float(at)
    except ValueError:
        seconds = -1.0
    if kind not in FAILURES or not 0 <= seconds < math.inf:
        raise ValueError(f"{text!r} is not KIND@SECONDS; kinds: {', '.join(FAILURES)}")
    return Failure(kind, seconds)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = result.add_argument
    add("--seed", type=int, default=1, help="of arrivals, sizes, balancer and engines")
    report = result.add_argument_group("the report")
    report.add_argument(
        "--only", nargs="+", choices=_SECTIONS, metavar="SECTION",
        help=f"these sections: {', '.join(_SECTIONS)}",
    )  # fmt: skip
    report.add_argument(
        "--scale", type=_at_least(float, 0.01, 100), default=1.0, help="multiplies all durations"
    )
    report.add_argument(
        "--output", type=Path, metavar="FILE",
        help="FILE.json and FILE.md are written; default: benchmarks/results/serving/fleet for the "
        "whole report, none for a part of it",
    )  # fmt: skip
    one = result.add_argument_group("your own fleet")
    add = one.add_argument
    positive = _at_least(float, 0.001)
    add("--rate", type=positive, help="mean requests/s; without it the report is made")
    add("--traffic", choices=("steady", "diurnal", "bursty"), default="steady")
    add("--seconds", type=positive, default=60.0, help="simulated time; a day if diurnal")
    add("--replicas", type=_at_least(int, 1, 10_000), default=1, help="at the start")
    add("--engines", type=_at_least(int, 1, 64), default=1, help="per replica")
    add("--engine", type=_reading(engine_times), default="default", help="see above")
    add("--sizes", type=_reading(parse_shapes), default="640x480", help=f"for example {SIZES}")
    add("--max-batch-size", type=_at_least(int, 1, 1024), default=8)
    add("--decoders", type=_at_least(int, 0, 256), default=0, help="0: two per engine")
    add("--timeout-ms", type=positive, default=2000.0, help="of a request")
    add("--balancer", choices=tuple(BALANCERS), default="least-connections")
    add("--balancer-threads", type=_at_least(int, 1, 1024), default=1)
    add("--autoscale", type=_at_least(float, 0.05, 1), help="target of the mean busy ratio")
    add("--max-replicas", type=_at_least(int, 1, 10_000), default=100, help="with --autoscale")
    add("--fail", type=_reading(_failure), nargs="+", default=(), metavar="KIND@SECONDS",
        help=f"{', '.join(FAILURES)}; slow: three times as long for 10 s")  # fmt: skip
    return result


def main(arguments: Sequence[str]) -> int:
    """Makes the report, or simulates one fleet and prints its figures."""
    commands = parser()
    options = commands.parse_args(arguments)
    _check_combination(commands, options)
    try:
        if options.rate is None:
            _run_study(options)
            return 0
        return _run_one(options)
    except OSError as error:
        commands.error(f"{error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return _INTERRUPTED


def _check_combination(commands: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuses options that the chosen mode would ignore."""
    default = vars(commands.parse_args([]))
    given = {
        name
        for name, value in vars(options).items()
        if getattr(value, "source", value) != getattr(default[name], "source", default[name])
    }
    unused = given & (_OF_ONE if options.rate is None else _OF_REPORT)
    if unused:
        flags = ", ".join(sorted(f"--{name.replace('_', '-')}" for name in unused))
        commands.error(f"{flags}: only {'with' if options.rate is None else 'without'} --rate")


def _run_one(options: argparse.Namespace) -> int:
    fleet = fleet_of(options)
    requests = sum((one.end - one.start) * one.rate for one in fleet.traffic)
    if requests > _MANY:
        seconds = requests * _SECONDS_PER_REQUEST
        print(f"about {requests:,.0f} requests, {seconds:,.0f} s of CPU time", file=sys.stderr)
    figures = simulate(fleet)
    if not figures.requests:
        print("no request arrived: raise --rate or --seconds", file=sys.stderr)
        return 1
    engine = fleet.replica.times
    capacity = engine.capacity(fleet.shapes, options.max_batch_size)
    print(f"engine: {engine.source}: {capacity:.1f} images/s in full batches")
    width = max(map(len, _COLUMNS))
    for column, value in zip(_COLUMNS[1:], row_of("", figures)[1:], strict=True):
        print(f"{column:{width}}  {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
