"""One engine's proof of life: a small grey image that takes the way of every request.

Slot, doorbell, network, slot: health that looks only at processes says 200 while a device answers
nothing but errors. An engine is ready when its first canary is answered. One that had nothing to
do for a while is tried again; requests prove as much, so a busy engine gets no canary, unless it
fails a batch: a canary then tells whether that was the images' fault or the device's.
"""

from __future__ import annotations

import math

import numpy as np

from model.config import ModelConfig
from model.geometry import padded_size
from service.batching.scheduler import Batch, Job
from service.ipc.slots import SlotImage, SlotPool, StaleSlot

_GREY = 127
_FAILURES_ALLOWED = 3  # in a row; an engine that fails once more is replaced


class Canary:
    """Makes the images of one engine and remembers its last success; times are monotonic."""

    def __init__(self, pool: SlotPool, config: ModelConfig) -> None:
        """Reserves the slot that its images travel in.

        Args:
            pool: of slots; one of them is taken for good.
            config: of the model; the image is the flattest that its input rule gives, the
                cheapest one to run.
        """
        self._pool = pool
        self._lease = pool.reserve()
        size = max(1, config.bucket_stride // 2), config.longest_side
        self._image = SlotImage(size, padded_size(*size, config.bucket_stride), size)
        self._batch: Batch | None = None
        self._failures = 0
        self.last_success = -math.inf

    def make_batch(self, now: float) -> Batch:
        """The batch to send; a new one each time, so that an old answer proves nothing."""
        self._pool.renew(self._lease)
        grey = np.full((*self._image.size, 3), _GREY, dtype=np.uint8)
        self._lease.write_image(grey, self._image)
        self._batch = Batch(self._image.padded, (Job(self._lease, self._image.padded, now),))
        return self._batch

    @property
    def in_flight(self) -> bool:
        """Whether an engine has one that it did not answer yet."""
        return self._batch is not None

    def owns(self, batch: Batch | None) -> bool:
        """Whether a batch is a canary."""
        return batch is not None and batch is self._batch

    def answered(self) -> bool:
        """Takes the batch that came back; False where its slot holds no answer."""
        self._batch = None
        try:
            self._lease.read_result()
        except (StaleSlot, ValueError):
            return False
        return True

    def succeeded(self, now: float) -> None:
        """Notes that the engine answered a batch, anybody's."""
        self.last_success = now
        self._failures = 0

    def failed(self) -> bool:
        """Notes that a canary went wrong; True where the engine should be replaced."""
        self._batch = None
        self._failures += 1
        return self._failures > _FAILURES_ALLOWED

    def reset(self) -> None:
        """A new engine starts without failures, and without what the one before held."""
        self._batch = None
        self._failures = 0
