"""Shared-memory slots: carry pixels to the engine and detections back, without extra copies.

All slots are in one anonymous memory file. The edge maps it and passes its descriptor to each
engine. The kernel frees it with the last process that maps it, so that killed processes leak
nothing. A slot holds one image from its decoding to its result:

    header   generation, h, w, padded H, W, original H, W      written by the edge
    image    uint8 [h, w, 3] RGB, resized, without padding      written by the edge
    result   generation, count, then float32 columns:           written by the engine
             scores [max_detections], labels [...], boxes_xyxy [..., 4]

Each lease of a slot (`service.ipc.slot_pool`) has its own generation, which is sent with every
batch: an engine neither reads nor writes a slot of another generation, and the edge accepts no such
result. The slots of a killed engine are leased again only after the process is reaped
(`service.supervision.supervisor`), so that even a write in progress cannot reach the next lease.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from model.config import ModelConfig
from model.detections import Detections
from model.geometry import padded_size
from service.ipc.memory_file import create_memory_file

_HEADER = struct.Struct("=7q")
_HEADER_BYTES = 64  # one cache line; the header is smaller
_RESULT_HEADER = struct.Struct("=2q")
_RESULT_HEADER_BYTES = 64
_COLUMNS = 6  # score, label, four corners
_CHANNELS = 3
_PAGE = 4096


_Column = npt.NDArray[np.float32]
_ResultColumns = tuple[_Column, _Column, _Column]


@dataclass(frozen=True)
class SlotLayout:
    """Sizes that the edge and its engines agree on."""

    count: int  # slots
    image_bytes: int  # size of the image area: the largest resized image fits
    max_detections: int  # rows of the result area

    @property
    def result_offset(self) -> int:
        """Offset of the result area in a slot, in bytes."""
        return _HEADER_BYTES + -(-self.image_bytes // 64) * 64

    @property
    def stride(self) -> int:
        """Bytes from one slot to the next: whole pages, so that unused slots take no memory."""
        result_bytes = _RESULT_HEADER_BYTES + 4 * _COLUMNS * self.max_detections
        return -(-(self.result_offset + result_bytes) // _PAGE) * _PAGE

    @property
    def total_bytes(self) -> int:
        """Size of the memory file."""
        return self.count * self.stride


class SlotImage(NamedTuple):
    """The header of a slot; sizes are (height, width) in pixels."""

    size: tuple[int, int]  # resized, as stored in the slot
    padded: tuple[int, int]  # its shape bucket
    original_size: tuple[int, int]  # after EXIF rotation; boxes refer to it


def largest_bucket_pixels(config: ModelConfig) -> int:
    """Returns the padded pixels of the largest image that a model's resize rule allows."""
    height, width = padded_size(config.shortest_side, config.longest_side, config.bucket_stride)
    return height * width


def slot_layout(config: ModelConfig, count: int) -> SlotLayout:
    """Returns the layout for the images and results of a model."""
    return SlotLayout(
        count=count,
        image_bytes=largest_bucket_pixels(config) * _CHANNELS,
        max_detections=config.max_detections,
    )


