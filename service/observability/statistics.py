"""What has been detected since the start, as sums: for the Open Inference Protocol's statistics.

    Detector --an image is over--> Statistics <--a batch is done-- Batcher

Prometheus histograms (`service.observability.metrics`) show distributions; these are plain sums as
Triton keeps them, each a count and nanoseconds. An image counts as a request, whatever protocol it
came by. The sums go on across a reload of the model. Everything happens on the event loop.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from service.types import StageTimings

_NS_PER_MS = 1_000_000


@dataclass(slots=True)
class Total:
    """How often something happened and how long it took in all."""

    count: int = 0
    ns: int = 0

    def add(self, milliseconds: float) -> None:
        """Takes in one more."""
        self.count += 1
        self.ns += max(0, round(milliseconds * _NS_PER_MS))


@dataclass(slots=True)
class BatchTotals:
    """The batches of one size."""

    compute_input: Total = field(default_factory=Total)
    compute_infer: Total = field(default_factory=Total)
    compute_output: Total = field(default_factory=Total)


class Statistics:
    """The sums.

    Attributes:
        success: images that were answered, from their arrival to their detections.
        fail: images that got an error instead, those whose client left included.
        queue: of answered images: waiting.
        compute_input: of answered images: decoding, resizing, putting the batch together.
        compute_infer: of answered images: the network, each for its whole batch.
        compute_output: of answered images: top-k, boxes to pixels, selection.
        batches: executions by the number of images in them.
        last_inference_ms: when the last answer was given, Unix time; 0 before the first.
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
        """Images that were answered."""
        return self.success.count

    @property
    def execution_count(self) -> int:
        """Batches that engines ran."""
        return sum(batch.compute_infer.count for batch in self.batches.values())

    def record_failure(self, seconds: float) -> None:
        """Counts an image without an answer, so many seconds after the Detector got it."""
        self.fail.add(seconds * 1000)

    def record_success(self, timings: StageTimings) -> None:
        """Counts an image that was answered."""
        self.success.add(timings.total)
        self.queue.add(timings.queue)
        self.compute_input.add(timings.decode + timings.assemble + timings.copy)
        self.compute_infer.add(timings.forward)
        self.compute_output.add(timings.postprocess)
        self.last_inference_ms = round(time.time() * 1000)

    def record_batch(
        self, images: int, assemble_ms: float, forward_ms: float, postprocess_ms: float
    ) -> None:
        """Counts a batch that an engine answered."""
        totals = self.batches.get(images)
        if totals is None:
            totals = self.batches[images] = BatchTotals()
        totals.compute_input.add(assemble_ms)
        totals.compute_infer.add(forward_ms)
        totals.compute_output.add(postprocess_ms)
