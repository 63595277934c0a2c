"""The scope of a request: its ids, and what logs and traces record about it.

    adapter opens (RequestLog.track) -> Detector records images -> Metrics counts -> RequestLog ends

`current_scope` returns the scope of the running request. It is a context variable, so that layers
below the adapters need no parameter for it.
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
    """Start and end of a stage, time.monotonic seconds."""

    stage: str
    started: float
    ended: float


@dataclass(frozen=True, slots=True)
class ImageTimes:
    """Times of one image; time.monotonic seconds, the same clock in edge and engine."""

    accepted: float
    decode: tuple[float, float]  # start, end
    engine_started: float  # start of the image's batch
    engine_ms: Mapping[str, float]  # durations of its stages, in order and without gaps
    select: tuple[float, float]  # start, end of the selection by the request's options, in the edge

    def intervals(self) -> list[StageInterval]:
        """The stages in order; the gaps between them are `queue`."""
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
        return [interval for interval in intervals if interval.ended > interval.started]


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One completed image.

    Attributes:
        request_id: of the image; unique if a request has several.
        num_bytes: size of its file.
        size: (width, height) after EXIF rotation.
        timings: milliseconds by stage, for the log.
        times: start and end of its stages, for traces.
    """

    request_id: str
    num_bytes: int
    size: tuple[int, int]
    timings: StageTimings
    times: ImageTimes


class ScopeListener(Protocol):
    """Receives events during a request (implemented by its span)."""

    def image_done(self, image: ImageRecord) -> None:
        """An image is complete."""

    def stage_done(self, interval: StageInterval) -> None:
        """A stage of the adapter has ended."""


@dataclass(slots=True)
class RequestScope:
    """The current request; `RequestLog` opens and closes its scope.

    Attributes:
        transport: "http" or "grpc", for all protocols.
        method: the HTTP method, or the full name of the gRPC method.
        path: as sent by the HTTP client; empty over gRPC.
        request_id: for logs and the response.
        trace: trace context of its span.
        detailed: whether its images are recorded, for the access log or a trace.
        started: time.monotonic seconds.
        protocol: label of metrics: "http", "grpc", "oip_http", "oip_grpc"; empty if not counted.
        outcome: label of metrics; empty if not counted.
        route: pattern of the HTTP route; empty if none matched.
        status: HTTP status number or gRPC status name; None if the client disconnected.
        client: address of the client, for the access log.
        user_agent: of the client, likewise.
        key_name: name of the API key; empty if none was needed or it was refused.
        failure: code and detail of the first error; None if there was none.
        images: number of completed images.
        failed_images: number of images that ended with an error.
        num_bytes: total size of their files.
        last_image: for the access log line of a request with one image.
        encode_seconds: time that the adapter spent encoding.
        listener: receives each event at once, so that a long stream needs no buffer.
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
    client: str = ""
    user_agent: str = ""
    key_name: str = ""
    failure: tuple[str, str] | None = None
    images: int = 0
    failed_images: int = 0
    num_bytes: int = 0
    last_image: ImageRecord | None = None
    encode_seconds: float = 0.0
    listener: ScopeListener | None = None

    def record_image(self, image: ImageRecord) -> None:
        """Records a completed image."""
        self.images += 1
        self.num_bytes += image.num_bytes
        self.last_image = image
        if self.listener is not None:
            self.listener.image_done(image)

    def record_failure(self, code: str, detail: str) -> None:
        """Records an error of the request or of one of its images; the first one is kept."""
        if self.failure is None:
            self.failure = code, detail

    def record_stage(self, interval: StageInterval) -> None:
        """Records a stage of the adapter: "read" or "encode"."""
        if interval.stage == "encode":
            self.encode_seconds += interval.ended - interval.started
        if self.listener is not None:
            self.listener.stage_done(interval)


SCOPE: ContextVar[RequestScope | None] = ContextVar("request_scope", default=None)


def current_scope() -> RequestScope | None:
    """Returns the scope of the request that the current task belongs to, if any."""
    return SCOPE.get()


def record_failure(code: str, detail: str) -> None:
    """Records an error of the current request, if there is one."""
    scope = SCOPE.get()
    if scope is not None:
        scope.record_failure(code, detail)


def record_failed_image(code: str, detail: str) -> None:
    """Records an error of one image of the current request, if there is one."""
    scope = SCOPE.get()
    if scope is not None:
        scope.failed_images += 1
        scope.record_failure(code, detail)


def forget_completed_image() -> None:
    """The image that the current request completed last has no response: drawing it failed."""
    scope = SCOPE.get()
    if scope is not None and scope.last_image is not None:
        scope.images -= 1
        scope.num_bytes -= scope.last_image.num_bytes
        scope.last_image = None
