"""A decoder process: takes image files from the edge one at a time and writes pixels into slots.

    inbox (file) --DECODE--------> decode_image --> slot (pixels), DECODED
    inbox (file) --DECODE_TILES--> decode_regions --> slots (pixels), DECODED
    inbox (file) --CALL----------> a format's encoder, for drawn images --> ENCODED

`service.decoding.template` forks it. It never imports torch, opens no connections, and ends with
the edge. Its address space is limited, so that an image which takes more memory than planned fails
here and not in the edge.
"""

from __future__ import annotations

import contextlib
import pickle
import resource
import socket
import struct
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from model.geometry import resized_size
from model.images.decode import (
    Cost,
    CostsMore,
    DecodedImage,
    ImageLimits,
    InputRule,
    JpegDecoding,
    decode_image,
)
from model.images.errors import DetectionError
from model.images.regions import decode_regions
from service.decoding import messages
from service.decoding.messages import (
    DecodeTask,
    InboxMemory,
    Message,
    MessageBuffer,
    TileTask,
)
from service.images.allocator import release_freed_memory
from service.ipc.slots import SlotLayout, SlotMemory

_READ_BYTES = 64 * 1024
_TIMEVAL = struct.Struct("@ll")  # of the socket option: seconds, microseconds
_IDLE_SECONDS = 10  # without a task; then freed memory is returned to the kernel
_IDLE, _FOR_EVER = _TIMEVAL.pack(_IDLE_SECONDS, 0), _TIMEVAL.pack(0, 0)
_SPARE_BYTES = 256 << 20  # of address space, for the interpreter, libraries and results

Size = tuple[int, int]  # (height, width)
Place = Callable[[Size], npt.NDArray[np.uint8]]


class _Sides(NamedTuple):
    """The input rule of a task."""

    shortest_side: int
    longest_side: int


class _Source(NamedTuple):
    """What is decoded, in the order of the arguments of `decode_image`."""

    data: memoryview
    rule: InputRule
    limits: ImageLimits
    granted: Cost | None


Decode = Callable[
    [memoryview, InputRule, ImageLimits, Cost | None, Place, JpegDecoding],
    DecodedImage,
]


