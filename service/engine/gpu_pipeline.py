"""Runs batches on a GPU, two at a time: one computes while the next is assembled and copied.

    images --> pinned buffer --copy stream--> buffer on the GPU
                                                  |  (compute stream from here)
                                                  v
               pinned rows <-- best pairs <-- network <-- static input

There are two sets of buffers, used alternately. Only uint8 pixels and the images' sizes are copied;
the GPU computes the network's input from them. The host waits once per batch, at its end.
All CUDA graphs read the static input.
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

_SIZE_BYTES = 8  # two int32 per image
_ALIGNMENT = 256  # bytes; of the pixels
_COLUMNS = 6  # of a row of `best_pairs`
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class PipelineLimits:
    """Maximum sizes of a batch, which the buffers must hold."""

    max_batch_size: int  # images
    max_padded_pixels: int  # of a whole batch

    def batch_sizes(self, padded: tuple[int, int]) -> tuple[int, ...]:
        """The numbers of images that batches of a shape bucket run with: 1, 2, 4, 8, ..., the most.

        Smaller batches are filled up. Few shapes mean few CUDA graphs, and few plans to make.
        """
        most = min(self.max_batch_size, max(1, self.max_padded_pixels // (padded[0] * padded[1])))
        return (*(1 << power for power in range((most - 1).bit_length())), most)


@dataclass(frozen=True)
class BatchLayout:
    """The layout of a batch in a flat buffer: sizes, then pixels."""

    shape: BatchShape

    @property
    def pixels_at(self) -> int:
        """The offset of the pixels, bytes."""
        return -(-self.shape.images * _SIZE_BYTES // _ALIGNMENT) * _ALIGNMENT

    @property
    def num_bytes(self) -> int:
        """The size of the batch, bytes."""
        return self.bytes_of(self.shape.images)

    def bytes_of(self, images: int) -> int:
        """The size of the batch up to its first images, bytes."""
        height, width = self.shape.padded
        return self.pixels_at + images * height * width * 3

    def sizes(self, buffer: Tensor) -> Tensor:
        """(height, width) of each image: int32 [B, 2], a view."""
        count = self.shape.images
        return buffer[: count * _SIZE_BYTES].view(torch.int32).view(count, 2)

    def pixels(self, buffer: Tensor) -> Tensor:
        """uint8 [B, H, W, 3], a view."""
        flat = buffer[self.pixels_at : self.num_bytes]
        return flat.view(self.shape.images, *self.shape.padded, 3)


def fill(
    buffer: Tensor, layout: BatchLayout, images: Iterable[npt.NDArray[np.uint8]], count: int
) -> None:
    """Copies images into a buffer of the host; their padding is not written.

    The batch's further images are what the buffer contains, in the size of the bucket.

    Args:
        buffer: uint8, on the host.
        layout: of the batch.
        images: RGB uint8 [h, w, 3] each.
        count: their number; at most that of the layout.

    Raises:
        ValueError: for an image larger than its shape bucket, or another number of images.
    """
    pixels, sizes = layout.pixels(buffer).numpy(), layout.sizes(buffer).numpy()
    padded = layout.shape.padded
    for image, place, size in zip(images, pixels[:count], sizes[:count], strict=True):
        height, width = image.shape[:2]
        if height > padded[0] or width > padded[1]:
            raise ValueError(f"an image of {height} x {width} does not fit bucket {padded}")
        place[:height, :width] = image
        size[:] = height, width
    sizes[count:] = padded


class _Buffers:
    """One of the two sets of buffers, and the events of its batch."""

    def __init__(self, card: Card, input_bytes: int, row_bytes: int) -> None:
        self.host, self.device = card.pinned(input_bytes), card.memory(input_bytes)
        self.rows = card.pinned(row_bytes)
        self.copy_begins, self.copied = card.event(), card.event()
        self.begins, self.computed, self.ended = card.event(), card.event(), card.event()
        self.in_use = False


class GpuPipeline:
    """Runs a predictor's batches on a GPU.

    Args:
        predictor: on the GPU.
        card: the GPU.
        limits: on batches.
        max_graphs: maximum number of CUDA graphs; 0: none.
    """

    def __init__(
        self, predictor: Predictor, card: Card, limits: PipelineLimits, max_graphs: int
    ) -> None:
        self._predictor, self._card, self._limits = predictor, card, limits
        config = predictor.config
        sizes_bytes = BatchLayout(BatchShape((0, 0), limits.max_batch_size)).pixels_at
        input_bytes = sizes_bytes + 3 * limits.max_padded_pixels
        row_bytes = limits.max_batch_size * config.max_detections * _COLUMNS * _FLOAT_BYTES
        self._sets = [_Buffers(card, input_bytes, row_bytes) for _ in range(2)]
        self._input = card.memory(input_bytes)
        self.graphs = CudaGraphs(card, max_graphs)
        card.wait()  # the buffers were created on another stream

    def begin(
        self,
        images: Iterable[npt.NDArray[np.uint8]],
        padded: tuple[int, int],
        original_sizes: Sequence[tuple[int, int]],
    ) -> GpuBatch:
        """Assembles and launches a batch; at most one other may be in flight.

        It is filled up to the next of `PipelineLimits.batch_sizes`.

        Args:
            images: RGB uint8 [h, w, 3] each, resized; read one by one, and not kept.
            padded: (H, W) of their shape bucket.
            original_sizes: (H, W) that boxes refer to, one per image.

        Raises:
            ValueError: for a batch beyond the limits, or an image larger than the bucket.
            torch.OutOfMemoryError: if the GPU has no memory for it.
        """
        count = len(original_sizes)
        fitting = [size for size in self._limits.batch_sizes(padded) if size >= count]
        layout = BatchLayout(BatchShape(padded, fitting[0] if fitting else count))
        if not fitting or layout.num_bytes > self._input.numel():
            raise ValueError(f"{layout.shape} is larger than the buffers")
        started = time.monotonic()
        buffers = self._take_buffers()
        try:
            fill(buffers.host, layout, images, count)
            assembled = time.monotonic()
            rows = self._launch(buffers, layout, count)
        except BaseException:
            buffers.in_use = False
            raise
        return GpuBatch(self, buffers, rows, original_sizes, (assembled - started) * 1000)

    def record(self, shape: BatchShape) -> bool:
        """Records a CUDA graph for batches of a shape that has just run; see `CudaGraphs`.

        Raises:
            DeviceLost: if the CUDA context is lost.
        """
        layout = BatchLayout(shape)
        return self.graphs.record(shape, lambda: self._detect(layout))

    def wait(self) -> None:
        """Waits until the GPU is idle; see `Card.wait`."""
        self._card.wait()

    def _take_buffers(self) -> _Buffers:
        """The free set that was used longest ago."""
        free = [buffers for buffers in self._sets if not buffers.in_use]
        assert free, "two batches are already in flight"
        self._sets.remove(free[0])
        self._sets.append(free[0])
        free[0].in_use = True
        return free[0]

    def _launch(self, buffers: _Buffers, layout: BatchLayout, count: int) -> Tensor:
        """Launches all work of a batch on both streams, without waiting.

        Args:
            buffers: with its first `count` images and all sizes.
            layout: of the batch.
            count: number of images.

        Returns:
            The pinned memory of the rows of these images, float32 [count, K, 6]; written when the
            batch ends.
        """
        whole = slice(layout.bytes_of(count))
        with torch.inference_mode():
            with self._card.copying():
                buffers.copy_begins.record()
                buffers.device[whole].copy_(buffers.host[whole], non_blocking=True)
                buffers.copied.record()
            with self._card.computing():
                buffers.copied.wait()
                buffers.begins.record()
                self._input[whole].copy_(buffers.device[whole])
                found = self.graphs.run(layout.shape, lambda: self._detect(layout))[:count]
                buffers.computed.record()
                rows = buffers.rows[: found.numel() * _FLOAT_BYTES].view(torch.float32)
                rows = rows.view(found.shape)
                rows.copy_(found, non_blocking=True)
                buffers.ended.record()
        return rows

    def _detect(self, layout: BatchLayout) -> Tensor:
        """Computes a batch from the static input."""
        return self._predictor.detect(layout.pixels(self._input), layout.sizes(self._input))

    def finish(self, buffers: _Buffers, rows: Tensor, batch: GpuBatch) -> DeviceResult:
        """Waits for a batch and copies its result out of the buffers."""
        try:
            buffers.ended.synchronize()
            ended = time.monotonic()
            config = self._predictor.config
            found = to_detections(rows.numpy(), batch.original_sizes, config.duplicate_iou)
        finally:
            buffers.in_use = False
        convert_ms = (time.monotonic() - ended) * 1000
        return DeviceResult(
            found,
            assemble_ms=batch.assemble_ms,
            forward_ms=buffers.begins.elapsed_time(buffers.computed),
            postprocess_ms=buffers.computed.elapsed_time(buffers.ended) + convert_ms,
            copy_ms=buffers.copy_begins.elapsed_time(buffers.copied),
        )


class GpuBatch:
    """A batch in flight, created by `GpuPipeline.begin`."""

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
        """Whether `finish` would return at once."""
        try:
            return self._buffers.ended.query()
        except RuntimeError:  # the GPU is lost: `finish` raises
            return True

    def finish(self) -> DeviceResult:
        """Waits for the result; called once.

        Raises:
            RuntimeError: if the batch failed on the GPU.
        """
        return self._pipeline.finish(self._buffers, self._rows, self)
