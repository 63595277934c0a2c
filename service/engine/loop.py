"""What an engine does all day: messages in, batches through the device, answers out, in order.

A device that computes by itself while its host is free (a GPU) gets the next batch before it has
ended the one before, so that it never waits for pixels; on a CPU one batch follows the other.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import structlog

from model.detections import Detections
from service.engine.device import (
    BatchInFlight,
    Device,
    DeviceResult,
    OutOfDeviceMemory,
    OverlappingDevice,
)
from service.ipc.doorbell import EngineDoorbell
from service.ipc.messages import BadMessage, BatchDone, BatchFailed, Message, RunBatch
from service.ipc.slots import SlotImage, SlotMemory

_EXIT_BROKEN_DEVICE = 70
_LOOK_SECONDS = 1e-4  # between two looks at the card: what an answer may be late by

_log = structlog.get_logger(__name__)


class Engine:
    """Runs batches until it is told to stop."""

    def __init__(self, device: Device, memory: SlotMemory, doorbell: EngineDoorbell) -> None:
        """Takes what it works with."""
        self._device = device
        self._memory = memory
        self._doorbell = doorbell

    def run(self) -> None:
        """Answers messages in order; returns on `Stop`, on nonsense and when the edge is gone."""
        while isinstance(message := self._next_message(), RunBatch):
            self._doorbell.send(self._run_batch(message))

    def _next_message(self) -> Message | None:
        try:
            return self._doorbell.receive()
        except BadMessage:
            return None

    def _run_batch(self, batch: RunBatch) -> BatchDone | BatchFailed:
        """Runs one batch; what goes wrong is told, so that the edge can isolate the culprit."""
        try:
            return self._detect(batch)
        except Exception as error:
            return self._failed(batch, error)

    def _detect(self, batch: RunBatch) -> BatchDone:
        started = time.monotonic()
        heads = self._read_headers(batch)
        views = list(self._pixels(batch, heads))
        viewed = time.monotonic()
        answer = self._device.run(views, batch.padded, [head.original_size for head in heads])
        return self._done(batch, answer, started, viewed - started)

    def _read_headers(self, batch: RunBatch) -> list[SlotImage]:
        return [self._memory.read_header(slot, generation) for slot, generation in batch.slots]

    def _pixels(
        self, batch: RunBatch, heads: Sequence[SlotImage]
    ) -> Iterator[npt.NDArray[np.uint8]]:
        """Views of a batch's images, one after the other."""
        for (slot, _), head in zip(batch.slots, heads, strict=True):
            yield self._memory.pixels(slot, head.size)

    def _done(
        self, batch: RunBatch, answer: DeviceResult, started: float, viewing_seconds: float
    ) -> BatchDone:
        """Writes an answer into the slots of its batch, and says so."""
        answered = time.monotonic()
        for (slot, generation), found in zip(batch.slots, answer.detections, strict=True):
            _check_finite(found)
            self._memory.write_result(slot, generation, found)
        return BatchDone(
            batch.batch_id,
            assemble_ms=viewing_seconds * 1000 + answer.assemble_ms,
            forward_ms=answer.forward_ms,
            postprocess_ms=(time.monotonic() - answered) * 1000 + answer.postprocess_ms,
            copy_ms=answer.copy_ms,
            started=started,
        )

    def _failed(self, batch: RunBatch, error: Exception) -> BatchFailed:
        """What the edge is told; ends the process where the device is lost."""
        if isinstance(error, OutOfDeviceMemory | MemoryError):
            return BatchFailed(batch.batch_id, str(error) or "no memory left", "out_of_memory")
        _log.error("batch failed", images=len(batch.slots), padded=batch.padded, exc_info=error)
        if self._device.is_broken(error):
            _log.error("the device is lost; ending, to be replaced")
            os._exit(_EXIT_BROKEN_DEVICE)
        return BatchFailed(batch.batch_id, f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class _Begun:
    """A batch that the device was given, or the failure that it ended in at once."""

    batch: RunBatch
    outcome: BatchInFlight | BatchFailed

    def done(self) -> bool:
        """Whether its answer is there."""
        return isinstance(self.outcome, BatchFailed) or self.outcome.done()


class OverlappingEngine(Engine):
    """An engine whose device computes one batch while the next is put together.

    At most two are under way, as many as the edge sends. Answers go out in order, each as soon as
    it is there: between two images of the next batch the engine looks whether it is.
    """

    def __init__(
        self, device: OverlappingDevice, memory: SlotMemory, doorbell: EngineDoorbell
    ) -> None:
        """Takes what it works with."""
        super().__init__(device, memory, doorbell)
        self._overlapping = device
        self._under_way: _Begun | None = None

    def run(self) -> None:
        """See `Engine.run`; what is under way is answered before it returns."""
        while True:
            if self._under_way is not None and not self._rings_before_the_end(self._under_way):
                self._answer()
                continue
            message = self._next_message()
            following = self._begin(message) if isinstance(message, RunBatch) else None
            self._answer()
            if following is None:
                return
            self._under_way = following

    def _rings_before_the_end(self, begun: _Begun) -> bool:
        """Waits for a message or for the batch's end; True where the message came first."""
        while not begun.done():
            if self._doorbell.has_message_within(_LOOK_SECONDS):
                return True
        return False

    def _begin(self, batch: RunBatch) -> _Begun:
        try:
            heads = self._read_headers(batch)
            views = _between(self._pixels(batch, heads), self._answer_if_done)
            sizes = [head.original_size for head in heads]
            return _Begun(batch, self._overlapping.begin(views, batch.padded, sizes))
        except Exception as error:
            self._answer()  # the one before is not to blame, and must not be lost with the device
            return _Begun(batch, self._failed(batch, error))

    def _answer_if_done(self) -> None:
        if self._under_way is not None and self._under_way.done():
            self._answer()

    def _answer(self) -> None:
        """Waits for the batch under way, if any, and answers it."""
        begun, self._under_way = self._under_way, None
        if begun is not None:
            self._doorbell.send(self._outcome(begun))

    def _outcome(self, begun: _Begun) -> BatchDone | BatchFailed:
        if isinstance(begun.outcome, BatchFailed):
            return begun.outcome
        try:
            answer = begun.outcome.finish()
            # The times of its steps, end to end: they were waited for before the device was free.
            worked_ms = answer.assemble_ms + answer.copy_ms + answer.forward_ms
            started = time.monotonic() - (worked_ms + answer.postprocess_ms) / 1000
            return self._done(begun.batch, answer, started, 0.0)
        except Exception as error:
            return self._failed(begun.batch, error)


def create_engine(device: Device, memory: SlotMemory, doorbell: EngineDoorbell) -> Engine:
    """The engine for a device."""
    if isinstance(device, OverlappingDevice):
        return OverlappingEngine(device, memory, doorbell)
    return Engine(device, memory, doorbell)


def _between(
    images: Iterator[npt.NDArray[np.uint8]], look: Callable[[], None]
) -> Iterator[npt.NDArray[np.uint8]]:
    """The images, with a look at something else before each."""
    for image in images:
        look()
        yield image


def _check_finite(found: Detections) -> None:
    """Refuses numbers that no client could use.

    Raises:
        ArithmeticError: for NaN or infinity; an error is better than a nonsense box.
    """
    if not (np.isfinite(found.scores).all() and np.isfinite(found.boxes_xyxy).all()):
        raise ArithmeticError("the network's output is not finite")
