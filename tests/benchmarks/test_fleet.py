"""The simulated fleet: queueing theory, outcomes, failures, the autoscaler's rule."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from benchmarks.report import RESULTS
from benchmarks.serving import fleet
from benchmarks.serving.simulation.autoscaler import AutoscaleOptions, Autoscaler
from benchmarks.serving.simulation.balancer import BALANCERS
from benchmarks.serving.simulation.fleet_run import FAILURES, Failure, FleetOptions, simulate
from benchmarks.serving.simulation.replica import OK, ReplicaOptions
from benchmarks.serving.simulation.times import (
    FREE_EDGE,
    EdgeTimes,
    EngineTimes,
    Shape,
    engine_times,
    parse_shapes,
)
from benchmarks.serving.simulation.traffic import Segment, arrivals, bursty, diurnal, steady
from service.batching.scheduler import BatchPolicy

RESULT = RESULTS / "serving" / "fleet.md"
SHAPES = parse_shapes("640x480")
BUCKET = SHAPES[0].bucket
TEN_MS = EngineTimes("test", {BUCKET: {1: 0.010}})
EDGE = EdgeTimes(receive=0.0003, respond=0.0007, decode=0.003, balance=0.0001)
REPLICA = ReplicaOptions(TEN_MS, EDGE, timeout_seconds=0.5, jitter=0.1)
SMALL = FleetOptions(REPLICA, steady(150, 2), SHAPES, replicas=2, start_seconds=1)


def waits_of_a_queue(times: Sequence[float], seconds: float) -> list[float]:
    """Waiting times by Lindley's recursion: one server, first come first served."""
    waits, free = [], 0.0
    for time in times:
        waits.append(max(0.0, free - time))
        free = max(free, time) + seconds
    return waits


@pytest.mark.parametrize("rho", [0.5, 0.8])
def test_arrivals_wait_as_in_an_m_d_1_queue(rho: float) -> None:
    times = list(arrivals(steady(rho / 0.010, 2000), random.Random(1)))
    expected = rho * 0.010 / (2 * (1 - rho))
    assert fmean(waits_of_a_queue(times, 0.010)) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("rho", [0.5, 0.8])
def test_one_engine_is_such_a_queue(rho: float) -> None:
    one_by_one = BatchPolicy(max_batch_size=1)
    replica = ReplicaOptions(TEN_MS, FREE_EDGE, policy=one_by_one, timeout_seconds=1e6, slots=4096)
    traffic = steady(rho / 0.010, 6)
    waits = waits_of_a_queue(list(arrivals(traffic, random.Random(1))), 0.010)
    found = simulate(FleetOptions(replica, traffic, SHAPES, seed=1))
    assert found.requests == len(waits)
    assert found.mean_wait_ms == pytest.approx(1000 * fmean(waits), rel=1e-6)


@pytest.mark.parametrize("kind", FAILURES)
def test_every_request_has_one_outcome_whatever_fails(kind: str) -> None:
    options = replace(SMALL, failures=(Failure(kind, 1.0),), restart_seconds=0.5)
    found = simulate(options)
    assert sum(found.outcomes.values()) == found.requests
    assert found.requests == len(list(arrivals(list(options.traffic), random.Random(1))))
    assert found.outcomes[OK] > 0.5 * found.requests


def test_requests_of_a_lost_fleet_have_an_outcome() -> None:
    machine = (Failure("machine", 1.0),)
    traffic = steady(50, 3)
    found = simulate(
        replace(SMALL, replicas=1, traffic=traffic, failures=machine, start_seconds=100)
    )
    assert set(found.outcomes) == {OK, "lost", "no_replica"}
    assert sum(found.outcomes.values()) == found.requests


def test_more_engines_never_raise_refusals() -> None:
    overload = replace(SMALL, replicas=1, traffic=steady(400, 0.7))
    refused = [
        simulate(replace(overload, replica=replace(REPLICA, engines=engines))).refused_share
        for engines in (1, 2, 6)
    ]
    assert refused == sorted(refused, reverse=True)
    assert refused[0] > 0.5
    assert refused[-1] == 0


