"""The engine's main loop: receives batches, runs them on the device, and reports results in order.

On a CPU one batch follows the other. A device that computes asynchronously (a GPU) gets the next
batch before it has finished the current one, so that it never waits for pixels.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from model.detections import Detections
from service.core.selection import Selection
from service.engine.device import (
    BatchInFlight,
    Device,
    DeviceResult,
    ExplainingDevice,
    OutOfDeviceMemory,
    OverlappingDevice,
)
from service.ipc.doorbell import EngineDoorbell
from service.ipc.messages import (
    EXIT_DEVICE_LOST,
    BadMessage,
    BatchDone,
    BatchFailed,
    ExplainRequest,
    Message,
    RunBatch,
)
from service.ipc.slots import SlotImage, SlotMemory

_POLL_SECONDS = 1e-4  # between two checks of the device; delays a result at most this long

_log = structlog.get_logger(__name__)


class Engine:
    """Runs batches until it receives `Stop`."""

    def __init__(self, device: Device, memory: SlotMemory, doorbell: EngineDoorbell) -> None:
        """Creates an engine; `run` starts it."""
        self._device = device
        self._memory = memory
        self._doorbell = doorbell

    def run(self) -> None:
        """Runs batches in order; returns on `Stop`, on a bad message and when the edge is gone."""
        while isinstance(message := self._next_message(), RunBatch):
            self._doorbell.send(self._run_batch(message))

    def _next_message(self) -> Message | None:
        try:
            return self._doorbell.receive()
        except BadMessage:
            return None

    def _run_batch(self, batch: RunBatch) -> BatchDone | BatchFailed:
        """Runs one batch; reports an error, so that the edge can find the image that caused it."""
        try:
            return self._detect(batch)
        except Exception as error:
            return self._report_failure(batch, error)

    def _detect(self, batch: RunBatch) -> BatchDone:
        started = time.monotonic()
        headers = self._read_headers(batch)
        views = list(self._pixels(batch, headers))
        viewed = time.monotonic()
        sizes = [header.original_size for header in headers]
        result = self._device.run(views, batch.padded, sizes)
        return self._write_results(batch, result, started, viewed - started)

    def _read_headers(self, batch: RunBatch) -> list[SlotImage]:
        return [self._memory.read_header(slot, generation) for slot, generation in batch.slots]

    def _pixels(
        self, batch: RunBatch, headers: Sequence[SlotImage]
    ) -> Iterator[npt.NDArray[np.uint8]]:
        """Yields views of the images of a batch."""
        for (slot, _), header in zip(batch.slots, headers, strict=True):
            yield self._memory.pixels(slot, header.size)

    def _write_results(
        self, batch: RunBatch, result: DeviceResult, started: float, viewing_seconds: float
    ) -> BatchDone:
        """Writes detections into the slots of their batch."""
        ended = time.monotonic()
        for (slot, generation), found in zip(batch.slots, result.detections, strict=True):
            _check_finite(found)
            self._memory.write_result(slot, generation, found)
        written = time.monotonic()
        explanations = None
        if batch.explain is not None:
            explanations = self._explain(batch, batch.explain, result.detections)
        return BatchDone(
            batch.batch_id,
            assemble_ms=viewing_seconds * 1000 + result.assemble_ms,
            forward_ms=result.forward_ms,
            postprocess_ms=(written - ended) * 1000 + result.postprocess_ms,
            copy_ms=result.copy_ms,
            started=started,
            explanations=explanations,
            explain_ms=0.0 if explanations is None else (time.monotonic() - written) * 1000,
        )

    def _explain(
        self,
        batch: RunBatch,
        requests: Mapping[str, ExplainRequest],
        detections: Sequence[Detections],
    ) -> dict[str, Any]:
        """Explanations by slot, of detections that exist; each runs the network once more."""
        assert isinstance(self._device, ExplainingDevice), "devices of a model explain"
        explanations = {}
        for (slot, generation), found in zip(batch.slots, detections, strict=True):
            request = requests.get(str(slot))
            chosen = None if request is None else _chosen(found, request)
            if chosen is not None:
                header = self._memory.read_header(slot, generation)
                pixels = self._memory.pixels(slot, header.size)
                size = header.original_size
                explanation = self._device.explain(pixels, batch.padded, size, chosen)
                explanations[str(slot)] = explanation.to_dict()
        return explanations

    def _report_failure(self, batch: RunBatch, error: Exception) -> BatchFailed:
        """Reports a failed batch; exits the process if the device is lost."""
        if isinstance(error, OutOfDeviceMemory | MemoryError):
            return BatchFailed(batch.batch_id, str(error) or "no memory left", "out_of_memory")
        _log.error("batch failed", images=len(batch.slots), padded=batch.padded, exc_info=error)
        if self._device.is_broken(error):
            _log.error("the device is lost; exiting, to be replaced")
            os._exit(EXIT_DEVICE_LOST)
        return BatchFailed(batch.batch_id, f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class _StartedBatch:
    """A batch that the device computes, or that failed to start."""

    message: RunBatch
    outcome: BatchInFlight | BatchFailed

    def done(self) -> bool:
        """Whether its result can be sent without waiting."""
        return isinstance(self.outcome, BatchFailed) or self.outcome.done()


class OverlappingEngine(Engine):
    """An engine whose device computes one batch while the next is assembled.

    At most two batches are in flight, as many as the edge sends. Results are sent in order and
    without delay: the engine checks for the result of the current batch between the images of the
    next one.
    """

    def __init__(
        self, device: OverlappingDevice, memory: SlotMemory, doorbell: EngineDoorbell
    ) -> None:
        """Creates an engine; `run` starts it."""
        super().__init__(device, memory, doorbell)
        self._overlapping = device
        self._in_flight: _StartedBatch | None = None

    def run(self) -> None:
        """See `Engine.run`; finishes the batch in flight before it returns."""
        while True:
            if self._in_flight is not None and not self._message_comes_first(self._in_flight):
                self._finish()
                continue
            message = self._next_message()
            following = self._begin(message) if isinstance(message, RunBatch) else None
            self._finish()
            if following is None:
                return
            self._in_flight = following

    def _message_comes_first(self, batch: _StartedBatch) -> bool:
        """Waits for a message or the end of the batch; returns whether the message came first."""
        while not batch.done():
            if self._doorbell.has_message_within(_POLL_SECONDS):
                return True
        return False

    def _begin(self, batch: RunBatch) -> _StartedBatch:
        try:
            headers = self._read_headers(batch)
            views = _call_between(self._pixels(batch, headers), self._finish_if_done)
            sizes = [header.original_size for header in headers]
            return _StartedBatch(batch, self._overlapping.begin(views, batch.padded, sizes))
        except Exception as error:
            self._finish()  # the previous batch must not be lost with the device
            return _StartedBatch(batch, self._report_failure(batch, error))

    def _finish_if_done(self) -> None:
        if self._in_flight is not None and self._in_flight.done():
            self._finish()

    def _finish(self) -> None:
        """Waits for the batch in flight, if any, and sends its result."""
        batch, self._in_flight = self._in_flight, None
        if batch is not None:
            self._doorbell.send(self._outcome(batch))

    def _outcome(self, batch: _StartedBatch) -> BatchDone | BatchFailed:
        if isinstance(batch.outcome, BatchFailed):
            return batch.outcome
        try:
            result = batch.outcome.finish()
            # The time when its steps would have started without waiting for the previous batch.
            worked_ms = result.assemble_ms + result.copy_ms + result.forward_ms
            started = time.monotonic() - (worked_ms + result.postprocess_ms) / 1000
            return self._write_results(batch.message, result, started, 0.0)
        except Exception as error:
            return self._report_failure(batch.message, error)


def create_engine(device: Device, memory: SlotMemory, doorbell: EngineDoorbell) -> Engine:
    """Creates the engine for a device."""
    if isinstance(device, OverlappingDevice):
        return OverlappingEngine(device, memory, doorbell)
    return Engine(device, memory, doorbell)


def _call_between(
    images: Iterator[npt.NDArray[np.uint8]], check: Callable[[], None]
) -> Iterator[npt.NDArray[np.uint8]]:
    """Yields the images and calls `check` before each."""
    for image in images:
        check()
        yield image


def _chosen(found: Detections, request: ExplainRequest) -> Detections | None:
    """The detection that a request names, as one row; None if there is no such detection."""
    ids = None if request.class_ids is None else frozenset(request.class_ids)
    selected = Selection(request.threshold, request.max_detections, ids).apply(found)
    if request.number > len(selected):
        return None
    return selected.keep(slice(request.number - 1, request.number))


def _check_finite(found: Detections) -> None:
    """Checks that scores and boxes are finite.

    Raises:
        ArithmeticError: for NaN or infinity.
    """
    if not (np.isfinite(found.scores).all() and np.isfinite(found.boxes_xyxy).all()):
        raise ArithmeticError("the network's output is not finite")
