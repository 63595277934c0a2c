"""Batches on a GPU, two at a time: one computes while the next is put together and copied.

    images --> pinned buffer --copy stream--> buffer on the card
                                                  |  (compute stream from here)
                                                  v
               pinned rows <-- best pairs <-- network <-- static input

There are two sets of buffers, used in turn. Only uint8 pixels and the images' sizes travel; what
the network needs of them is made on the card. The host waits once a batch, at its end.
The static input is where CUDA graphs read: all of them read the same memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.postprocess import to_detections
from model.predictor import Predictor
from service.engine.cuda_card import Card
from service.engine.cuda_graphs import CudaGraphs
from service.engine.device import BatchShape, DeviceResult

_SIZE_BYTES = 8  # two int32 an image
_ALIGNED = 256  # bytes: where pixels begin
_COLUMNS = 6  # of a row of `best_pairs`
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class PipelineLimits:
    """What the buffers must hold."""

    max_batch_size: int  # images
    max_padded_pixels: int  # of a whole batch


@dataclass(frozen=True)
class BatchLayout:
    """Where a batch's parts lie in a flat buffer: sizes, then pixels."""

    shape: BatchShape

    @property
    def pixels_at(self) -> int:
        """The pixels' first byte."""
        return -(-self.shape.images * _SIZE_BYTES // _ALIGNED) * _ALIGNED

    @property
    def num_bytes(self) -> int:
        """Of all of it."""
        height, width = self.shape.padded
        return self.pixels_at + self.shape.images * height * width * 3

    def sizes(self, buffer: Tensor) -> Tensor:
        """(height, width) of each image: int32 [B, 2], a view."""
        count = self.shape.images
        return buffer[: count * _SIZE_BYTES].view(torch.int32).view(count, 2)

    def pixels(self, buffer: Tensor) -> Tensor:
        """uint8 [B, H, W, 3], a view."""
        flat = buffer[self.pixels_at : self.num_bytes]
        return flat.view(self.shape.images, *self.shape.padded, 3)


def fill(buffer: Tensor, layout: BatchLayout, images: Iterable[npt.NDArray[np.uint8]]) -> None:
    """Copies images into a buffer of the host; what lay in their padding stays there.

    Raises:
        ValueError: for an image larger than its bucket, or another number of images.
    """
    pixels, sizes = layout.pixels(buffer).numpy(), layout.sizes(buffer).numpy()
    most = layout.shape.padded
    for image, place, size in zip(images, pixels, sizes, strict=True):
        height, width = image.shape[:2]
        if height > most[0] or width > most[1]:
            raise ValueError(f"an image of {height} x {width} does not fit bucket {most}")
        place[:height, :width] = image
        size[:] = height, width


class _Buffers:
    """One of the two sets, and the places in the streams' work that its batch passes."""

    def __init__(self, card: Card, input_bytes: int, row_bytes: int) -> None:
        self.host, self.device = card.pinned(input_bytes), card.memory(input_bytes)
        self.rows = card.pinned(row_bytes)
        self.copy_begins, self.copied = card.event(), card.event()
        self.begins, self.computed, self.ended = card.event(), card.event(), card.event()
        self.taken = False


class GpuPipeline:
    """Runs a predictor's batches on a card.

    Args:
        predictor: on the card.
        card: the card.
        limits: of the batches to come.
        most_graphs: CUDA graphs to record at most; 0: none.
    """

    def __init__(
        self, predictor: Predictor, card: Card, limits: PipelineLimits, most_graphs: int
    ) -> None:
        self._predictor, self._card, self._limits = predictor, card, limits
        config = predictor.config
        sizes_bytes = BatchLayout(BatchShape((0, 0), limits.max_batch_size)).pixels_at
        input_bytes = sizes_bytes + 3 * limits.max_padded_pixels
        row_bytes = limits.max_batch_size * config.max_detections * _COLUMNS * _FLOAT_BYTES
        self._sets = [_Buffers(card, input_bytes, row_bytes) for _ in range(2)]
        self._input = card.memory(input_bytes)
        self.graphs = CudaGraphs(card, most_graphs)
        card.wait()  # the buffers were made on neither of its streams

    def begin(
        self,
        images: Iterable[npt.NDArray[np.uint8]],
        padded: tuple[int, int],
        original_sizes: Sequence[tuple[int, int]],
    ) -> GpuBatch:
        """Puts a batch together and asks the card for it; at most one other may be under way.

        Args:
            images: RGB uint8 [h, w, 3] each, resized; taken one by one, and not kept.
            padded: (H, W) of their bucket.
            original_sizes: (H, W) that boxes refer to, one an image.

        Raises:
            ValueError: for a batch beyond the limits, or an image larger than the bucket.
            torch.OutOfMemoryError: where the card has no memory for it.
        """
        layout = BatchLayout(BatchShape(padded, len(original_sizes)))
        if (
            layout.shape.images > self._limits.max_batch_size
            or layout.num_bytes > self._input.numel()
        ):
            raise ValueError(f"{layout.shape} is beyond what the buffers were made for")
        started = time.monotonic()
        buffers = self._take()
        try:
            fill(buffers.host, layout, images)
            assembled = time.monotonic()
            rows = self._launch(buffers, layout)
        except BaseException:
            buffers.taken = False
            raise
        return GpuBatch(self, buffers, rows, original_sizes, (assembled - started) * 1000)

    def record(self, shape: BatchShape) -> bool:
        """Records a CUDA graph for batches of a shape that has just run; see `CudaGraphs`."""
        layout = BatchLayout(shape)
        return self.graphs.record(shape, lambda: self._detect(layout))

    def wait(self) -> None:
        """Waits until the card has nothing to do; see `Card.wait`."""
        self._card.wait()

    def _take(self) -> _Buffers:
        """The free set that was taken longest ago."""
        free = [buffers for buffers in self._sets if not buffers.taken]
        assert free, "two batches are under way already"
        self._sets.remove(free[0])
        self._sets.append(free[0])
        free[0].taken = True
        return free[0]

    def _launch(self, buffers: _Buffers, layout: BatchLayout) -> Tensor:
        """Asks both streams for all that a batch needs; waits for nothing.

        Returns:
            Where its rows will be: float32 [B, K, 6] in pinned memory.
        """
        whole = slice(layout.num_bytes)
        with torch.inference_mode():
            with self._card.copying():
                buffers.copy_begins.record()
                buffers.device[whole].copy_(buffers.host[whole], non_blocking=True)
                buffers.copied.record()
            with self._card.computing():
                buffers.copied.wait()
                buffers.begins.record()
                self._input[whole].copy_(buffers.device[whole])
                found = self.graphs.run(layout.shape, lambda: self._detect(layout))
                buffers.computed.record()
                rows = buffers.rows[: found.numel() * _FLOAT_BYTES].view(torch.float32)
                rows = rows.view(found.shape)
                rows.copy_(found, non_blocking=True)
                buffers.ended.record()
        return rows

    def _detect(self, layout: BatchLayout) -> Tensor:
        """What a batch computes, from the static input."""
        return self._predictor.detect(layout.pixels(self._input), layout.sizes(self._input))

    def finish(self, buffers: _Buffers, rows: Tensor, batch: GpuBatch) -> DeviceResult:
        """Waits for a batch and takes its answer out of the buffers."""
        try:
            buffers.ended.synchronize()
            ended = time.monotonic()
            config = self._predictor.config
            found = to_detections(rows.numpy(), batch.original_sizes, config.duplicate_iou)
        finally:
            buffers.taken = False
        made_ms = (time.monotonic() - ended) * 1000
        return DeviceResult(
            found,
            assemble_ms=batch.assemble_ms,
            forward_ms=buffers.begins.elapsed_time(buffers.computed),
            postprocess_ms=buffers.computed.elapsed_time(buffers.ended) + made_ms,
            copy_ms=buffers.copy_begins.elapsed_time(buffers.copied),
        )


class GpuBatch:
    """A batch under way; `GpuPipeline.begin` makes one."""

    def __init__(
        self,
        pipeline: GpuPipeline,
        buffers: _Buffers,
        rows: Tensor,
        original_sizes: Sequence[tuple[int, int]],
        assemble_ms: float,
    ) -> None:
        """Holds a set of buffers until `finish`."""
        self._pipeline, self._buffers, self._rows = pipeline, buffers, rows
        self.original_sizes, self.assemble_ms = original_sizes, assemble_ms

    def done(self) -> bool:
        """Whether `finish` would not wait."""
        try:
            return self._buffers.ended.query()
        except RuntimeError:  # the card is lost: `finish` tells
            return True

    def finish(self) -> DeviceResult:
        """Waits for the answer, once.

        Raises:
            RuntimeError: whatever went wrong on the card.
        """
        return self._pipeline.finish(self._buffers, self._rows, self)
