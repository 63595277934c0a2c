"""The simulations of the report: load, balancers, traffic, autoscaling, failures, bottlenecks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from benchmarks.serving.simulation.autoscaler import AutoscaleOptions
from benchmarks.serving.simulation.balancer import BALANCERS
from benchmarks.serving.simulation.figures import Figures
from benchmarks.serving.simulation.fleet_run import FAILURES, Failure, FleetOptions, simulate
from benchmarks.serving.simulation.replica import ReplicaOptions
from benchmarks.serving.simulation.times import (
    FREE_EDGE,
    EdgeTimes,
    EngineTimes,
    Shape,
    engine_times,
    parse_shapes,
)
from benchmarks.serving.simulation.traffic import bursty, diurnal, steady
from service.batching.scheduler import BatchPolicy

SIZES = "640x480:4,480x640:2,1920x1080:3,1080x1920:1"
_FAST = "2+6"  # an assumed accelerator, milliseconds
_BATCH = 8
_TIMEOUT = 2.0
_WARM_UP = 5.0
_QUEUE_CHECK_SECONDS = 0.010
_LOADS = (0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.2)


class Row(NamedTuple):
    """One simulation."""

    name: str
    options: FleetOptions
    expected_wait_ms: float = 0.0  # by a formula


class Section(NamedTuple):
    """Simulations that belong together."""

    title: str
    text: str
    rows: Callable[[], Iterator[Row]]


class Study:
    """The sections, for one seed and one scale of the durations."""

    def __init__(self, seed: int, scale: float = 1.0) -> None:
        """Reads the measured figures.

        Args:
            seed: of every simulation.
            scale: multiplies all durations; less for a quick look.
        """
        self._seed, self._scale = seed, scale
        self._shapes = parse_shapes(SIZES)
        self.edge = EdgeTimes.measured()
        self.slow, self.fast = engine_times("default"), engine_times(_FAST)

    def sections(self) -> dict[str, Section]:
        """All sections by name, in the order of the report."""
        default, fast = self.slow.source, self.fast.source
        return {
            "formula": Section(
                "Check against M/D/1",
                "One engine, batches of one image, no time at the edge. Mean wait by the formula "
                "rho x s / (2 (1 - rho)), for a run time s of 10 ms, and simulated.",
                self._formula,
            ),
            "load": Section(
                "Load",
                f"32 replicas with one engine each ({default}), offered load as a share of their "
                f"capacity, least connections, {_TIMEOUT:g} s for a request.",
                self._load,
            ),
            "balancers": Section(
                "Balancers",
                "The same fleet at 0.7 of its capacity, and with an engine that takes three times "
                "as long all the time.",
                self._balancers,
            ),
            "traffic": Section(
                "Bursts",
                "The same fleet. A tenth of the time, in bursts of 2 s on average, the rate is "
                "three times its mean.",
                self._traffic,
            ),
            "autoscaling": Section(
                "A day with an autoscaler",
                f"A day compressed to {1200 * self._scale:g} s: a sine between 0.2 and 1.8 times "
                "60 requests/s. The autoscaler's own times are not compressed (a decision every "
                "15 s, 300 s before it shrinks), which is harder than a real day. A new replica "
                "takes 30 s; there are at least two. Fixed: the replicas that the peak needs at "
                "a busy ratio of 0.7.",
                self._autoscaling,
            ),
            "failures": Section(
                "Failures",
                "8 replicas with one engine each. An engine is replaced in 3.4 s (the measured "
                "start), a replica or machine in 30 s; connections to a lost machine are not "
                "refused until the next health check (every second). Slow: an engine takes three "
                "times as long for 10 s.",
                self._failures,
            ),
            "bottleneck": Section(
                "The first bottleneck",
                f"Fast engines ({fast}), 0.9 of their capacity, one replica with a growing number "
                "of engines and two decoders per engine; then many replicas behind one thread of "
                "the balancer.",
                self._bottleneck,
            ),
            "large": Section(
                "1,000 engines, 100,000 requests/s",
                f"250 replicas with 4 engines each ({fast}), a balancer with 16 threads. All "
                f"replicas are simulated, for {2 * self._scale:g} s of which the first quarter "
                "is warm-up.",
                self._large,
            ),
        }

    def run(self, section: Section, report: Callable[[str], None]) -> list[tuple[Row, Figures]]:
        """Runs the simulations of a section; reports the name of each."""
        found = []
        for row in section.rows():
            report(f"{section.title}: {row.name}")
            found.append((row, simulate(row.options)))
        return found

    def _replica(self, times: EngineTimes, engines: int = 1, decoders: int = 2) -> ReplicaOptions:
        return ReplicaOptions(
            times=times,
            edge=self.edge,
            engines=engines,
            decoders=decoders,
            policy=BatchPolicy(max_batch_size=_BATCH),
            timeout_seconds=_TIMEOUT,
            jitter=0.1,
        )

    def _capacity(self, options: FleetOptions) -> float:
        """Images per second of all engines of a fleet, in full batches."""
        replica = options.replica
        one = replica.times.capacity(options.shapes, replica.policy.max_batch_size)
        return one * replica.engines * options.replicas

    def _fleet(self, replicas: int, replica: ReplicaOptions) -> FleetOptions:
        return FleetOptions(
            replica=replica,
            traffic=(),
            shapes=self._shapes,
            replicas=replicas,
            seed=self._seed,
            warm_up=_WARM_UP * self._scale,
        )

    def _at(self, share: float, fleet: FleetOptions, seconds: float) -> FleetOptions:
        """A fleet under a steady load, given as a share of its capacity."""
        rate = share * self._capacity(fleet)
        return replace(fleet, traffic=steady(rate, seconds * self._scale))

    def _formula(self) -> Iterator[Row]:
        shape: Sequence[Shape] = parse_shapes("640x480")
        service = _QUEUE_CHECK_SECONDS
        replica = ReplicaOptions(
            times=EngineTimes("10 ms", {shape[0].bucket: {1: service}}),
            edge=FREE_EDGE,
            policy=BatchPolicy(max_batch_size=1),
            timeout_seconds=1e6,
            slots=4096,
        )
        for rho in (0.5, 0.7, 0.9):
            options = FleetOptions(
                replica, steady(rho / service, 400 * self._scale), shape, seed=self._seed, warm_up=1
            )
            yield Row(f"rho = {rho}", options, 1000 * rho * service / (2 * (1 - rho)))

    def _load(self) -> Iterator[Row]:
        fleet = self._fleet(32, self._replica(self.slow))
        for share in _LOADS:
            yield Row(f"{share:g}", self._at(share, fleet, 35))

    def _balancers(self) -> Iterator[Row]:
        fleet = self._at(0.7, self._fleet(32, self._replica(self.slow)), 35)
        slow = Failure("slow", 0.0, slow_seconds=1e6)
        for name in BALANCERS:
            yield Row(name, replace(fleet, balancer=name))
        for name in BALANCERS:
            yield Row(f"{name}, one slow", replace(fleet, balancer=name, failures=(slow,)))

    def _traffic(self) -> Iterator[Row]:
        fleet = self._fleet(32, self._replica(self.slow))
        for share in (0.3, 0.5, 0.7):
            rate = share * self._capacity(fleet)
            yield Row(
                f"mean {share:g}",
                replace(fleet, traffic=bursty(rate, 65 * self._scale, self._seed)),
            )

    def _autoscaling(self) -> Iterator[Row]:
        replica, mean = self._replica(self.slow), 60.0
        one = self._fleet(1, replica)
        peak = 1.8 * mean
        fixed = -(-peak // (0.7 * self._capacity(one)))
        first = 2
        day = diurnal(mean, 1200 * self._scale)
        fleet = replace(one, traffic=day, warm_up=0.0)
        yield Row(f"fixed {fixed:g}", replace(fleet, replicas=int(fixed)))
        for target in (0.5, 0.7, 0.85):
            scale = AutoscaleOptions(target=target, least=first, most=100)
            yield Row(f"target {target}", replace(fleet, replicas=first, autoscale=scale))

    def _failures(self) -> Iterator[Row]:
        fleet = self._fleet(8, self._replica(self.slow))
        for share in (0.5, 0.7, 0.85):
            steadily = self._at(share, fleet, 65)
            for kind in FAILURES:
                failure = Failure(kind, 20.3 * self._scale)  # between two health checks
                yield Row(f"{kind} at {share:g}", replace(steadily, failures=(failure,)))

    def _bottleneck(self) -> Iterator[Row]:
        for engines in (1, 2, 4, 8, 16):
            replica = self._replica(self.fast, engines, decoders=2 * engines)
            fleet = replace(self._fleet(1, replica), warm_up=2 * self._scale)
            yield Row(f"{engines} engines", self._at(0.9, fleet, 8))
        replica = self._replica(self.fast, 4, decoders=4)
        fleet = replace(self._fleet(32, replica), warm_up=self._scale)
        yield Row("32 replicas of 4", self._at(0.5, fleet, 3))

    def _large(self) -> Iterator[Row]:
        replica = self._replica(self.fast, 4, decoders=4)
        fleet = replace(
            self._fleet(250, replica),
            traffic=steady(100_000, 2 * self._scale),
            balancer_threads=16,
            warm_up=0.5 * self._scale,
        )
        for name in BALANCERS:
            yield Row(name, replace(fleet, balancer=name))
