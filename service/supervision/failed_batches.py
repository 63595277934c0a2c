"""Batches that an engine failed, held until it is known whether images or the device caused it.

After some device faults (for example an undetected sticky CUDA error) every batch fails. Splitting
batches would then reject every image in them. So a failed batch is held until the engine's next
reply (a canary is sent if none is pending): if that succeeds, the batch's images are the cause; if
a canary fails, the device is.
"""

from __future__ import annotations

from dataclasses import dataclass

from service.batching.scheduler import Batch
from service.ipc.messages import BatchFailed


@dataclass(frozen=True)
class FailureResolution:
    """What to do with the failed batches; one of the two is empty."""

    failed: tuple[tuple[Batch, BatchFailed], ...] = ()  # caused by their images
    lost: tuple[Batch, ...] = ()  # lost with the device; only the first can be the cause


class FailedBatches:
    """The unresolved failed batches of one engine, in the order in which they failed."""

    def __init__(self) -> None:
        """Starts empty."""
        self._failed: list[tuple[Batch, BatchFailed]] = []
        self._device_failed = False

    def add(self, batch: Batch, failed: BatchFailed) -> None:
        """Adds a batch that the engine failed."""
        self._failed.append((batch, failed))

    def mark_device_failed(self) -> None:
        """Records that a canary failed, which no image can cause."""
        self._device_failed = True

    def resolve(self) -> FailureResolution:
        """Returns and removes all batches, after a successful reply or the engine's end."""
        failed, self._failed = tuple(self._failed), []
        device_failed, self._device_failed = self._device_failed, False
        if device_failed:
            return FailureResolution(lost=tuple(batch for batch, _ in failed))
        return FailureResolution(failed=failed)
