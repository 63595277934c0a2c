"""Immutable types that all parts of the service share: options, results, timings."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

from model.detections import Detections
from model.explanation import Explanation

DEFAULT_OVERLAP = 0.2  # of tiles
_TIMING_DECIMALS = 3  # of a millisecond


class Priority(enum.IntEnum):
    """Which waiting images go first; neither level starves the other."""

    HIGH = 1
    NORMAL = 2


@dataclass(frozen=True)
class TileOptions:
    """Into which tiles an image is cut."""

    size: tuple[int, int] | None = None  # (width, height), pixels; None: auto
    overlap: float = DEFAULT_OVERLAP  # of neighbours, as a share of a tile


@dataclass(frozen=True)
class DetectOptions:
    """Which detections a request selects; None stands for the default of the model."""

    threshold: float | None = None  # 0..1; the lowest score to keep
    max_detections: int | None = None  # 1 .. ModelConfig.max_detections; keeps the best
    labels: tuple[str, ...] | None = None  # class names to keep, or several separated by commas
    explain: int | None = None  # the detection to explain, counted from 1; None: none
    tiles: TileOptions | None = None  # None: the image is not cut into tiles


@dataclass(frozen=True)
class EngineFacts:
    """How an engine computes."""

    device: str  # "cpu", "cuda:0"
    kernel: str  # the attention implementation
    precision: str  # of the network: "fp32", "fp16", "bf16", "int8"; empty if the device has none
    cuda_graphs: int  # number of recorded CUDA graphs; 0 on a CPU


class StageTimings(NamedTuple):
    """Milliseconds of each stage of one image; the stages add up to the total."""

    read: float  # receiving the body, measured by the adapter
    decode: float  # bytes -> resized pixels, in a decoder process
    queue: float  # waiting for a decoder, a batch and the engine
    assemble: float  # copying the slots' pixels into the padded batch
    copy: float  # the batch to the device; 0 if the device is the host
    forward: float  # normalisation and the network, for the whole batch
    postprocess: float  # top-k, boxes to pixels, selection by the options
    total: float

    def rounded(self) -> dict[str, float]:
        """Returns milliseconds by stage, rounded to microseconds, in the order of the stages."""
        stages = zip(self._fields, self, strict=True)
        return {stage: round(float(duration), _TIMING_DECIMALS) for stage, duration in stages}


@dataclass(frozen=True)
class DetectResult:
    """The result of one image.

    Attributes:
        model_name: of the model.
        model_version: of its weights (12 hex digits).
        width: of the image after EXIF rotation, pixels.
        height: likewise.
        label_names: the model's class names; `label_names[detections.labels[i]]` names row i.
        detections: selected by threshold, labels and max_detections; best score first.
        timings: of each stage.
        request_id: of the image: in a request of several images each has its own.
        category_ids: COCO category id of each class; None if the model file has none.
        explanation: of the detection that the request names; None if it names none.
    """

    model_name: str
    model_version: str
    width: int
    height: int
    label_names: tuple[str, ...]
    detections: Detections
    timings: StageTimings
    request_id: str
    category_ids: tuple[int, ...] | None = None
    explanation: Explanation | None = None
