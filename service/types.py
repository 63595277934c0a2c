"""What crosses rooms on the way of a request: options in, result out, none to be changed."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

from model.detections import Detections

_TIMING_DECIMALS = 3  # of a millisecond


class Priority(enum.IntEnum):
    """Who goes first where images wait; neither level starves the other."""

    HIGH = 1
    NORMAL = 2


@dataclass(frozen=True)
class DetectOptions:
    """What a request asks of its detections; None stands for the model's own default."""

    threshold: float | None = None  # 0..1; the lowest score that is kept
    max_detections: int | None = None  # 1 .. ModelConfig.max_detections; the best ones are kept
    labels: tuple[str, ...] | None = None  # class names; detections of others are dropped


@dataclass(frozen=True)
class EngineFacts:
    """What an engine computes with."""

    device: str  # the one that was taken: "cpu", "cuda:0"
    kernel: str  # which attention implementation
    precision: str  # numbers of the network: "fp32", "fp16", "bf16"; empty if the device has none
    cuda_graphs: int  # batch shapes that were recorded as CUDA graphs; 0 on a CPU


class StageTimings(NamedTuple):
    """Where the time of one request went, in milliseconds; the stages add up to the total."""

    read: float  # receiving the body, measured by the adapter
    decode: float  # bytes -> resized pixels, in a worker thread
    queue: float  # waiting of every kind: for a worker thread, a batch, the engine
    assemble: float  # pixels of the slots -> the padded batch, in the engine
    copy: float  # the batch from the host to the device; 0 where they are one
    forward: float  # normalisation and the network, for the whole batch
    postprocess: float  # top-k, boxes to pixels, selection by the options
    total: float

    def rounded(self) -> dict[str, float]:
        """Milliseconds by stage, rounded to microseconds, in the order of the stages."""
        stages = zip(self._fields, self, strict=True)
        return {stage: round(float(duration), _TIMING_DECIMALS) for stage, duration in stages}


@dataclass(frozen=True)
class DetectResult:
    """The answer for one image.

    Attributes:
        model_name: of the model that answered.
        model_version: of its weights (12 hex digits).
        width: of the picture as a person sees it (EXIF orientation applied), pixels.
        height: of the same.
        label_names: the model's class names; `label_names[detections.labels[i]]` names row i.
        detections: what is left after threshold, labels and max_detections; best score first.
        timings: where the time went.
        request_id: of the request that this answers.
    """

    model_name: str
    model_version: str
    width: int
    height: int
    label_names: tuple[str, ...]
    detections: Detections
    timings: StageTimings
    request_id: str
