"""Batches that an engine failed, until it is known who is to blame: their images or the device.

A device that is lost (a sticky CUDA error that does not show as one) fails every batch, and images
that were split off one by one would all be given up for nothing. So a failure waits for the
engine's next answer, a canary's where nobody else is under way: a success means that the batch is
to blame, a failed canary that the device is.
"""

from __future__ import annotations

from dataclasses import dataclass

from service.batching.scheduler import Batch
from service.ipc.messages import BatchFailed


@dataclass(frozen=True)
class FailureResolution:
    """What becomes of the batches that were failed; one of the two is empty."""

    failed: tuple[tuple[Batch, BatchFailed], ...] = ()  # by the fault of their images
    lost: tuple[Batch, ...] = ()  # with the device; only the first can be the cause


class FailedBatches:
    """The failed batches of one engine, in the order that they failed."""

    def __init__(self) -> None:
        """Starts without any."""
        self._failed: list[tuple[Batch, BatchFailed]] = []
        self._device_failed = False

    def add(self, batch: Batch, failed: BatchFailed) -> None:
        """Notes a batch that the engine failed."""
        self._failed.append((batch, failed))

    def mark_device_failed(self) -> None:
        """A canary failed: no image can be blamed for that."""
        self._device_failed = True

    def resolve(self) -> FailureResolution:
        """What becomes of them now that the engine answered something, or is gone."""
        failed, self._failed = tuple(self._failed), []
        device_failed, self._device_failed = self._device_failed, False
        if device_failed:
            return FailureResolution(lost=tuple(batch for batch, _ in failed))
        return FailureResolution(failed=failed)
