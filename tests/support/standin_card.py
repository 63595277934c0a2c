"""A `Card` without a GPU: works at once, on the CPU, and records its calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from service.engine.cuda_card import Event


@dataclass
class StandInEvent:
    """An event that is complete at once, unless the card is `busy`."""

    card: StandInCard
    number: int
    name: str = ""

    def record(self) -> None:
        self.card.note(f"event {self.number}")

    def wait(self) -> None:
        self.card.note(f"wait for event {self.number}")

    def query(self) -> bool:
        if self.card.lost:
            raise RuntimeError("an illegal memory access was encountered")
        return not self.card.busy

    def synchronize(self) -> None:
        if self.card.lost:
            raise RuntimeError("an illegal memory access was encountered")
        self.card.busy = False
        self.card.syncs += 1

    def elapsed_time(self, later: Event, /) -> float:
        assert isinstance(later, StandInEvent)
        return 0.25 * (later.number - self.number)


@dataclass
class StandInCard:
    """See `service.engine.cuda_card.Card`."""

    record_error: Exception | None = None
    record_loses: bool = False  # the context, if there is a `record_error`
    replay_error: float = 0.0  # added to every value of a replay
    free: float = 0.9
    busy: bool = False
    lost: bool = False
    syncs: int = 0  # events that the host waited for
    stream: str = "none"
    notes: list[str] = field(default_factory=list)
    buffers: list[Tensor] = field(default_factory=list)
    recordings: int = 0
    replays: int = 0
    _events: int = 0

    def note(self, what: str) -> None:
        self.notes.append(f"{self.stream}: {what}")

    def pinned(self, num_bytes: int) -> Tensor:
        return self.memory(num_bytes)

    def memory(self, num_bytes: int) -> Tensor:
        self.buffers.append(torch.zeros(num_bytes, dtype=torch.uint8))
        return self.buffers[-1]

    def event(self) -> Event:
        self._events += 1
        return StandInEvent(self, self._events)

    @contextmanager
    def copying(self) -> Iterator[None]:
        with self._on("copy"):
            yield

    @contextmanager
    def computing(self) -> Iterator[None]:
        with self._on("compute"):
            yield

    @contextmanager
    def _on(self, stream: str) -> Iterator[None]:
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    def record(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        assert self.stream == "compute"
        if self.record_error is not None:
            self.lost |= self.record_loses
            raise self.record_error
        self.recordings += 1
        found = work().clone()

        def replay() -> Tensor:
            self.replays += 1
            with torch.inference_mode():
                return found.copy_(work() + self.replay_error)

        return replay

    def free_share(self) -> float:
        return self.free

    def wait(self) -> None:
        if self.lost:
            raise RuntimeError("an illegal memory access was encountered")
        self.busy = False
