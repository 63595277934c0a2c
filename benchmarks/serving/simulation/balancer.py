"""Load balancers: which replica gets a request, by policy, and which are taken out of use."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence

from benchmarks.serving.simulation.replica import Replica

_MOST_ENTRIES = 64  # per replica, before outdated ones are removed


class RoundRobin:
    """Each replica in turn."""

    def __init__(self, _rng: random.Random) -> None:
        """Starts with the first replica."""
        self._next = 0

    def choose(self, replicas: Sequence[Replica]) -> Replica:
        """Returns the next one."""
        self._next = (self._next + 1) % len(replicas)
        return replicas[self._next]

    def update(self, replica: Replica) -> None:
        """Open requests make no difference."""


class LeastConnections:
    """The replica with the fewest open requests; among equals, the one that waited longest."""

    def __init__(self, _rng: random.Random) -> None:
        """Starts without replicas."""
        self._heap: list[tuple[int, int, int, Replica]] = []  # outdated entries are skipped
        self._number = 0
        self._members: frozenset[Replica] = frozenset()
        self._last: Sequence[Replica] = ()

    def choose(self, replicas: Sequence[Replica]) -> Replica:
        """Returns the one with the fewest open requests."""
        if replicas is not self._last or len(self._heap) > _MOST_ENTRIES * len(replicas):
            self._last, self._members = replicas, frozenset(replicas)
            self._heap = []
            for replica in replicas:
                self.update(replica)
        while True:
            _, _, version, replica = self._heap[0]
            if version == replica.version and replica in self._members:
                return replica
            heapq.heappop(self._heap)

    def update(self, replica: Replica) -> None:
        """The number of open requests of a replica has changed."""
        if replica in self._members:
            self._number += 1
            entry = (replica.open_requests, self._number, replica.version, replica)
            heapq.heappush(self._heap, entry)


class TwoChoices:
    """Two replicas at random; the one of them with fewer open requests."""

    def __init__(self, rng: random.Random) -> None:
        """Starts with a source of random numbers."""
        self._random = rng

    def choose(self, replicas: Sequence[Replica]) -> Replica:
        """Returns the better of two."""
        one = replicas[int(self._random.random() * len(replicas))]
        two = replicas[int(self._random.random() * len(replicas))]
        return one if one.open_requests <= two.open_requests else two

    def update(self, replica: Replica) -> None:
        """Open requests are read when a replica is chosen."""


Balancer = RoundRobin | LeastConnections | TwoChoices
BALANCERS: dict[str, Callable[[random.Random], Balancer]] = {
    "round-robin": RoundRobin,
    "least-connections": LeastConnections,
    "two-choices": TwoChoices,
}