@pytest.mark.parametrize("balancer", BALANCERS)
def test_equal_seeds_give_equal_figures_and_others_do_not(balancer: str) -> None:
    options = replace(SMALL, balancer=balancer, traffic=steady(150, 1))
    first, again, other = (simulate(replace(options, seed=seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_edge_is_the_limit_of_a_replica_with_many_engines() -> None:
    replica = replace(REPLICA, engines=16, decoders=32)
    found = simulate(replace(SMALL, replica=replica, replicas=1, traffic=steady(1500, 0.3)))
    assert found.bottleneck == "edge"
    assert found.engines_busy < 0.9


def test_a_slow_replica_gets_less_with_fewest_open_requests_than_in_turn() -> None:
    slow = replace(SMALL, replicas=4, failures=(Failure("slow", 0.0, slow_factor=4),))
    in_turn, fewest = (
        simulate(replace(slow, balancer=name)) for name in ("round-robin", "least-connections")
    )
    assert fewest.p99_ms < in_turn.p99_ms


def test_the_busy_ratio_rises_with_the_load_long_before_response_times() -> None:
    one_by_one = replace(REPLICA, policy=BatchPolicy(max_batch_size=1), timeout_seconds=1e6)
    # 30, 70 and 105 % of what the engines can compute.
    found = [
        simulate(replace(SMALL, replica=one_by_one, traffic=steady(2 * 100 * load, 8)))
        for load in (0.3, 0.7, 1.05)
    ]
    busy, p50 = [each.engines_busy for each in found], [each.p50_ms for each in found]
    assert busy == pytest.approx([0.3, 0.7, 1.0], abs=0.06)
    assert p50[1] < 1.5 * p50[0]
    assert p50[2] > 3 * p50[0]


def test_autoscaler_adds_replicas_for_the_peak() -> None:
    scale = AutoscaleOptions(target=0.1, least=1, most=5, every_seconds=2)
    options = replace(SMALL, replicas=1, traffic=steady(60, 12), autoscale=scale)
    found = simulate(options)
    assert found.replicas[0] == 1
    assert 2 <= found.replicas[1] <= 5
    assert found.history


def test_autoscaler_follows_the_ratio_grows_stepwise_and_shrinks_late() -> None:
    scaler = Autoscaler(AutoscaleOptions(target=0.5, least=1, most=50, down_seconds=60))
    assert scaler.decide(0, [0.52, 0.53], 2) == 2  # within the tolerance
    assert scaler.decide(15, [0.9, 0.9], 2) == 4
    assert scaler.decide(30, [1.0] * 10, 4) == 8  # at most twice as many, or four more
    assert scaler.decide(45, [0.1] * 8, 8) == 8
    assert scaler.decide(91, [0.1] * 8, 8) == 8 - 6
    assert scaler.decide(200, [], 2) == 2  # no replica reports: no change


def test_engine_times_are_interpolated_and_scaled_by_padded_pixels() -> None:
    table = EngineTimes("test", {(384, 512): {1: 0.01, 8: 0.045}})
    assert table.seconds((384, 512), 1) == pytest.approx(0.010)
    assert table.seconds((384, 512), 3) == pytest.approx(0.020)
    assert table.seconds((384, 512), 10) == pytest.approx(0.055)
    assert table.seconds((384, 1024), 1) == pytest.approx(0.020)
    assert table.capacity([Shape((384, 512), 1, 1.0)], 8) == pytest.approx(8 / 0.045)


@pytest.mark.parametrize("name", ["default", "default-fp32", "r50-bf16"])
def test_measured_engines_are_read_from_the_results(name: str) -> None:
    times = engine_times(name)
    assert 0.01 < times.seconds(BUCKET, 1) < 2
    assert times.seconds(BUCKET, 8) == pytest.approx(8 * times.seconds(BUCKET, 1))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--rate", "0"],
        ["--rate", "nan"],
        ["--rate", "5", "--engine", "fast"],
        ["--rate", "5", "--engine", "1+"],
        ["--rate", "5", "--engine", "0+0"],
        ["--rate", "5", "--engine", "missing.json"],
        ["--rate", "5", "--sizes", "640"],
        ["--rate", "5", "--sizes", "0x480"],
        ["--rate", "5", "--sizes", "640x480:-1"],
        ["--rate", "5", "--fail", "engine"],
        ["--rate", "5", "--fail", "fire@3"],
        ["--rate", "5", "--autoscale", "70"],
        ["--rate", "5", "--balancer", "random"],
        ["--scale", "0"],
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        fleet.main(arguments)
    assert ended.value.code == 2
    assert f"argument {arguments[-2]}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds", "30"], "--seconds: only with --rate"),
        (["--engine", "2+6"], "--engine: only with --rate"),
        (["--rate", "5", "--only", "load"], "--only: only without --rate"),
        (["--only", "load", "--output", "/dev/null/x"], "error: /dev/null: "),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        fleet.main(arguments)
    assert message in capsys.readouterr().err


def test_a_part_of_the_report_is_printed_only(capsys: pytest.CaptureFixture[str]) -> None:
    before = RESULT.read_bytes()
    assert fleet.main(["--only", "formula", "--scale", "0.01"]) == 0
    assert "| rho = 0.9 |" in capsys.readouterr().out
    assert RESULT.read_bytes() == before


def test_a_fleet_without_requests_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert fleet.main(["--rate", "0.001", "--seconds", "1"]) == 1
    assert "no request arrived" in capsys.readouterr().err


def test_a_fleet_of_the_command_line_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "engine.json"
    file.write_text('{"384x512": {"1": 5, "8": 20}}')
    arguments = ["--rate", "100", "--seconds", "2", "--engine", str(file), "--replicas", "2"]
    assert fleet.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "400.0 images/s in full batches" in printed
    assert "without a result  0\n" in printed


def test_a_section_of_the_report_is_written(tmp_path: Path) -> None:
    output = tmp_path / "fleet"
    fleet.main(["--only", "formula", "--scale", "0.01", "--output", str(output)])
    assert "| rho = 0.9 |" in output.with_suffix(".md").read_text()
    assert '"seed": 1' in output.with_suffix(".json").read_text()


@pytest.mark.parametrize("segments", [steady(50, 100), diurnal(50, 100), bursty(50, 400, seed=2)])
def test_traffic_has_its_mean_rate(segments: list[Segment]) -> None:
    seconds = segments[-1][1]
    times = list(arrivals(segments, random.Random(5)))
    assert times == sorted(times)
    assert len(times) / seconds == pytest.approx(50, rel=0.2)
