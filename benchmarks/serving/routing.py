"""CPU time of FastAPI's routing in one POST /detect, and what a by-pass of it would save.

    python -m benchmarks.serving.routing [--rounds 15]

Three variants of the HTTP application are measured in alternation, each with a detector that
returns at once: the served one; one whose middleware calls the endpoint itself, past the router
and FastAPI's own layers; and one whose route declares the query parameters and headers in its
signature, so that FastAPI reads them too. The CPU time of a whole request in the edge process
(receiving, decoding, batching, encoding) is measured in the same run, with the fake device at zero
time and a load generator in another process. Figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Any

import numpy as np
import uvloop
from fastapi import FastAPI, Header, Query
from fastapi.routing import APIRoute
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from benchmarks.report import RESULTS, conditions, table, version_of, write_report
from benchmarks.serving.images import make_images
from model.detections import Detections
from service.observability.logs import configure_logs
from service.rest import create_app
from service.settings import load_settings
from service.transport.http_server import HttpServer, listen
from service.transport.openapi import RequestRoute
from service.types import DetectOptions, DetectResult, StageTimings
from tests.service.rest.standin import MODEL, StandIn
from tests.support.fake_service import fake_settings, open_fake_detector

_REQUESTS = 400  # of one variant in one round
_LOAD_SECONDS = 3
_QUERY = b"threshold=0.5&labels=qr_code,linear"
_BODY = bytes(60_000)
_TIMINGS = StageTimings(0.1, 1.0, 0.5, 0.25, 0.0, 20.0, 0.125, 21.9)
_FOUND = Detections(
    scores=np.array([0.91, 0.75], dtype=np.float32),
    labels=np.array([0, 4], dtype=np.int64),
    boxes_xyxy=np.array([[64, 48, 256, 240], [320, 96, 576, 144]], dtype=np.float32),
)


class InstantDetector(StandIn):
    """A detector that returns the same result at once."""

    async def detect(self, data: bytes, options: DetectOptions, **request: Any) -> DetectResult:
        """Returns the result."""
        return DetectResult(
            model_name=MODEL.name,
            model_version=MODEL.version,
            width=640,
            height=480,
            label_names=MODEL.labels,
            detections=_FOUND,
            timings=_TIMINGS,
            request_id=request["request_id"],
        )


class _ByPass:
    """Middleware that calls the endpoint of POST /detect itself."""

    def __init__(self, app: ASGIApp, route: RequestRoute) -> None:
        self._app = app
        self._route = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != "/detect" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        scope["endpoint"], scope["path_params"] = self._route.endpoint, {}
        response = await self._route.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


def served(app: FastAPI) -> FastAPI:
    """The application as it is served."""
    return app


def with_by_pass(app: FastAPI) -> FastAPI:
    """The application with a by-pass inside its middleware."""
    app.user_middleware.append(Middleware(_ByPass, route=_detect_route(app)))
    return app


def with_declared_parameters(app: FastAPI) -> FastAPI:
    """The application with a route whose parameters FastAPI reads, in addition to the endpoint."""
    route = _detect_route(app)

    async def respond(  # noqa: PLR0913, PLR0917 - the parameters of POST /detect
        request: Request,
        threshold: Annotated[float | None, Query(ge=0, le=1)] = None,
        max_detections: Annotated[int | None, Query(ge=1)] = None,
        labels: Annotated[list[str] | None, Query()] = None,
        output_format: Annotated[str, Query(alias="format")] = "json",
        x_request_timeout_ms: Annotated[float | None, Header(gt=0)] = None,
        x_request_priority: Annotated[str | None, Header()] = None,
    ) -> Response:
        response: Response = await route.endpoint(request)
        return response

    respond.__annotations__["request"] = Request
    app.router.routes[app.router.routes.index(route)] = APIRoute(
        "/detect", respond, methods=["POST"], response_model=None
    )
    return app


VARIANTS: dict[str, Callable[[FastAPI], FastAPI]] = {
    "served": served,
    "by-pass": with_by_pass,
    "parameters read by FastAPI": with_declared_parameters,
}


async def measure_routing(rounds: int) -> dict[str, list[float]]:
    """CPU microseconds of a request in the application, by variant, one figure a round."""
    settings = load_settings()
    apps = {
        name: change(create_app(InstantDetector().as_detector(), settings))
        for name, change in VARIANTS.items()
    }
    for app in apps.values():
        await _run(app)
    figures: dict[str, list[float]] = {name: [] for name in apps}
    for _ in range(rounds):
        for name, app in apps.items():
            started = time.process_time()
            await _run(app)
            figures[name].append((time.process_time() - started) / _REQUESTS * 1e6)
    return figures


async def measure_edge(rounds: int) -> list[float]:
    """CPU microseconds of a whole request in the edge process, one figure a round."""
    settings = fake_settings()
    figures = []
    async with open_fake_detector(settings) as detector:
        server = HttpServer(create_app(detector, settings), settings, listen("127.0.0.1", 0))
        serving = asyncio.create_task(server.run_until_drained())
        for number in range(rounds + 1):
            started = time.process_time()
            report = await _load(server.port)
            spent = time.process_time() - started
            if number:  # the first warms up
                figures.append(spent / report["sent"] * 1e6)
        server.drain()
        await serving
    return figures


async def _load(port: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.serving.load", "--port", str(port)]
    command += ["--path", "/detect?threshold=0", "--in-flight", "8"]
    command += ["--seconds", str(_LOAD_SECONDS)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    report: dict[str, Any] = json.loads(output)
    if report["right"] != report["sent"]:
        raise RuntimeError(f"not all requests got their result: {report}")
    return report


async def _run(app: ASGIApp) -> None:
    for _ in range(_REQUESTS):
        await _request(app)


async def _request(app: ASGIApp) -> None:
    async def receive() -> Message:
        return {"type": "http.request", "body": _BODY, "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] != HTTPStatus.OK:
            raise RuntimeError(f"status {message['status']}")

    headers = (("host", "localhost:8000"), ("accept", "*/*"), ("content-type", "image/jpeg"))
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/detect",
        "raw_path": b"/detect",
        "query_string": _QUERY,
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
        "state": {"connection": _Connection()},
    }
    await app(scope, receive, send)


class _Connection:
    """A connection that stays open."""

    lost = False
    on_lost: Callable[[], None] | None = None


def _detect_route(app: FastAPI) -> RequestRoute:
    return next(
        route for route in app.routes if isinstance(route, RequestRoute) and route.path == "/detect"
    )


def _rows(routing: dict[str, list[float]], edge: list[float]) -> list[tuple[str, ...]]:
    whole = statistics.median(edge)
    base = statistics.median(routing["served"])
    rows: list[tuple[str, ...]] = []
    for name, figures in routing.items():
        median = statistics.median(figures)
        spread = f"{min(figures):.0f} to {max(figures):.0f}"
        difference = median - base
        rows.append(
            (
                name,
                f"{median:.0f} us ({spread})",
                f"{difference:+.0f} us",
                f"{difference / whole:+.1%}",
            )
        )
    return rows


async def _measure(rounds: int) -> None:
    document = conditions()
    configure_logs("error", "json")
    make_images()
    routing, edge = await measure_routing(rounds), await measure_edge(rounds)
    document |= {
        "fastapi": version_of("fastapi"),
        "routing_us": routing,
        "edge_us": edge,
        "edge_median_us": statistics.median(edge),
    }
    columns = ("variant", "CPU of a request in the application", "difference", "of the edge's CPU")
    whole = (
        f"The whole request takes {statistics.median(edge):.0f} us of the edge's CPU "
        f"({min(edge):.0f} to {max(edge):.0f}).\n"
    )
    title = "CPU time of FastAPI's routing in POST /detect"
    sections = [table(columns, _rows(routing, edge)), whole]
    write_report(RESULTS / "serving" / "routing", title, document, sections)


def main() -> None:
    """Measures and writes the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=15, help="of each measurement")
    uvloop.run(_measure(parser.parse_args().rounds))


if __name__ == "__main__":
    main()
