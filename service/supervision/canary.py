"""The canary of an engine: a small grey image that is sent through slot, network and back.

A health check that looks only at processes reports success while a device fails every batch. An
engine is ready once its first canary has succeeded. An engine that was idle for a while gets
another one. A busy engine gets none, since requests prove the same, unless it fails a batch: then
the canary shows whether the images or the device caused the failure.
"""

from __future__ import annotations

import math

import numpy as np

from model.config import ModelConfig
from model.geometry import padded_size
from service.batching.scheduler import Batch, Job
from service.ipc.slot_pool import SlotPool
from service.ipc.slots import SlotImage, StaleSlot

_GREY = 127
_FAILURES_ALLOWED = 3  # consecutive; the engine is replaced after one more


class Canary:
    """Creates the canary batches of one engine and tracks its successes; times are monotonic."""

    def __init__(self, pool: SlotPool, config: ModelConfig) -> None:
        """Reserves the slot for the canary's image.

        Args:
            pool: slot pool; one slot is taken permanently.
            config: model configuration. The image is the flattest that its resize rule gives,
                which is the cheapest to run.
        """
        self._pool = pool
        self._lease = pool.reserve()
        size = max(1, config.bucket_stride // 2), config.longest_side
        self._image = SlotImage(size, padded_size(*size, config.bucket_stride), size)
        self._batch: Batch | None = None
        self._failures = 0
        self.last_success = -math.inf

    def make_batch(self, now: float) -> Batch:
        """Returns a new batch to send; only while none is in flight, since they share the slot."""
        self._pool.renew(self._lease)
        grey = np.full((*self._image.size, 3), _GREY, dtype=np.uint8)
        self._lease.write_image(grey, self._image)
        self._batch = Batch(self._image.padded, (Job(self._lease, self._image.padded, now),))
        return self._batch

    @property
    def in_flight(self) -> bool:
        """Whether the engine holds a canary."""
        return self._batch is not None

    def owns(self, batch: Batch | None) -> bool:
        """Whether a batch is the current canary."""
        return batch is not None and batch is self._batch

    def complete(self) -> bool:
        """Ends the canary in flight; returns False if its slot holds no result."""
        self._batch = None
        try:
            self._lease.read_result()
        except (StaleSlot, ValueError):
            return False
        return True

    def record_success(self, now: float) -> None:
        """Records that the engine completed a batch, a canary or any other."""
        self.last_success = now
        self._failures = 0

    def record_failure(self) -> bool:
        """Records that a canary failed; returns True if the engine should be replaced."""
        self._batch = None
        self._failures += 1
        return self._failures > _FAILURES_ALLOWED

    def reset(self) -> None:
        """Forgets the failures and the batch of the engine before."""
        self._batch = None
        self._failures = 0
