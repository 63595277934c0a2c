"""The interface between batcher and engines: an engine takes batches, a listener gets the results.

The protocols keep batching independent of processes, so that tests can replace the engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from service.batching.scheduler import Batch, EngineState
from service.ipc.messages import BatchDone, BatchFailed


class Engine(Protocol):
    """The engine of one device (implemented by `service.supervision.supervisor.Supervisor`)."""

    @property
    def ready(self) -> bool:
        """Whether the engine takes batches now."""

    @property
    def live(self) -> bool:
        """False if restarting the engine does not help any more."""

    @property
    def kernel(self) -> str:
        """The attention implementation that it runs; empty if not yet known."""

    @property
    def state(self) -> EngineState:
        """The engine's state, for the scheduler."""

    def send(self, batch: Batch) -> None:
        """Sends a batch to the engine, behind those that it holds; only while `ready`."""

    @property
    def last_success(self) -> float:
        """When the engine last completed a batch, monotonic seconds; -inf if never."""

    def predicted_seconds(self, padded_pixels: int) -> float:
        """Predicted run time of a batch of so many padded pixels; 0 before the first batch."""


class EngineListener(Protocol):
    """Receives the events of an engine (implemented by `service.batching.batcher.Batcher`)."""

    def engine_changed(self) -> None:
        """The engine became ready, or is no longer ready."""

    def batch_done(self, batch: Batch, done: BatchDone) -> None:
        """The batch is complete; its results are in the slots."""

    def batch_failed(self, batch: Batch, failed: BatchFailed) -> None:
        """The engine reported a failure of the batch and can take further batches."""

    def batches_lost(self, running: Batch | None, staged: Sequence[Batch]) -> None:
        """The engine has ended and is reaped; only `running` (if any) can be the cause."""
