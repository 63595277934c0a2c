"""One request while it is under way: its names, and what is noted of it for logs and traces.

    adapter opens (RequestLog.track) -> Detector notes images -> Metrics counts -> RequestLog closes

The scope of the running request is found by `current_scope`: it follows asyncio's tasks, so a room
below the adapters need not be handed it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

from service.observability.trace_context import TraceContext
from service.types import StageTimings


@dataclass(frozen=True, slots=True)
class StageInterval:
    """When a stage ran, time.monotonic seconds."""

    stage: str
    started: float
    ended: float


@dataclass(frozen=True, slots=True)
class ImageTimes:
    """When one image went where; time.monotonic seconds, which edge and engine share."""

    accepted: float
    decode: tuple[float, float]  # from, to
    engine_started: float  # with the image's batch
    engine_ms: Mapping[str, float]  # its stages in order; they follow one another without a gap
    select: tuple[float, float]  # by the request's options, in the edge

    def intervals(self) -> list[StageInterval]:
        """The stages in order; whatever lies between them is waiting: `queue`."""
        steps = [StageInterval("decode", *self.decode)]
        started = self.engine_started
        for stage, duration_ms in self.engine_ms.items():
            ended = started + duration_ms / 1000
            steps.append(StageInterval(stage, started, ended))
            started = ended
        steps.append(StageInterval("postprocess", *self.select))
        intervals, now = [], self.accepted
        for step in steps:
            intervals += [StageInterval("queue", now, step.started), step]
            now = step.ended
        return [mark for mark in intervals if mark.ended > mark.started]


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image that was answered.

    Attributes:
        request_id: its own, where a request holds several.
        num_bytes: of its file.
        size: (width, height) as a person sees it.
        timings: milliseconds, for the log.
        times: when its stages ran, for traces.
    """

    request_id: str
    num_bytes: int
    size: tuple[int, int]
    timings: StageTimings
    times: ImageTimes


class ScopeListener(Protocol):
    """Who is told while a request is under way: its span."""

    def image_done(self, image: ImageRecord) -> None:
        """One image has its answer."""

    def stage_done(self, mark: StageInterval) -> None:
        """The adapter ended a stage."""


@dataclass(slots=True)
class RequestScope:
    """What is known of the request that is being answered; `RequestLog` opens and closes it.

    Attributes:
        transport: "http" or "grpc", whatever is spoken over it.
        method: HTTP's verb, or the full name of the gRPC method.
        path: as the HTTP client wrote it; empty over gRPC.
        request_id: for logs and the answer.
        trace: where its span stands.
        detailed: whether anybody wants to know about its images.
        started: time.monotonic seconds.
        protocol: in metrics: "http", "grpc", "oip"; empty for what is not counted.
        outcome: in metrics; empty for what is not counted.
        route: the HTTP route's pattern; empty where none matched.
        status: HTTP's number or gRPC's name; None where the client was gone.
        images: answered so far.
        num_bytes: of their files together.
        last_image: for the log line of a request that holds just one.
        encode_seconds: spent by the adapter on its answers.
        listener: hears of everything at once, so that a long stream piles nothing up.
    """

    transport: str
    method: str
    request_id: str
    trace: TraceContext
    detailed: bool = False
    started: float = field(default_factory=time.monotonic)
    path: str = ""
    protocol: str = ""
    outcome: str = ""
    route: str = ""
    status: int | str | None = None
    images: int = 0
    num_bytes: int = 0
    last_image: ImageRecord | None = None
    encode_seconds: float = 0.0
    listener: ScopeListener | None = None

    def record_image(self, image: ImageRecord) -> None:
        """Takes down one answered image."""
        self.images += 1
        self.num_bytes += image.num_bytes
        self.last_image = image
        if self.listener is not None:
            self.listener.image_done(image)

    def record_stage(self, mark: StageInterval) -> None:
        """Takes down a stage of the adapter's own: reading, encoding."""
        if mark.stage == "encode":
            self.encode_seconds += mark.ended - mark.started
        if self.listener is not None:
            self.listener.stage_done(mark)


SCOPE: ContextVar[RequestScope | None] = ContextVar("request_scope", default=None)


def current_scope() -> RequestScope | None:
    """The request that this task works for, if any."""
    return SCOPE.get()
