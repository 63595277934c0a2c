"""Counts and total times since the start, for the statistics of the Open Inference Protocol.

    Detector --image ended--> Statistics <--batch completed-- Batcher

The metrics (`service.observability.metrics`) are distributions; these are sums as Triton reports
them, each a count and nanoseconds. An image counts as one request in every protocol. A reload of
the model does not reset them. For use on the event loop thread only.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from service.types import StageTimings

_NS_PER_MS = 1_000_000


@dataclass(slots=True)
class Total:
    """A count and the total time in nanoseconds."""

    count: int = 0
    ns: int = 0

    def add(self, milliseconds: float) -> None:
        """Adds one duration."""
        self.count += 1
        self.ns += max(0, round(milliseconds * _NS_PER_MS))


@dataclass(slots=True)
class BatchTotals:
    """Totals of the batches of one size."""

    compute_input: Total = field(default_factory=Total)
    compute_infer: Total = field(default_factory=Total)
    compute_output: Total = field(default_factory=Total)


class Statistics:
    """The totals.

    Attributes:
        success: completed images, from arrival to detections.
        fail: images that ended with an error or were cancelled.
        queue: waiting time of completed images.
        compute_input: decoding, resizing and assembly of the batch, of completed images.
        compute_infer: the network, of completed images; each counts the time of its whole batch.
        compute_output: top-k, boxes to pixels and selection, of completed images.
        batches: totals of batches by their number of images.
        last_inference_ms: when the last image was completed, Unix time; 0 before the first.
    """

    def __init__(self) -> None:
        """Starts at zero."""
        self.success = Total()
        self.fail = Total()
        self.queue = Total()
        self.compute_input = Total()
        self.compute_infer = Total()
        self.compute_output = Total()
        self.batches: dict[int, BatchTotals] = {}
        self.last_inference_ms = 0

    @property
    def inference_count(self) -> int:
        """Number of completed images."""
        return self.success.count

    @property
    def execution_count(self) -> int:
        """Number of batches that engines ran."""
        return sum(batch.compute_infer.count for batch in self.batches.values())

    def record_failure(self, seconds: float) -> None:
        """Counts a failed image, `seconds` after the Detector accepted it."""
        self.fail.add(seconds * 1000)

    def record_success(self, timings: StageTimings) -> None:
        """Counts a completed image."""
        self.success.add(timings.total)
        self.queue.add(timings.queue)
        self.compute_input.add(timings.decode + timings.assemble + timings.copy)
        self.compute_infer.add(timings.forward)
        self.compute_output.add(timings.postprocess)
        self.last_inference_ms = round(time.time() * 1000)

    def record_batch(
        self, images: int, assemble_ms: float, forward_ms: float, postprocess_ms: float
    ) -> None:
        """Counts a batch that an engine completed."""
        totals = self.batches.get(images)
        if totals is None:
            totals = self.batches[images] = BatchTotals()
        totals.compute_input.add(assemble_ms)
        totals.compute_infer.add(forward_ms)
        totals.compute_output.add(postprocess_ms)
