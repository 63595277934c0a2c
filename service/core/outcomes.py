"""What became of each image: its metrics, statistics and log line."""

from __future__ import annotations

import asyncio
import time

import structlog

from service.errors import (
    DeadlineExceeded,
    DetectionError,
    InferenceFailed,
    NotReady,
    Overloaded,
    ShuttingDown,
)
from service.observability.metrics import Metrics
from service.observability.request_scope import record_failed_image
from service.types import StageTimings

_log = structlog.get_logger(__name__)


class Outcomes:
    """Records the outcomes of images."""

    def __init__(self, metrics: Metrics) -> None:
        """Counts in these metrics."""
        self._metrics = metrics

    def record_success(self, timings: StageTimings) -> None:
        """Counts an image that got its detections."""
        self._metrics.images.labels("ok").inc()
        self._metrics.statistics.record_success(timings)
        self._metrics.observe_timings(timings)

    def record_failure(self, error: BaseException, request_id: str, started: float) -> None:
        """Counts an image that got none, and logs it if the service is at fault.

        Args:
            error: of any kind; CancelledError counts as a client that has gone.
            request_id: for the log.
            started: when the request arrived, monotonic seconds.
        """
        if isinstance(error, DetectionError):
            self._count_failure(error.code, started)
            self._log_failure(error, request_id)
            record_failed_image(error.code, error.detail)
        elif isinstance(error, asyncio.CancelledError):
            self._metrics.cancelled.inc()
            self._count_failure("cancelled", started)
        else:
            self._count_failure("internal", started)

    def _count_failure(self, outcome: str, started: float) -> None:
        self._metrics.images.labels(outcome).inc()
        self._metrics.statistics.record_failure(time.monotonic() - started)

    def _log_failure(self, error: DetectionError, request_id: str) -> None:
        if isinstance(error, Overloaded | NotReady | ShuttingDown):
            self._metrics.refused.labels(error.code).inc()
        elif isinstance(error, DeadlineExceeded):
            self._metrics.expired.inc()
        # Errors of clients and refusals under overload are counted; logged, they would be a flood.
        log = _log.warning if isinstance(error, InferenceFailed) else _log.debug
        log("not detected", code=error.code, detail=error.detail, request_id=request_id)
