"""Requests with format=explain: one at a time, with a predicted time for admission.

An explanation takes an engine another run of its image, and a decoder the drawing of a figure.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager

from service.batching.estimates import RunningMean
from service.errors import DetectionError, InvalidOptions, Overloaded
from service.observability.metrics import Metrics


class Explanations:
    """Admits explanations, and measures them."""

    def __init__(self, metrics: Metrics, *, offered: bool) -> None:
        """Starts without measured times.

        Args:
            metrics: counts explanations.
            offered: whether requests are accepted at all (`serve --explain`).
        """
        self.offered = offered
        self._metrics = metrics
        self._in_flight = False
        self._engine_seconds = RunningMean()
        self._draw_seconds = RunningMean()

    @property
    def predicted_seconds(self) -> float:
        """What an explanation adds to the time of its detection; 0 before the first one."""
        return self._engine_seconds.value + self._draw_seconds.value

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Context manager around a request, its detection and drawing included.

        Raises:
            InvalidOptions: if explanations are turned off.
            Overloaded: while another one is in flight.
        """
        outcome = "internal"
        try:
            self._begin()
            try:
                yield
            finally:
                self._in_flight = False
            outcome = "ok"
        except DetectionError as error:
            outcome = error.code
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self._metrics.explanations.labels(outcome).inc()

    def record_engine(self, seconds: float) -> None:
        """Records how long an engine took, in addition to the detection."""
        self._engine_seconds.learn(seconds)
        self._metrics.explanation_seconds.labels("engine").observe(seconds)

    def record_drawing(self, seconds: float) -> None:
        """Records how long the figure took."""
        self._draw_seconds.learn(seconds)
        self._metrics.explanation_seconds.labels("draw").observe(seconds)

    def _begin(self) -> None:
        if not self.offered:
            raise InvalidOptions("format=explain is turned off here; it needs `serve --explain`")
        if self._in_flight:
            raise Overloaded(
                "another detection is being explained; one at a time",
                retry_after_seconds=max(1, math.ceil(self.predicted_seconds)),
            )
        self._in_flight = True
