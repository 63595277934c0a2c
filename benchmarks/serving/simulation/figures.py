"""The figures of a simulation: latencies, outcomes, batches, and how busy each part was."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.serving.simulation.replica import OK, Replica, Request
from service.load.report import percentile

_BUSY = 0.95  # share of the time from which on a part is the bottleneck


@dataclass(frozen=True)
class Figures:
    """Figures of the requests that arrived after the warm-up."""

    requests: int
    seconds: float  # in which they arrived
    outcomes: dict[str, int]  # "ok", or the error's code
    p50_ms: float  # of those with a result, from the arrival at the balancer
    p99_ms: float
    p999_ms: float
    mean_wait_ms: float  # latency minus the fastest one's
    batch_size: float  # mean over batches
    padding_share: float  # of the padded pixels that engines computed
    engines_busy: float  # share of the time, mean over engines
    edge_busy: float  # of the busiest edge process; above 1: its queue grows
    decoders_busy: float  # of the busiest replica; likewise
    balancer_busy: float  # likewise
    replicas: tuple[int, int]  # fewest and most
    replica_seconds: float
    history: list[tuple[float, int, float]] = field(default_factory=list)  # s, replicas, mean ratio

    @property
    def refused_share(self) -> float:
        """Share of the requests without a result."""
        return 1 - self.outcomes.get(OK, 0) / self.requests if self.requests else 0.0

    @property
    def per_second(self) -> float:
        """Results per second."""
        return self.outcomes.get(OK, 0) / self.seconds if self.seconds else 0.0

    @property
    def bottleneck(self) -> str:
        """The busiest part, if it is at its limit; otherwise empty."""
        parts = {
            "balancer": self.balancer_busy,
            "edge": self.edge_busy,
            "decoders": self.decoders_busy,
            "engine": self.engines_busy,
        }
        name = max(parts, key=lambda part: parts[part])
        return name if parts[name] >= _BUSY else ""


@dataclass
class _Busy:
    """Busy seconds of a replica at some time."""

    edge: float = 0.0
    decoders: float = 0.0
    engines: float = 0.0
    images: int = 0
    batches: int = 0
    image_pixels: int = 0
    padded_pixels: int = 0

    @classmethod
    def of(cls, replica: Replica) -> _Busy:
        return cls(
            replica.edge_busy_seconds,
            replica.decoders_busy_seconds / replica.options.decoders,
            sum(engine.busy_seconds for engine in replica.engines),
            replica.images,
            replica.batches,
            replica.image_pixels,
            replica.padded_pixels,
        )


class Recorder:
    """Collects the outcomes of requests and the use of the replicas."""

    def __init__(self, warm_up: float) -> None:
        """Starts at zero; requests that arrive before `warm_up` seconds are only counted."""
        self.sent = self.done = 0
        self.balancer_busy_seconds = 0.0
        self._warm_up = warm_up
        self._outcomes: Counter[str] = Counter()
        self._latencies = array("d")  # seconds, of results
        self._first: dict[Replica, _Busy] = {}
        self._began = self._ended = 0.0
        self._balancer_before = 0.0
        self._sums = _Busy()
        self._most_edge = self._most_decoders = 0.0
        self._engine_seconds = 0.0
        self._counts: list[tuple[float, int]] = []  # time, replicas from then on
        self._history: list[tuple[float, int, float]] = []

    def record(self, request: Request) -> None:
        """Counts a request with its outcome."""
        self.done += 1
        if request.arrived >= self._warm_up:
            self._outcomes[request.outcome] += 1
            if request.outcome == OK:
                self._latencies.append(request.done - request.arrived)

    def count_replicas(self, now: float, number: int) -> None:
        """The number of replicas has changed."""
        self._counts.append((now, number))

    def log_replicas(self, now: float, number: int, ratios: Sequence[float]) -> None:
        """Adds a line to the history."""
        mean = sum(ratios) / len(ratios) if ratios else 0.0
        self._history.append((round(now, 1), number, round(mean, 3)))

    def begin(self, now: float, replicas: Sequence[Replica]) -> None:
        """The warm-up has ended."""
        self._began, self._balancer_before = now, self.balancer_busy_seconds
        self._first = {replica: _Busy.of(replica) for replica in replicas}

    def end(self, now: float, replicas: Sequence[Replica]) -> None:
        """The last request has arrived."""
        self._ended = now
        sums = self._sums
        for replica in replicas:
            first, last = self._first.get(replica, _Busy()), _Busy.of(replica)
            alive = min(now, replica.ended_at) - max(self._began, replica.started_at)
            if alive <= 0:
                continue
            self._most_edge = max(self._most_edge, (last.edge - first.edge) / alive)
            decoders = (last.decoders - first.decoders) / alive
            self._most_decoders = max(self._most_decoders, decoders)
            self._engine_seconds += alive * len(replica.engines)
            sums.engines += last.engines - first.engines
            sums.images += last.images - first.images
            sums.batches += last.batches - first.batches
            sums.image_pixels += last.image_pixels - first.image_pixels
            sums.padded_pixels += last.padded_pixels - first.padded_pixels

    def figures(self) -> Figures:
        """The figures after the last outcome."""
        assert self.sent == self.done, "every request has one outcome"
        milliseconds = sorted(1000 * one for one in self._latencies)
        sums, seconds = self._sums, max(0.0, self._ended - self._began)
        least, most, replica_seconds = self._replicas()
        return Figures(
            requests=self._outcomes.total(),
            seconds=seconds,
            outcomes=dict(sorted(self._outcomes.items())),
            p50_ms=_percentile(milliseconds, 0.5),
            p99_ms=_percentile(milliseconds, 0.99),
            p999_ms=_percentile(milliseconds, 0.999),
            mean_wait_ms=_mean(milliseconds) - milliseconds[0] if milliseconds else math.nan,
            batch_size=_ratio(sums.images, sums.batches),
            padding_share=1 - _ratio(sums.image_pixels, sums.padded_pixels),
            engines_busy=_ratio(sums.engines, self._engine_seconds),
            edge_busy=self._most_edge,
            decoders_busy=self._most_decoders,
            balancer_busy=_ratio(self.balancer_busy_seconds - self._balancer_before, seconds),
            replicas=(least, most),
            replica_seconds=replica_seconds,
            history=self._history,
        )

    def _replicas(self) -> tuple[int, int, float]:
        """Fewest, most, and seconds of all replicas together, after the warm-up."""
        ends = [*(time for time, _ in self._counts[1:]), self._ended]
        spans = [
            (number, min(end, self._ended) - max(time, self._began))
            for (time, number), end in zip(self._counts, ends, strict=True)
        ]
        spans = [(number, span) for number, span in spans if span > 0]
        numbers = [number for number, _ in spans] or [0]
        return min(numbers), max(numbers), sum(number * span for number, span in spans)


def _percentile(values: Sequence[float], share: float) -> float:
    return percentile(values, share) if values else math.nan


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
