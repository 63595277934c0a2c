"""Messages between the edge and a decoder process, and the memory that carries the image files.

A message on the socket is a header (kind, length) and that many bytes. The encoded image lies in
`InboxMemory`, which the edge writes and the decoder reads; pixels go into a slot.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

from model.images.limits import Cost
from service.ipc.memory_file import create_memory_file

HEADER = struct.Struct("<BI")  # kind, bytes of the payload
# Edge -> template process, each with a worker's number; START carries two file descriptors.
START, KILL = b"S", b"K"
CONTROL = struct.Struct("<cQ")

# Edge -> decoder.
ATTACH, DECODE, CALL, DECODE_TILES, DETACH = 1, 2, 3, 4, 5
# Decoder -> edge.
READY, DECODED, FAILED, COSTS_MORE, OUT_OF_MEMORY, ENCODED, BUG = 1, 2, 3, 4, 5, 6, 7

_DECODE_TASK = struct.Struct("<10qd")
_DECODED = struct.Struct("<4q2d")
_TILE = struct.Struct("<5q")
_ATTACH = struct.Struct("<3q")
_CALL = struct.Struct("<2q")
_COST = struct.Struct("<qd")
_NO_LIMIT = Cost(-1, -1.0)
_PAGE = mmap.PAGESIZE
_KEPT_BYTES = 4 << 20  # of a file that stay allocated for the next file


class DecodeTask(NamedTuple):
    """A file in the inbox that is to be decoded into a slot."""

    num_bytes: int
    shortest_side: int
    longest_side: int
    max_bytes: int
    max_pixels: int
    max_jpeg_scans: int
    slot: int
    generation: int
    scales_jpegs: int  # 1: large JPEGs are decoded to a fraction of their size; 0: exactly
    granted: Cost | None  # None: no limit

    def pack(self) -> bytes:
        """The payload of DECODE."""
        return _DECODE_TASK.pack(*self[:-1], *(self.granted or _NO_LIMIT))

    @classmethod
    def unpack(cls, payload: bytes) -> DecodeTask:
        """The task in a payload of DECODE."""
        *fields, memory_bytes, seconds = _DECODE_TASK.unpack(payload)
        granted = Cost(memory_bytes, seconds)
        return cls._make([*fields, None if granted == _NO_LIMIT else granted])


class TileTask(NamedTuple):
    """A region of the image that is to be decoded into a slot of its own."""

    slot: int
    left: int  # pixels after EXIF rotation
    top: int
    right: int
    bottom: int


def pack_tiles(work: DecodeTask, tiles: Sequence[TileTask]) -> bytes:
    """The payload of DECODE_TILES; `slot` and `generation` of the task are not used."""
    return work.pack() + b"".join(_TILE.pack(*tile) for tile in tiles)


def unpack_tiles(payload: bytes) -> tuple[DecodeTask, list[TileTask]]:
    """The task and the tiles in a payload of DECODE_TILES."""
    tiles = [TileTask(*each) for each in _TILE.iter_unpack(payload[_DECODE_TASK.size :])]
    return DecodeTask.unpack(payload[: _DECODE_TASK.size]), tiles


class Decoded(NamedTuple):
    """A decoded image in its slot; times are monotonic seconds, the same clock in all processes."""

    height: int  # resized, pixels
    width: int
    original_height: int  # after EXIF rotation
    original_width: int
    started: float
    ended: float

    def pack(self) -> bytes:
        """The payload of DECODED."""
        return _DECODED.pack(*self)

    @classmethod
    def unpack(cls, payload: bytes) -> Decoded:
        """The times and sizes in a payload of DECODED."""
        return cls(*_DECODED.unpack(payload))


class Message(NamedTuple):
    """One received message."""

    kind: int
    payload: bytes


class MessageBuffer:
    """Assembles messages from received bytes."""

    def __init__(self) -> None:
        """Creates an empty buffer."""
        self._bytes = bytearray()

    def feed(self, data: bytes) -> None:
        """Adds received bytes."""
        self._bytes += data

    def take(self) -> Message | None:
        """Removes and returns the next message; None if it is not complete yet."""
        if len(self._bytes) < HEADER.size:
            return None
        kind, length = HEADER.unpack_from(self._bytes)
        end = HEADER.size + length
        if len(self._bytes) < end:
            return None
        with memoryview(self._bytes) as received:
            payload = bytes(received[HEADER.size : end])
        del self._bytes[:end]
        return Message(kind, payload)


def encode(kind: int, payload: bytes = b"") -> bytes:
    """A message as it is sent."""
    return HEADER.pack(kind, len(payload)) + payload


def pack_attach(count: int, image_bytes: int, max_detections: int) -> bytes:
    """The payload of ATTACH: the fields of a `SlotLayout`."""
    return _ATTACH.pack(count, image_bytes, max_detections)


def unpack_attach(payload: bytes) -> tuple[int, int, int]:
    """The fields of a `SlotLayout` in a payload of ATTACH."""
    count, image_bytes, max_detections = _ATTACH.unpack(payload)
    return count, image_bytes, max_detections


def pack_call(num_bytes: int, num_pickled: int) -> bytes:
    """The payload of CALL: the lengths of the file and of the pickled call behind it."""
    return _CALL.pack(num_bytes, num_pickled)


def unpack_call(payload: bytes) -> tuple[int, int]:
    """The lengths in a payload of CALL."""
    num_bytes, num_pickled = _CALL.unpack(payload)
    return num_bytes, num_pickled


def pack_cost(cost: Cost) -> bytes:
    """The payload of COSTS_MORE."""
    return _COST.pack(*cost)


def unpack_cost(payload: bytes) -> Cost:
    """The cost in a payload of COSTS_MORE."""
    return Cost(*_COST.unpack(payload))


class InboxMemory:
    """Shared memory that holds the encoded image of one decoder's current task."""

    def __init__(self, fd: int, size: int) -> None:
        """Maps the memory file behind a descriptor, which becomes this object's to close."""
        self.fd = fd
        self.size = size
        self._used = 0
        self._map = mmap.mmap(fd, size)

    @classmethod
    def create(cls, max_bytes: int) -> InboxMemory:
        """Creates memory for files of up to `max_bytes`; pages are allocated when written."""
        size = -(-max(1, max_bytes) // _PAGE) * _PAGE
        return cls(create_memory_file("lite-detr-inbox", size), size)

    def write(self, *parts: bytes | memoryview) -> int:
        """Copies these bytes to the start of the memory, one part after the other.

        Returns:
            How many bytes there are.

        Raises:
            ValueError: if it does not fit.
        """
        num_bytes = sum(map(len, parts))
        if num_bytes > self.size:
            raise ValueError(f"{num_bytes} bytes do not fit an inbox of {self.size}")
        start = 0
        for part in parts:
            self._map[start : start + len(part)] = part
            start += len(part)
        self._used = max(self._used, num_bytes)
        return num_bytes

    def view(self, num_bytes: int) -> memoryview:
        """The first bytes of the memory, without a copy."""
        return memoryview(self._map)[:num_bytes]

    def release_pages(self) -> None:
        """Returns the memory of a large file to the kernel."""
        if self._used > _KEPT_BYTES and hasattr(mmap, "MADV_REMOVE"):
            end = -(-self._used // _PAGE) * _PAGE
            self._map.madvise(mmap.MADV_REMOVE, _KEPT_BYTES, end - _KEPT_BYTES)
            self._used = _KEPT_BYTES

    def close(self) -> None:
        """Unmaps the memory and closes its descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self._map.close()
