"""One image in flight: what is known of it, and what is recorded of it at the end."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import NamedTuple

from service.batching.batcher import EngineResult
from service.batching.queues import Job, urgency_of
from service.core.result import ImageContext, make_result
from service.core.selection import Selection
from service.core.served_model import ServedModel
from service.decoding.tasks import ImageInSlot, Turn
from service.errors import InvalidOptions
from service.ipc.messages import ExplainRequest
from service.ipc.slot_pool import SlotLease
from service.ipc.slots import SlotImage
from service.observability.request_scope import ImageRecord, ImageTimes, RequestScope, current_scope
from service.types import DetectResult, Priority, TileOptions


class ImageRequest(NamedTuple):
    """One encoded image with its options; times are monotonic seconds."""

    served: ServedModel
    data: bytes
    selection: Selection
    request_id: str
    started: float
    deadline: float
    priority: Priority
    read_ms: float
    explain: int | None = None  # the detection to explain, counted from 1
    tiles: TileOptions | None = None


def explain_request(request: ImageRequest) -> ExplainRequest | None:
    """What the engine explains; None for ordinary requests."""
    if request.explain is None:
        return None
    selection = request.selection
    ids = None if selection.class_ids is None else tuple(sorted(selection.class_ids))
    return ExplainRequest(request.explain, selection.threshold, selection.max_detections, ids)


def turn_of(priority: Priority, arrived_at: float, deadline: float) -> Turn:
    """The place of an image in the queue of the decoders; times are monotonic seconds."""
    return Turn(priority, urgency_of(priority, arrived_at, deadline))


def job_of(request: ImageRequest, lease: SlotLease, image: SlotImage, now: float) -> Job:
    """The job for an image of a request that is in its slot since `now`, monotonic seconds."""
    height, width = image.size
    return Job(
        lease=lease,
        bucket=image.padded,
        enqueued_at=now,
        deadline=request.deadline,
        image_pixels=height * width,
        priority=request.priority,
        explain=explain_request(request),
    )


def finish_request(
    request: ImageRequest, decoded: ImageInSlot, found: EngineResult, decode_ms: float
) -> DetectResult:
    """Makes the result of a request and adds it to the current `RequestScope`, if there is one.

    Args:
        request: of the image.
        decoded: the whole image.
        found: its detections.
        decode_ms: of all decodings.

    Raises:
        InvalidOptions: if the detection to explain does not exist.
    """
    image = ImageContext(
        model=request.served.info,
        selection=request.selection,
        request_id=request.request_id,
        original_size=decoded.image.original_size,
        started=request.started,
        read_ms=request.read_ms,
        decode_ms=decode_ms,
    )
    select_started = time.monotonic()
    result = make_result(image, found.detections, found)
    if found.explanation is not None:
        result = replace(result, explanation=found.explanation)
    elif request.explain is not None:
        num_found = len(result.detections)
        raise InvalidOptions(f"there is no detection {request.explain}; there are {num_found}")
    scope = current_scope()
    if scope is not None and scope.detailed:
        select = (select_started, time.monotonic())
        _record(scope, request, decoded, found, result, select)
    return result


def _record(  # noqa: PLR0913, PLR0917 - everything that is known of the image
    scope: RequestScope,
    request: ImageRequest,
    decoded: ImageInSlot,
    found: EngineResult,
    result: DetectResult,
    select: tuple[float, float],
) -> None:
    times = ImageTimes(
        accepted=request.started,
        decode=(decoded.started, decoded.ended),
        engine_started=found.started,
        engine_ms={
            "assemble": found.assemble_ms,
            "copy": found.copy_ms,
            "forward": found.forward_ms,
            "postprocess": found.postprocess_ms,
        },
        select=select,
    )
    num_bytes, size = len(request.data), (result.width, result.height)
    scope.record_image(ImageRecord(request.request_id, num_bytes, size, result.timings, times))
