"""What operators and clients ask before they detect: health, readiness, models, metrics."""

from __future__ import annotations

from dataclasses import asdict

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from model.images.formats import SUPPORTED_FORMATS
from model.labels import NO_CLASS
from service.core.detector import Detector
from service.observability.metrics import Metrics
from service.rest.problems import Problem, problem_response
from service.settings import Settings
from service.transport.http_request_id import request_id_of

_NO_STORE = {"Cache-Control": "no-store"}
_RETRY_AFTER_S = 5


class ProbeEndpoints:
    """Handles GET /healthz, /readyz, /v1/models and /metrics."""

    def __init__(self, detector: Detector, settings: Settings) -> None:
        """Answers from the detector's state as it is at each request."""
        self._detector = detector
        self._settings = settings

    async def health(self, request: Request) -> Response:
        """Is the process worth keeping? 503 asks for a restart."""
        if self._detector.live:
            return _json({"status": "live"})
        return self._unavailable(request, "not_live", "the engine fails again and again")

    async def readiness(self, request: Request) -> Response:
        """Should traffic come here now?"""
        if self._detector.ready:
            return _json({"status": "ready"})
        return self._unavailable(request, "not_ready", self._detector.not_ready_reason)

    async def models(self, _request: Request) -> Response:
        """Which model is served, and how it wants its images."""
        model, settings = self._detector.model, self._settings
        entry = {
            "name": model.name,
            "version": model.version,
            "description": model.description,
            "variant": model.config.name,
            "kernel": self._detector.kernel,
            "engines": [asdict(facts) for facts in self._detector.served.engine_facts],
            "default_threshold": model.score_threshold,
            "classes": [
                {"id": class_id, "name": name}
                for class_id, name in enumerate(model.labels)
                if name != NO_CLASS
            ],
            "input": {
                "shortest_side": model.config.shortest_side,
                "longest_side": model.config.longest_side,
                "resampling": "bilinear",
                "bucket_stride": model.config.bucket_stride,
            },
            "limits": {
                "max_body_bytes": settings.max_body_bytes,
                "max_image_pixels": settings.max_image_pixels,
                "max_files": settings.max_files,
                "max_detections": model.config.max_detections,
                "formats": SUPPORTED_FORMATS,
            },
        }
        return _json({"models": [entry]})

    async def metrics(self, request: Request) -> Response:
        """Prometheus metrics, in the format that is asked for."""
        return _metrics(self._detector.metrics, request)

    def _unavailable(self, request: Request, code: str, reason: str) -> Response:
        headers = {"Retry-After": str(_RETRY_AFTER_S)} | _NO_STORE
        problem = Problem(503, code, reason)
        return problem_response(problem, request_id_of(request.scope), headers)


def create_metrics_app(metrics: Metrics) -> Starlette:
    """An application that serves /metrics and nothing else, for a port of its own."""

    async def answer(request: Request) -> Response:
        return _metrics(metrics, request)

    return Starlette(routes=[Route("/metrics", answer)])


def _metrics(metrics: Metrics, request: Request) -> Response:
    body, content_type = metrics.render(request.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": content_type} | _NO_STORE)


def _json(content: object) -> Response:
    return Response(orjson.dumps(content), media_type="application/json", headers=_NO_STORE)
