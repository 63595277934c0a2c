"""What the pool keeps of one image file, and what comes back for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import structlog

from model.images.errors import DetectionError, ImageTooLarge, InvalidImage, UnsupportedImage
from service.decoding import messages
from service.decoding.messages import Message
from service.ipc.slot_pool import SlotLease
from service.ipc.slots import SlotImage
from service.types import Priority

_ERRORS: dict[str, type[DetectionError]] = {
    each.code: each for each in (InvalidImage, UnsupportedImage, ImageTooLarge)
}


class Tile(NamedTuple):
    """A region of an image and the slot for it; pixels after EXIF rotation."""

    lease: SlotLease
    region: tuple[int, int, int, int]  # left, top, right, bottom


class TilesInSlots(NamedTuple):
    """Tiles of one image in their slots; times are monotonic seconds."""

    images: tuple[SlotImage, ...]  # in the order of the tiles
    started: float  # of their decoding
    ended: float


class ImageInSlot(NamedTuple):
    """A decoded image in its slot; times are monotonic seconds."""

    image: SlotImage
    started: float  # of its decoding
    ended: float

    @property
    def decode_ms(self) -> float:
        """How long decoding took."""
        return (self.ended - self.started) * 1000


class Turn(NamedTuple):
    """The place of an image in the queues in front of the decoders."""

    priority: Priority = Priority.NORMAL
    urgency: float = 0.0  # see `service.batching.queues.urgency_of`; the smallest is first


FIRST_COME = Turn()


class DecoderBug(RuntimeError):
    """An exception in a decoder process that no image should cause; its text is the traceback."""


@dataclass(eq=False)
class Task:
    """One file for a worker."""

    content: tuple[bytes | memoryview, ...]  # what is put in the inbox
    kind: int
    payload: bytes
    done: asyncio.Future[Message]
    leases: tuple[SlotLease, ...] = ()  # of the slots that pixels are written to
    turn: Turn = FIRST_COME
    is_long: bool = False
    started: float = 0.0  # when a worker got it, by the event loop's clock
    crashes: int = 0
    abandoned: bool = False
    log_context: dict[str, Any] = field(default_factory=structlog.contextvars.get_contextvars)
    release: list[Callable[[], None]] = field(default_factory=list)  # when no worker has it

    def finish(self) -> None:
        """The workers are done with the task."""
        for callback in self.release:
            callback()
        self.release.clear()


def payload_of(message: Message, expected: int) -> bytes:
    """The payload of a success.

    Raises:
        DetectionError, DecoderBug: what the message reports instead.
    """
    if message.kind == expected:
        return message.payload
    if message.kind == messages.FAILED:
        code, _, detail = message.payload.decode().partition("\n")
        raise _ERRORS[code](detail)
    if message.kind == messages.OUT_OF_MEMORY:
        raise ImageTooLarge("decoding the image takes more memory than decode_memory_bytes")
    raise DecoderBug(message.payload.decode(errors="replace"))
