"""The interface between batcher and engines: engines run batches, a listener gets the results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from service.batching.scheduler import Batch, EngineState
from service.ipc.messages import BatchDone, BatchFailed


class Engine(Protocol):
    """The way to one device (`service.supervision.supervisor.Supervisor`)."""

    @property
    def ready(self) -> bool:
        """Whether an engine takes batches now."""

    @property
    def live(self) -> bool:
        """False where replacing engines does not help any more."""

    @property
    def kernel(self) -> str:
        """Which attention implementation it runs; empty where that is not known yet."""

    @property
    def state(self) -> EngineState:
        """For the scheduler."""

    def send(self, batch: Batch) -> None:
        """Hands a batch to the engine, behind what it holds already; only while `ready`."""

    @property
    def last_success(self) -> float:
        """When it last answered a batch, monotonic seconds; -inf where it never did."""

    def predicted_seconds(self, padded_pixels: int) -> float:
        """How long one batch of so many padded pixels takes; 0 where nobody can tell."""


class EngineListener(Protocol):
    """Who is told what an engine does (`service.batching.batcher.Batcher`)."""

    def engine_changed(self) -> None:
        """The engine can take batches now, or cannot any more."""

    def batch_done(self, batch: Batch, done: BatchDone) -> None:
        """The answers lie in the slots."""

    def batch_failed(self, batch: Batch, failed: BatchFailed) -> None:
        """No answer; the engine is well."""

    def batches_lost(self, running: Batch | None, staged: Sequence[Batch]) -> None:
        """The engine is dead and reaped; `running` (if any) is suspect, `staged` never began."""
