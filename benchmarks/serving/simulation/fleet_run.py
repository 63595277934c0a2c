"""Runs a fleet on a simulated clock: arrivals, balancer, replicas, failures, autoscaler."""

from __future__ import annotations

import asyncio
import heapq
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from benchmarks.serving.simulation.autoscaler import AutoscaleOptions, Autoscaler
from benchmarks.serving.simulation.balancer import BALANCERS
from benchmarks.serving.simulation.figures import Figures, Recorder
from benchmarks.serving.simulation.replica import LOST, Replica, ReplicaOptions, Request
from benchmarks.serving.simulation.times import Shape
from benchmarks.serving.simulation.traffic import Segment, arrivals
from service.observability.metrics import Metrics
from tests.support.virtual_time import run_in_virtual_time

NO_REPLICA = "no_replica"
FAILURES = ("engine", "replica", "machine", "slow")
_RETRIES = 2  # of the balancer, after a refused connection


@dataclass(frozen=True)
class Failure:
    """What fails, and when.

    engine: the first engine of a replica ends. replica: a replica's processes end, so connections
    to it are refused. machine: the same, but connections to it are not refused. slow: the first
    engine of a replica takes `slow_factor` times as long for `slow_seconds`.
    """

    kind: str
    at: float
    replica: int = 0
    slow_factor: float = 3.0
    slow_seconds: float = 10.0


@dataclass(frozen=True)
class FleetOptions:
    """One simulation; times in seconds."""

    replica: ReplicaOptions
    traffic: Sequence[Segment]
    shapes: Sequence[Shape]
    replicas: int = 1
    balancer: str = "least-connections"
    balancer_threads: int = 1
    seed: int = 1
    warm_up: float = 0.0  # requests that arrive earlier are not in the figures
    check_seconds: float = 1.0  # between the balancer's health checks
    start_seconds: float = 30.0  # of a new replica
    restart_seconds: float = 3.4  # of an engine
    drain_delay_seconds: float = 3.0
    failures: Sequence[Failure] = ()
    autoscale: AutoscaleOptions | None = None


def simulate(options: FleetOptions) -> Figures:
    """Runs one simulation; the same options give the same figures."""
    return run_in_virtual_time(_simulate(options))


async def _simulate(options: FleetOptions) -> Figures:
    fleet = Fleet(options)
    return await fleet.run()


