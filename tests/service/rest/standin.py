"""A detector without an engine: it decodes images, and returns the same detections for each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from model.config import VARIANTS
from model.detections import Detections
from model.images.decode import ImageLimits, decode_image
from model.labels import CODE_LABELS
from model.weights.info import ModelInfo
from service.core.detector import Detector
from service.core.formats import Encoded, EncodeInput, OutputFormat
from service.core.formats.output_format import encode_with_image
from service.core.selection import resolve_options
from service.observability.metrics import Metrics
from service.types import DetectOptions, DetectResult, EngineFacts, Priority, StageTimings

CONFIG = VARIANTS["lite-dino-efficientnet-lite0"]
MODEL = ModelInfo(
    name="stand-in",
    version="0123456789ab",
    config=CONFIG,
    labels=CODE_LABELS,
    score_threshold=0.5,
    description="The same detections in every image.",
)
# Class id, score and box in parts of the image.
FOUND = (
    (0, 0.91234567, (0.1, 0.1, 0.4, 0.5)),
    (4, 0.75, (0.5, 0.2, 0.9, 0.3)),
    (2, 0.25, (0.6, 0.6, 0.7, 0.7)),
)


@dataclass
class StandInServed:
    """The part of a served model that lists its engines."""

    engine_facts: tuple[EngineFacts, ...] = (
        EngineFacts("cuda:0", "cuda", "fp16", 432),
        EngineFacts("cuda:1", "reference", "fp16", 0),
    )


@dataclass
class StandIn:
    """The part of a Detector that the adapters use."""

    limits: ImageLimits = field(default_factory=lambda: ImageLimits(1 << 20, 4_000_000))
    model: ModelInfo = MODEL
    live: bool = True
    ready: bool = True
    loaded: bool = True
    not_ready_reason: str = "the model is loading"
    kernel: str = "reference"
    served: StandInServed = field(default_factory=StandInServed)
    metrics: Metrics = field(default_factory=Metrics)
    error: Exception | None = None  # raised instead of a result
    hold: asyncio.Event | None = None  # awaited before a result
    started: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: bool = False
    deadlines: list[float | None] = field(default_factory=list)
    priorities: list[Priority] = field(default_factory=list)
    models: list[object] = field(default_factory=list)  # that images were given

    async def detect(  # noqa: PLR0913 - as the Detector's own
        self,
        data: bytes,
        options: DetectOptions,
        *,
        request_id: str,
        deadline: float | None = None,
        priority: Priority = Priority.NORMAL,
        read_ms: float = 0.0,
        drawn: bool = False,
        served: object = None,
    ) -> DetectResult:
        self.started.set()
        self.deadlines.append(deadline)
        self.priorities.append(priority)
        self.models.append(served)
        if self.hold is not None:
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.cancelled = True
                raise
        if self.error is not None:
            raise self.error
        decoded = decode_image(data, self.model.config, self.limits)
        height, width = decoded.original_size
        return DetectResult(
            model_name=self.model.name,
            model_version=self.model.version,
            width=width,
            height=height,
            label_names=self.model.labels,
            detections=_select(width, height, options, self.model),
            timings=StageTimings(read_ms, 1.0, 0.5, 0.25, 0.0, 20.0, 0.125, read_ms + 21.875),
            request_id=request_id,
        )

    async def encode_with_image(  # noqa: PLR0913, PLR0917 - as the Detector's own
        self,
        output_format: OutputFormat,
        job: EncodeInput,
        image: bytes,
        deadline: float | None = None,
        priority: Priority = Priority.NORMAL,
        accept: Callable[[Encoded], object] | None = None,
    ) -> Encoded:
        encoded = Encoded(*encode_with_image(image, output_format.encode, job))
        if accept is not None:
            accept(encoded)
        return encoded

    @contextmanager
    def one_model(self) -> Iterator[StandInServed]:
        yield self.served

    def as_detector(self) -> Detector:
        return cast(Detector, self)


def _select(width: int, height: int, options: DetectOptions, model: ModelInfo) -> Detections:
    wanted = resolve_options(options, model)
    rows = [
        row
        for row in FOUND
        if row[1] >= wanted.threshold and (wanted.class_ids is None or row[0] in wanted.class_ids)
    ][: wanted.max_detections]
    scale = np.array([width, height, width, height], dtype=np.float32)
    return Detections(
        scores=np.array([row[1] for row in rows], dtype=np.float32),
        labels=np.array([row[0] for row in rows], dtype=np.int64),
        boxes_xyxy=np.array([row[2] for row in rows], dtype=np.float32).reshape(-1, 4) * scale,
    )
