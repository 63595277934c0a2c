"""What the edge and an engine tell one another over the doorbell: a few small frozen records.

Pixels and detections never travel here; they lie in the slots. On the wire a message is four bytes
of length (little-endian) and a JSON object whose `kind` names the record.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from service.ipc.slots import SlotLayout

LENGTH = struct.Struct("<I")
MAX_MESSAGE_BYTES = 1 << 20

FailureKind = Literal["error", "out_of_memory"]


@dataclass(frozen=True)
class Start:
    """Edge -> engine, first: which device to open, and with what."""

    device_factory: str  # "module:function"; called with this message, it returns the Device
    model_path: str  # of the weights file; "" where the factory needs none
    device: str
    threads: int
    layout: SlotLayout
    log_level: str
    log_format: str
    weights_fd: int | None = None  # an open descriptor of that file, to be handed down
    # What the engine may be sent, and for how long it may warm up for that.
    max_batch_size: int = 1
    max_batch_pixels: int = 1
    warm_up_seconds: float | None = None  # None: by the device
    precision: str = "auto"
    max_cuda_graphs: int = 0
    device_options: dict[str, Any] = field(default_factory=dict)  # JSON values, for the factory


@dataclass(frozen=True)
class RunBatch:
    """Edge -> engine: run these images together; all lie in the bucket `padded`."""

    batch_id: int
    padded: tuple[int, int]
    slots: tuple[tuple[int, int], ...]  # (slot, generation) each


@dataclass(frozen=True)
class Stop:
    """Edge -> engine: end after what was sent before."""


@dataclass(frozen=True)
class Hello:
    """Engine -> edge, once: loaded, warm and waiting."""

    pid: int
    model_name: str
    model_version: str
    device: str  # the one that was taken
    implementations: dict[str, str] = field(default_factory=dict)  # which code does what
    load_seconds: float = 0.0
    warm_up_seconds: float = 0.0
    warm_up_shapes: int = 0  # batch shapes that were run
    warm_up_left_out: int = 0  # batch shapes whose first run is still to come


@dataclass(frozen=True)
class StartFailed:
    """Engine -> edge instead of Hello: starting again would fail again."""

    reason: str


@dataclass(frozen=True)
class BatchDone:
    """Engine -> edge: the answers lie in the slots. Times in milliseconds."""

    batch_id: int
    assemble_ms: float
    forward_ms: float
    postprocess_ms: float
    copy_ms: float = 0.0
    started: float = 0.0  # time.monotonic seconds, a clock that all processes here share


@dataclass(frozen=True)
class BatchFailed:
    """Engine -> edge: no answer for this batch; the engine itself is well."""

    batch_id: int
    reason: str
    failure: FailureKind = "error"


Message = Start | RunBatch | Stop | Hello | StartFailed | BatchDone | BatchFailed

_KINDS: dict[str, type[Any]] = {
    record.__name__: record
    for record in (Start, RunBatch, Stop, Hello, StartFailed, BatchDone, BatchFailed)
}


class BadMessage(ValueError):
    """Bytes on the doorbell that are no message of ours."""


def encode_message(message: Message) -> bytes:
    """A message with its length before it."""
    body = orjson.dumps({"kind": type(message).__name__, "body": message})
    return LENGTH.pack(len(body)) + body


def decode_message(body: bytes) -> Message:
    """The message in `body` (without the length).

    Raises:
        BadMessage: for anything that `encode_message` does not make.
    """
    try:
        envelope = orjson.loads(body)
        kind, values = envelope["kind"], envelope["body"]
        if kind == "Start":
            values["layout"] = SlotLayout(**values["layout"])
        elif kind == "RunBatch":
            values["padded"] = tuple(values["padded"])
            values["slots"] = tuple((slot, generation) for slot, generation in values["slots"])
        message: Message = _KINDS[kind](**values)
    except (ValueError, KeyError, TypeError) as error:
        raise BadMessage(f"not a message: {body[:80]!r}") from error
    return message


def check_length(prefix: bytes | bytearray) -> int:
    """The length that four bytes announce.

    Raises:
        BadMessage: where it is beyond any message of ours.
    """
    (length,) = LENGTH.unpack(prefix)
    if length > MAX_MESSAGE_BYTES:
        raise BadMessage(f"a message of {length} bytes was announced")
    return int(length)
