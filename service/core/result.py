"""Fills the result of one image; the last stage of the service and of the offline command."""

from __future__ import annotations

import time
from typing import NamedTuple, Protocol

from model.detections import Detections
from model.weights.info import ModelInfo
from service.core.selection import Selection
from service.types import DetectResult, StageTimings


class BatchTimes(Protocol):
    """Times of a batch in milliseconds, as an engine or a device measured them."""

    @property
    def assemble_ms(self) -> float:
        """Putting the images into one padded batch."""

    @property
    def copy_ms(self) -> float:
        """Copying the batch to the device."""

    @property
    def forward_ms(self) -> float:
        """Normalisation and the network."""

    @property
    def postprocess_ms(self) -> float:
        """Detections from the network's output."""


class ImageContext(NamedTuple):
    """What is known of an image in addition to its detections."""

    model: ModelInfo
    selection: Selection
    request_id: str
    original_size: tuple[int, int]  # (H, W) after EXIF rotation
    started: float  # monotonic seconds, once the whole body was received
    read_ms: float  # receiving the body, before `started`
    decode_ms: float


def make_result(image: ImageContext, detections: Detections, times: BatchTimes) -> DetectResult:
    """Applies the request's selection and fills the result.

    Args:
        image: where the detections come from.
        detections: everything that the network returned, best score first.
        times: of the image's batch.

    Returns:
        The selected detections. What remains of the time since `image.started` is the queue's.
    """
    select_started = time.monotonic()
    selected = image.selection.apply(detections)
    now = time.monotonic()
    postprocess_ms = times.postprocess_ms + (now - select_started) * 1000
    in_engine_ms = times.assemble_ms + times.copy_ms + times.forward_ms
    worked_ms = image.decode_ms + in_engine_ms + postprocess_ms
    queue_ms = max(0.0, (now - image.started) * 1000 - worked_ms)
    height, width = image.original_size
    return DetectResult(
        model_name=image.model.name,
        model_version=image.model.version,
        width=width,
        height=height,
        label_names=image.model.labels,
        detections=selected,
        timings=StageTimings(
            read=image.read_ms,
            decode=image.decode_ms,
            queue=queue_ms,
            assemble=times.assemble_ms,
            copy=times.copy_ms,
            forward=times.forward_ms,
            postprocess=postprocess_ms,
            total=image.read_ms + queue_ms + worked_ms,
        ),
        request_id=image.request_id,
        category_ids=image.model.category_ids,
    )
