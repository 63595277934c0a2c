"""What the Detector knows of one image on its way, and the answer that is made of it in the end."""

from __future__ import annotations

import time
from typing import NamedTuple

from service.batching.batcher import EngineResult
from service.core.selection import Selection
from service.core.served_model import ServedModel
from service.ipc.slots import SlotImage
from service.observability.request_scope import ImageRecord, ImageTimes, RequestScope, current_scope
from service.types import DetectResult, Priority, StageTimings


class ImageRequest(NamedTuple):
    """One image with what is asked of it; times are monotonic seconds."""

    served: ServedModel
    data: bytes
    selection: Selection
    request_id: str
    started: float
    deadline: float
    priority: Priority
    read_ms: float


class ImageInSlot(NamedTuple):
    """An image that was decoded and lies in its slot; times are monotonic seconds."""

    image: SlotImage
    started: float  # when its decoding began
    ended: float

    @property
    def decode_ms(self) -> float:
        """What decoding took."""
        return (self.ended - self.started) * 1000


def make_result(request: ImageRequest, decoded: ImageInSlot, answer: EngineResult) -> DetectResult:
    """Selects what was asked for, accounts for the time since, and tells the request's scope."""
    select_started = time.monotonic()
    kept = request.selection.apply(answer.detections)
    now = time.monotonic()
    postprocess_ms = answer.postprocess_ms + (now - select_started) * 1000
    in_engine = answer.assemble_ms + answer.copy_ms + answer.forward_ms
    worked = decoded.decode_ms + in_engine + postprocess_ms
    queue_ms = max(0.0, (now - request.started) * 1000 - worked)
    height, width = decoded.image.original_size
    model = request.served.info
    result = DetectResult(
        model_name=model.name,
        model_version=model.version,
        width=width,
        height=height,
        label_names=model.labels,
        detections=kept,
        timings=StageTimings(
            read=request.read_ms,
            decode=decoded.decode_ms,
            queue=queue_ms,
            assemble=answer.assemble_ms,
            copy=answer.copy_ms,
            forward=answer.forward_ms,
            postprocess=postprocess_ms,
            total=request.read_ms + queue_ms + worked,
        ),
        request_id=request.request_id,
    )
    scope = current_scope()
    if scope is not None and scope.detailed:
        _note(scope, request, decoded, answer, result, (select_started, now))
    return result


def _note(  # noqa: PLR0913, PLR0917 - all that is known of the image
    scope: RequestScope,
    request: ImageRequest,
    decoded: ImageInSlot,
    answer: EngineResult,
    result: DetectResult,
    select: tuple[float, float],
) -> None:
    times = ImageTimes(
        accepted=request.started,
        decode=(decoded.started, decoded.ended),
        engine_started=answer.started,
        engine_ms={
            "assemble": answer.assemble_ms,
            "copy": answer.copy_ms,
            "forward": answer.forward_ms,
            "postprocess": answer.postprocess_ms,
        },
        select=select,
    )
    num_bytes, size = len(request.data), (result.width, result.height)
    scope.record_image(ImageRecord(request.request_id, num_bytes, size, result.timings, times))
