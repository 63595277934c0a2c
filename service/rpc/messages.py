"""Protobuf messages <-> options and results.

Scores, boxes and timings are rounded by `service.core.encoding` and sent as doubles, so that they
are the same numbers as in the JSON of HTTP.
"""

from __future__ import annotations

import numpy as np

from model.images.formats import supported_formats
from service.core.detector import Detector
from service.core.encoding import label_name, rounded_columns
from service.core.model_facts import model_facts
from service.core.tiling.options import parse_tile
from service.rpc.options import RpcOptions
from service.rpc.pb import detection_pb2 as pb
from service.transport.grpc_status import Refusal
from service.types import DetectOptions, DetectResult


def read_options(request: pb.DetectRequest) -> DetectOptions:
    """The options of a request; unset ones are None, which stands for the model's default.

    Raises:
        InvalidOptions: for invalid tiles.
    """
    options = request.options
    tile = options.tile if options.HasField("tile") else None
    # The decimal number that the client wrote, of those that are the same 32-bit float.
    overlap = float(str(np.float32(options.overlap))) if options.HasField("overlap") else None
    return DetectOptions(
        threshold=options.threshold if options.HasField("threshold") else None,
        max_detections=options.max_detections if options.HasField("max_detections") else None,
        labels=tuple(dict.fromkeys(options.labels)) or None,
        tiles=parse_tile(tile, overlap),
    )


def result_message(result: DetectResult) -> pb.DetectResponse:
    """The response for one image."""
    columns = zip(*rounded_columns(result.detections), strict=True)
    return pb.DetectResponse(
        model=pb.ModelName(name=result.model_name, version=result.model_version),
        image=pb.ImageSize(width=result.width, height=result.height),
        detections=[
            pb.Detection(
                label=label_name(result.label_names, class_id),
                class_id=class_id,
                score=score,
                box=pb.Box(xmin=box[0], ymin=box[1], xmax=box[2], ymax=box[3]),
            )
            for score, class_id, box in columns
        ],
        timings_ms=pb.Timings(**result.timings.rounded()),
        request_id=result.request_id,
    )


def error_message(refusal: Refusal, request_id: str) -> pb.DetectError:
    """Why one image of several has no result."""
    number: int = refusal.status.value[0]
    return pb.DetectError(
        code=refusal.code,
        detail=refusal.detail,
        status=number,
        retry_delay_ms=refusal.retry_delay_ms,
        request_id=request_id,
    )


def model_message(detector: Detector, options: RpcOptions) -> pb.GetModelResponse:
    """The served model, as in GET /v1/models."""
    return pb.GetModelResponse(
        **model_facts(detector),
        limits=pb.Limits(
            max_message_bytes=options.max_message_bytes,
            max_image_pixels=options.max_image_pixels,
            max_images=options.max_images,
            max_detections=detector.model.config.max_detections,
            formats=supported_formats(),
            max_tiles=options.max_tiles,
        ),
    )