class SlotMemory:
    """The mapped memory file; edge and engines read and write slots through it."""

    def __init__(self, layout: SlotLayout, fd: int) -> None:
        """Maps the file.

        Args:
            layout: of the file behind `fd`.
            fd: descriptor of the file; closed by `close`.
        """
        self.layout = layout
        self.fd = fd
        self._stride = layout.stride
        self._result_offset = layout.result_offset
        self._map = mmap.mmap(fd, layout.total_bytes)
        self._results: dict[int, _ResultColumns] = {}
        self._bytes: npt.NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8)

    @classmethod
    def create(cls, layout: SlotLayout) -> SlotMemory:
        """Creates the memory file: in RAM if possible, otherwise an unlinked temporary file."""
        return cls(layout, create_memory_file("lite-detr-slots", layout.total_bytes))

    def close(self) -> None:
        """Unmaps the memory, once no array of `pixels` is in use any more."""
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        self._results.clear()
        self._bytes = np.empty(0, dtype=np.uint8)
        try:
            self._map.close()
        except BufferError:  # arrays still use the mapping; it is freed with the last of them
            return

    def write_header(self, slot: int, generation: int, image: SlotImage) -> None:
        """Writes the header of a slot (edge)."""
        sizes = *image.size, *image.padded, *image.original_size
        _HEADER.pack_into(self._map, slot * self._stride, generation, *sizes)

    def read_header(self, slot: int, generation: int) -> SlotImage:
        """Reads the header of a slot (engine).

        Raises:
            StaleSlot: if the slot belongs to another lease by now.
        """
        self._check_index(slot)
        found, *sizes = _HEADER.unpack_from(self._map, slot * self._stride)
        if found != generation:
            raise StaleSlot(slot, generation, found)
        return SlotImage((sizes[0], sizes[1]), (sizes[2], sizes[3]), (sizes[4], sizes[5]))

    def clear_header(self, slot: int, generation: int) -> None:
        """Gives a slot to a new lease; for older generations it is stale from now on."""
        _HEADER.pack_into(self._map, slot * self._stride, generation, 0, 0, 0, 0, 0, 0)

    def pixels(self, slot: int, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """Returns a view of the image area, uint8 [h, w, 3].

        Raises:
            ValueError: if an image of that size does not fit.
        """
        num_bytes = size[0] * size[1] * _CHANNELS
        if num_bytes > self.layout.image_bytes:
            raise ValueError(f"an image of {size} pixels does not fit a slot")
        start = slot * self._stride + _HEADER_BYTES
        return self._bytes[start : start + num_bytes].reshape(*size, _CHANNELS)

    def write_result(self, slot: int, generation: int, detections: Detections) -> None:
        """Writes detections into a slot (engine), at most `max_detections` of them.

        Raises:
            StaleSlot: if the slot belongs to another lease by now; nothing is written.
        """
        self.read_header(slot, generation)
        count = min(len(detections), self.layout.max_detections)
        scores, labels, boxes = self._columns(slot)
        scores[:count] = detections.scores[:count]
        labels[:count] = detections.labels[:count]
        boxes[:count] = detections.boxes_xyxy[:count]
        _RESULT_HEADER.pack_into(self._map, self._result_start(slot), generation, count)

    def read_result(self, slot: int, generation: int) -> Detections:
        """Copies the detections out of a slot (edge).

        Raises:
            StaleSlot: if the result belongs to another lease.
            ValueError: if the count is impossible.
        """
        found, count = _RESULT_HEADER.unpack_from(self._map, self._result_start(slot))
        if found != generation:
            raise StaleSlot(slot, generation, found)
        if not 0 <= count <= self.layout.max_detections:
            raise ValueError(f"slot {slot} claims {count} detections")
        scores, labels, boxes = self._columns(slot)
        return Detections(
            scores=scores[:count].copy(),
            labels=labels[:count].astype(np.int64),
            boxes_xyxy=boxes[:count].copy(),
        )

    def _check_index(self, slot: int) -> None:
        if not 0 <= slot < self.layout.count:
            raise ValueError(f"there is no slot {slot}")

    def _result_start(self, slot: int) -> int:
        return slot * self._stride + self._result_offset

    def _columns(self, slot: int) -> _ResultColumns:
        """Returns views of scores [max], labels [max] and boxes [max, 4]; cached for speed."""
        columns = self._results.get(slot)
        if columns is None:
            columns = self._results[slot] = self._make_columns(slot)
        return columns

    def _make_columns(self, slot: int) -> _ResultColumns:
        rows = self.layout.max_detections
        start = self._result_start(slot) + _RESULT_HEADER_BYTES
        columns = self._bytes[start : start + 4 * _COLUMNS * rows].view(np.float32)
        return columns[:rows], columns[rows : 2 * rows], columns[2 * rows :].reshape(rows, 4)


class StaleSlot(RuntimeError):
    """A slot was used under a lease that has ended."""

    def __init__(self, slot: int, expected: int, found: int) -> None:
        """Names the slot and both generations."""
        super().__init__(f"slot {slot} is of generation {found}, not {expected}")