class Fleet:
    """The replicas and everything in front of them."""

    def __init__(self, options: FleetOptions) -> None:
        """Starts all replicas."""
        self.options = options
        self.loop = asyncio.get_running_loop()
        self._random = random.Random(f"{options.seed}/balancer")
        self._shape_random = random.Random(f"{options.seed}/shapes")
        self._weights = list(accumulate(shape.weight for shape in options.shapes))
        self._arrivals = arrivals(list(options.traffic), random.Random(options.seed))
        self._balancer = BALANCERS[options.balancer](self._random)
        self._threads_free = [0.0] * options.balancer_threads  # a heap
        self._metrics = Metrics()
        self.replicas: list[Replica] = []  # that exist; those that ended are in `_ended`
        self._ended: list[Replica] = []
        self._starting = self._number = 0
        self._available: list[Replica] = []
        self._autoscaler = Autoscaler(options.autoscale) if options.autoscale else None
        self._last_ratios: list[float] = []
        self._handles: dict[str, asyncio.TimerHandle] = {}
        self._complete: asyncio.Future[None] = self.loop.create_future()
        self._exhausted = False
        self._recorder = Recorder(options.warm_up)
        for _ in range(options.replicas):
            self._add()

    async def run(self) -> Figures:
        """Runs until every request has its outcome."""
        options = self.options
        self.loop.set_exception_handler(self._fail)
        self._check()
        self.loop.call_at(options.warm_up, self._begin_figures)
        for failure in options.failures:
            self.loop.call_at(failure.at, self._cause, failure)
        if options.autoscale:
            self._repeat("autoscale", options.autoscale.every_seconds, self._autoscale)
        self._next_arrival()
        await self._complete
        for handle in self._handles.values():
            handle.cancel()
        for replica in (*self.replicas, *self._ended):
            await replica.close()
        return self._recorder.figures()

    def _fail(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An error in a callback ends the simulation."""
        if not self._complete.done():
            error = context.get("exception") or RuntimeError(context["message"])
            self._complete.set_exception(error)

    def _repeat(self, name: str, seconds: float, call: Any) -> None:
        def again() -> None:
            self._handles[name] = self.loop.call_later(seconds, again)
            call()

        self._handles[name] = self.loop.call_later(seconds, again)

    # Requests

    def _next_arrival(self) -> None:
        when = next(self._arrivals, None)
        if when is None:
            self._exhausted = True
            self._recorder.end(self.loop.time(), (*self.replicas, *self._ended))
            self._check_complete()
        else:
            self.loop.call_at(when, self._arrive)

    def _arrive(self) -> None:
        request = Request(self.loop.time(), self._shape())
        self._recorder.sent += 1
        seconds = self.options.replica.edge.balance
        if seconds:
            end = max(self._threads_free[0], request.arrived) + seconds
            heapq.heapreplace(self._threads_free, end)
            self._recorder.balancer_busy_seconds += seconds / self.options.balancer_threads
            self.loop.call_at(end, self._dispatch, request)
        else:
            self._dispatch(request)
        self._next_arrival()

    def _shape(self) -> Shape:
        weights = self._weights
        if len(weights) == 1:
            return self.options.shapes[0]
        place = bisect_right(weights, self._shape_random.random() * weights[-1])
        return self.options.shapes[min(place, len(weights) - 1)]

    def _dispatch(self, request: Request) -> None:
        if not self._available:
            self._end_without_replica(request, NO_REPLICA)
            return
        for _ in range(_RETRIES + 1):
            replica = self._balancer.choose(self._available)
            if not (replica.lost and replica.refuses_connections):
                replica.accept(request)
                self._balancer.update(replica)
                return
            self._available = [one for one in self._available if one is not replica] or [replica]
        self._end_without_replica(request, LOST)

    def _end_without_replica(self, request: Request, outcome: str) -> None:
        request.outcome, request.done = outcome, self.loop.time()
        self._record(request)

    def _on_done(self, replica: Replica, request: Request) -> None:
        self._balancer.update(replica)
        self._record(request)
        if replica.refusing and not replica.open_requests and replica in self.replicas:
            self._remove(replica)

    def _record(self, request: Request) -> None:
        self._recorder.record(request)
        self._check_complete()

    def _check_complete(self) -> None:
        recorder = self._recorder
        if self._exhausted and recorder.sent == recorder.done and not self._complete.done():
            self._complete.set_result(None)

    # Replicas

    def _add(self) -> None:
        replica = Replica(
            self._number, self.options.replica, self._metrics, self.options.seed, self._on_done
        )
        self._number += 1
        self.replicas.append(replica)
        self._recorder.count_replicas(self.loop.time(), len(self.replicas))

    def _remove(self, replica: Replica) -> None:
        self.replicas.remove(replica)
        self._ended.append(replica)
        replica.ended_at = self.loop.time()
        self._recorder.count_replicas(self.loop.time(), len(self.replicas))

    def _start(self) -> None:
        self._starting += 1
        self.loop.call_later(self.options.start_seconds, self._started)

    def _started(self) -> None:
        self._starting -= 1
        self._add()

    def _check(self) -> None:
        """One round of health checks."""
        ready = [replica for replica in self.replicas if replica.ready]
        if ready != self._available:
            self._available = ready
        self._handles["check"] = self.loop.call_later(self.options.check_seconds, self._check)

    def _drain(self, replica: Replica) -> None:
        replica.draining = True

        def refuse() -> None:
            replica.refusing = True
            if not replica.open_requests and replica in self.replicas:
                self._remove(replica)

        self.loop.call_later(self.options.drain_delay_seconds, refuse)

    def _cause(self, failure: Failure) -> None:
        if failure.replica >= len(self.replicas):
            return
        replica = self.replicas[failure.replica]
        engine = replica.engines[0]
        if failure.kind == "engine" and engine.ready:
            engine.end()
            self.loop.call_later(self.options.restart_seconds, replica.restart_engine, engine)
        elif failure.kind == "slow":
            replica.slow_engine(failure.slow_factor)
            self.loop.call_later(failure.slow_seconds, replica.slow_engine, 1.0)
        elif failure.kind in {"replica", "machine"}:
            replica.refuses_connections = failure.kind == "replica"
            replica.lose()
            self._remove(replica)
            self._start()

    def _autoscale(self) -> None:
        assert self._autoscaler is not None
        now, counted = self.loop.time(), [one for one in self.replicas if not one.draining]
        number = len(counted) + self._starting
        wanted = self._autoscaler.decide(now, self._last_ratios, number)
        ratios = (replica.busy_share for replica in counted)
        self._last_ratios = [ratio for ratio in ratios if ratio is not None]
        for _ in range(wanted - number):
            self._start()
        for replica in counted[wanted:] if wanted < len(counted) else ():
            self._drain(replica)
        if not self._exhausted:
            self._recorder.log_replicas(now, len(counted), self._last_ratios)

    def _begin_figures(self) -> None:
        self._recorder.begin(self.loop.time(), self.replicas)