class Worker:
    """The loop of a decoder process."""

    def __init__(
        self,
        end: socket.socket,
        inbox: InboxMemory,
        memory_bytes: int,
        decode: Decode = decode_image,
    ) -> None:
        """Prepares the loop.

        Args:
            end: of the socket pair shared with the edge.
            inbox: memory in which the edge puts files.
            memory_bytes: that decoding may take.
            decode: tests pass one that fails.
        """
        self._socket = end
        self._inbox = inbox
        self._memory_bytes = memory_bytes
        self._decode = decode
        self._slots: SlotMemory | None = None
        self._slot_address_bytes = 0  # that the limit of the address space was raised by for them

    def run(self) -> None:
        """Serves tasks until the edge closes its end."""
        limit_address_space(self._memory_bytes)
        self._send(messages.READY)
        buffer = MessageBuffer()
        fds: list[int] = []
        while True:
            while (message := buffer.take()) is None:
                try:
                    data, received, _, _ = socket.recv_fds(self._socket, _READ_BYTES, 1)
                except BlockingIOError:  # idle for _IDLE_SECONDS
                    release_freed_memory()
                    self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _FOR_EVER)
                    continue
                if not data:
                    return
                buffer.feed(data)
                fds += received
            if message.kind == messages.ATTACH:
                self._attach(message, fds.pop(0))
            elif message.kind == messages.DETACH:
                self._detach()
            else:
                self._serve(message)
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _IDLE)

    def _attach(self, message: Message, fd: int) -> None:
        """Maps the slots of the next task, in place of those of another model or image."""
        self._detach()
        layout = SlotLayout(*messages.unpack_attach(message.payload))
        self._slot_address_bytes = _change_address_space(layout.total_bytes)
        self._slots = SlotMemory(layout, fd)

    def _detach(self) -> None:
        """Unmaps the slots."""
        if self._slots is not None:
            self._slots.close()
            self._slots = None
            _change_address_space(-self._slot_address_bytes)

    def _serve(self, message: Message) -> None:
        try:
            if message.kind == messages.DECODE:
                self._decode_into_slot(DecodeTask.unpack(message.payload))
            elif message.kind == messages.DECODE_TILES:
                self._decode_into_slots(*messages.unpack_tiles(message.payload))
            else:
                self._call(message.payload)
        except DetectionError as error:
            self._send(messages.FAILED, f"{error.code}\n{error.detail}".encode())
        except CostsMore as error:
            self._send(messages.COSTS_MORE, messages.pack_cost(error.cost))
        except MemoryError:
            self._send(messages.OUT_OF_MEMORY)
        except Exception:
            self._send(messages.BUG, traceback.format_exc().encode())

    def _decode_into_slot(self, task: DecodeTask) -> None:
        def decode(source: _Source, slots: SlotMemory) -> tuple[Size, Size]:
            place = partial(slots.pixels, task.slot)
            mode: JpegDecoding = "scaled" if task.scales_jpegs else "exact"
            decoded = self._decode(*source, place, mode)
            height, width = decoded.pixels.shape[:2]
            return (height, width), decoded.original_size

        self._respond_decoded(task, decode)

    def _decode_into_slots(self, task: DecodeTask, tiles: Sequence[TileTask]) -> None:
        """Decodes regions of an image; they have one size, which is returned."""

        def decode(source: _Source, slots: SlotMemory) -> tuple[Size, Size]:
            original = decode_regions(
                *source,
                [tile[1:] for tile in tiles],
                lambda number, size: slots.pixels(tiles[number].slot, size),
            )
            first = tiles[0]
            sides = first.bottom - first.top, first.right - first.left
            return resized_size(*sides, task.shortest_side, task.longest_side), original

        self._respond_decoded(task, decode)

    def _respond_decoded(
        self, task: DecodeTask, decode: Callable[[_Source, SlotMemory], tuple[Size, Size]]
    ) -> None:
        """Decodes and sends DECODED; `decode` returns the size in slots and the original one."""
        started = time.monotonic()
        slots = self._slots
        assert slots is not None, "slots are attached before the first task"
        source = _Source(
            self._inbox.view(task.num_bytes),
            _Sides(task.shortest_side, task.longest_side),
            ImageLimits(task.max_bytes, task.max_pixels, task.max_jpeg_scans),
            task.granted,
        )
        size, original = decode(source, slots)
        if task.granted is None:
            release_freed_memory()
        done = messages.Decoded(*size, *original, started, time.monotonic())
        self._send(messages.DECODED, done.pack())

    def _call(self, payload: bytes) -> None:
        """Runs a function of ours with the file in the inbox; see `DecoderPool.call`."""
        num_bytes, num_pickled = messages.unpack_call(payload)
        content = self._inbox.view(num_bytes + num_pickled)
        function = pickle.loads(content[num_bytes:])
        data, media_type = function(bytes(content[:num_bytes]))
        release_freed_memory()
        self._send(messages.ENCODED, media_type.encode() + b"\n" + data)

    def _send(self, kind: int, payload: bytes = b"") -> None:
        self._socket.sendall(messages.encode(kind, payload))


def limit_address_space(memory_bytes: int) -> None:
    """Limits this process's address space to what it has now, `memory_bytes` and a reserve."""
    with contextlib.suppress(OSError, ValueError):  # no /proc: no limit
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[0])
        limit = pages * resource.getpagesize() + memory_bytes + _SPARE_BYTES
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        if hard == resource.RLIM_INFINITY or limit < hard:
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _change_address_space(num_bytes: int) -> int:
    """Raises the limit of the address space, if there is one; returns by how much."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    raised = soft + num_bytes
    if soft == resource.RLIM_INFINITY or not (hard == resource.RLIM_INFINITY or raised < hard):
        return 0
    resource.setrlimit(resource.RLIMIT_AS, (raised, hard))
    return num_bytes
