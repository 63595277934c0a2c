"""The messages between the edge and an engine: small frozen dataclasses.

Pixels and detections are in the slots. On the wire a message is four bytes of length
(little-endian) and a JSON object whose `kind` is the name of the class.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import orjson

from service.ipc.slots import SlotLayout

LENGTH = struct.Struct("<I")
MAX_MESSAGE_BYTES = 1 << 20

EXIT_DEVICE_LOST = 70  # exit status of an engine whose device only a new process can use

FailureKind = Literal["error", "out_of_memory"]


@dataclass(frozen=True)
class Start:
    """Edge -> engine, first message: which device to open, and its options."""

    device_factory: str  # "module:function"; called with this message, it returns the Device
    model_path: str  # of the weights file; "" if the factory needs none
    device: str
    threads: int
    layout: SlotLayout
    log_level: str
    log_format: str
    weights_fd: int | None = None  # open descriptor of that file, which the engine inherits
    # The largest batches, and how long the engine may warm up for them.
    max_batch_size: int = 1
    max_batch_pixels: int = 1
    warm_up_seconds: float | None = None  # None: depends on the device
    precision: str = "auto"
    max_cuda_graphs: int = 0
    device_options: dict[str, Any] = field(default_factory=dict)  # JSON values, for the factory


@dataclass(frozen=True)
class ExplainRequest:
    """Which detection of an image is explained; the options are those of a `Selection`."""

    number: int  # of the selected detections, counted from 1
    threshold: float
    max_detections: int
    class_ids: tuple[int, ...] | None


@dataclass(frozen=True)
class RunBatch:
    """Edge -> engine: run these images as one batch; all are in the shape bucket `padded`."""

    batch_id: int
    padded: tuple[int, int]
    slots: tuple[tuple[int, int], ...]  # (slot, generation) each
    explain: dict[str, ExplainRequest] | None = None  # by slot; None: no image is explained


@dataclass(frozen=True)
class Stop:
    """Edge -> engine: exit after the batches that were sent before."""


@dataclass(frozen=True)
class Hello:
    """Engine -> edge, once: the model is loaded and warm."""

    pid: int
    model_name: str
    model_version: str
    device: str  # such as "cuda:0"
    implementations: dict[str, str] = field(
        default_factory=dict
    )  # implementation by part, such as "kernel"
    load_seconds: float = 0.0
    warm_up_seconds: float = 0.0
    warm_up_shapes: int = 0  # number of batch shapes that were run
    warm_up_left_out: int = 0  # number of batch shapes that were not


@dataclass(frozen=True)
class StartFailed:
    """Engine -> edge instead of Hello: the engine cannot start; a retry would fail too."""

    reason: str


@dataclass(frozen=True)
class RecordingLost:
    """Engine -> edge instead of Hello: recording a CUDA graph lost the device; the engine exits."""

    reason: str
    padded: tuple[int, int]  # shape bucket of the batch that was recorded
    images: int  # of that batch
    recorded: int  # number of graphs that were recorded before


@dataclass(frozen=True)
class BatchDone:
    """Engine -> edge: the results are in the slots. Times in milliseconds."""

    batch_id: int
    assemble_ms: float
    forward_ms: float
    postprocess_ms: float
    copy_ms: float = 0.0
    started: float = 0.0  # time.monotonic seconds, the same clock in all processes
    explanations: dict[str, Any] | None = None  # by slot, `Explanation.to_dict`
    explain_ms: float = 0.0  # for all explanations; in no other time


@dataclass(frozen=True)
class BatchFailed:
    """Engine -> edge: the batch failed; the engine itself still works."""

    batch_id: int
    reason: str
    failure: FailureKind = "error"


Message = Start | RunBatch | Stop | Hello | StartFailed | RecordingLost | BatchDone | BatchFailed

_KINDS: dict[str, type[Any]] = {record.__name__: record for record in get_args(Message)}


class BadMessage(ValueError):
    """Received bytes are not a message."""


def encode_message(message: Message) -> bytes:
    """Encodes a message, with its length in front."""
    body = orjson.dumps({"kind": type(message).__name__, "body": message})
    return LENGTH.pack(len(body)) + body


def decode_message(body: bytes) -> Message:
    """Decodes `body`, a message without its length.

    Raises:
        BadMessage: for anything that `encode_message` does not produce.
    """
    try:
        envelope = orjson.loads(body)
        kind, values = envelope["kind"], envelope["body"]
        if kind == "Start":
            values["layout"] = SlotLayout(**values["layout"])
        elif kind == "RunBatch":
            values["padded"] = tuple(values["padded"])
            values["slots"] = tuple((slot, generation) for slot, generation in values["slots"])
            if values.get("explain"):
                values["explain"] = {k: _explain_request(v) for k, v in values["explain"].items()}
        elif kind == "RecordingLost":
            values["padded"] = tuple(values["padded"])
        message: Message = _KINDS[kind](**values)
    except (ValueError, KeyError, TypeError) as error:
        raise BadMessage(f"not a message: {body[:80]!r}") from error
    return message


def _explain_request(values: dict[str, Any]) -> ExplainRequest:
    ids = values["class_ids"]
    return ExplainRequest(**(values | {"class_ids": None if ids is None else tuple(ids)}))


def check_length(prefix: bytes | bytearray) -> int:
    """Decodes the length of a message from four bytes.

    Raises:
        BadMessage: if it is larger than `MAX_MESSAGE_BYTES`.
    """
    (length,) = LENGTH.unpack(prefix)
    if length > MAX_MESSAGE_BYTES:
        raise BadMessage(f"a message of {length} bytes was announced")
    return int(length)
