"""The paths of the protocol: /health, /setup, /validate, /predict and /webhook."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from service.access.api_keys import Scope as KeyScope
from service.core.detector import Detector
from service.core.formats import JSON
from service.core.selection import PRIORITY_HEADER, parse_priority
from service.errors import (
    DeadlineExceeded,
    DetectionError,
    InvalidOptions,
    NotReady,
    Overloaded,
    ShuttingDown,
)
from service.label_studio.http_get import HttpGet
from service.label_studio.images import Origin, TaskImages
from service.label_studio.label_config import Rectangles, read_label_config
from service.label_studio.predictions import prediction_of, version_of
from service.label_studio.token import Token, TokenFile
from service.rest.detection import detect_file
from service.rest.multipart import UploadedFile
from service.rest.probes import unavailable
from service.rest.upload import Upload
from service.settings import Settings
from service.transport.compression import read_plain_body
from service.transport.http_body import BodyAccount, BodyLimits, BodyMemory
from service.transport.http_request import (
    OutcomeCounter,
    RequestRefused,
    deadline_of,
    malformed_json,
    request_id_of,
    unless_client_leaves,
)
from service.transport.json_body import JsonError, parse_body, read_json
from service.transport.route_access import PUBLIC, require
from service.types import DetectOptions

HEALTH_PATH = "/health"
_PROTOCOL = "label_studio"  # in metrics
_NO_STORE = {"Cache-Control": "no-store"}
_TASK_IMAGES = ("tasks", "data", "*")  # where long texts are images
_MAX_TASKS = 256  # of one request
_TASKS_IN_FLIGHT = 4  # of one request
_FILE_SECONDS = 10.0
_RETRIED = (Overloaded, NotReady, ShuttingDown)

_log = structlog.get_logger(__name__)


def label_studio_routes(
    detector: Detector, settings: Settings, bodies: BodyMemory
) -> list[BaseRoute]:
    """The routes of the protocol; none unless the setting `label_studio` turns them on.

    Raises:
        SettingsError: for a token that cannot be read.
    """
    if not settings.label_studio:
        return []
    backend = _Backend(detector, settings, bodies)
    posted = {
        "/setup": backend.setup,
        "/validate": backend.validate,
        "/predict": backend.predict,
        "/webhook": backend.ignore,
    }
    return [
        require(PUBLIC, Route(HEALTH_PATH, backend.health)),
        *(
            require(KeyScope.DETECT, Route(path, respond, methods=["POST"]))
            for path, respond in posted.items()
        ),
    ]


def _task_images(settings: Settings) -> TaskImages:
    origin = Origin.of(settings.label_studio_url or "http://localhost")
    get = HttpGet(origin.scheme, origin.host, origin.port, settings.max_body_bytes, _FILE_SECONDS)
    token = None
    if settings.label_studio_token_file is not None:
        token = Token(TokenFile(settings.label_studio_token_file), get, origin.path)
    return TaskImages(origin if settings.label_studio_url else None, token, get)


class _Backend:
    """Handles the paths."""

    def __init__(self, detector: Detector, settings: Settings, bodies: BodyMemory) -> None:
        self._detector = detector
        self._bodies = bodies
        self._limits = BodyLimits.of(settings)
        self._images = _task_images(settings)

    async def health(self, request: Request) -> Response:
        """200 if requests are accepted."""
        if not self._detector.ready:
            return unavailable(request, "not_ready", self._detector.not_ready_reason)
        return _json({"status": "UP", "model_class": self._detector.model.name})

    async def setup(self, request: Request) -> Response:
        """Returns the model's version; a configuration that cannot be predicted is reported."""
        document = await self._project_document(request)
        model = self._detector.model
        setup: dict[str, Any] = {"model_version": version_of(model.name, model.version)}
        try:
            setup["labels"] = dict(self._rectangles(document.get("schema")).labels)
        except InvalidOptions as error:  # Label Studio connects before labels are chosen, too
            _log.warning("Label Studio's project cannot be predicted", reason=error.detail)
            setup["detail"] = error.detail
        return _json(setup)

    async def validate(self, request: Request) -> Response:
        """200 for a labelling configuration that can be predicted.

        Raises:
            InvalidOptions: for another one.
        """
        document = await self._project_document(request)
        return _json({"labels": dict(self._rectangles(document.get("config")).labels)})

    async def ignore(self, _request: Request) -> Response:
        """Events of a project: the service does not train from them."""
        return _json({"status": "ignored", "detail": "the service does not train: lite-detr train"})

    async def predict(self, request: Request) -> Response:
        """Returns one prediction for each task, in their order."""
        with (
            OutcomeCounter(self._detector.metrics, _PROTOCOL),
            self._bodies.account() as account,
        ):
            started = time.monotonic()
            deadline = deadline_of(request.headers, started)
            document = await self._document(request, deadline, account)
            upload = Upload(
                files=(),
                options=DetectOptions(),
                output_format=JSON,
                request_id=request_id_of(request.scope),
                deadline=deadline,
                priority=parse_priority(request.headers.get(PRIORITY_HEADER)),
                read_ms=(time.monotonic() - started) * 1000,
            )
            tasks = _tasks(document)
            rectangles = self._rectangles(document.get("label_config"))
            work = self._predictions(tasks, rectangles, upload)
            return _json(
                {"results": await unless_client_leaves(work, request.scope, request.receive)}
            )

    async def _predictions(
        self, tasks: Sequence[Any], rectangles: Rectangles, upload: Upload
    ) -> list[dict[str, Any]]:
        """The prediction of each task, or an error.

        Raises:
            DetectionError, RequestRefused: if no task has a result, or a retry is useful.
        """
        in_flight = asyncio.Semaphore(_TASKS_IN_FLIGHT)

        async def one(place: int, task: Any) -> dict[str, Any] | DetectionError | RequestRefused:
            async with in_flight:
                try:
                    return await self._predict_one(place, task, rectangles, upload)
                except (DetectionError, RequestRefused) as error:
                    return error

        outcomes = await asyncio.gather(*(one(place, task) for place, task in enumerate(tasks)))
        errors = [each for each in outcomes if isinstance(each, Exception)]
        for error in errors:
            if isinstance(error, _RETRIED) or len(errors) == len(tasks):
                raise error
        # Without `result`, Label Studio stores no prediction, and requests one again later.
        return [
            {"error": each.detail} if isinstance(each, Exception) else each for each in outcomes
        ]

    async def _predict_one(
        self, place: int, task: Any, rectangles: Rectangles, upload: Upload
    ) -> dict[str, Any]:
        data = task.get("data") if isinstance(task, dict) else None
        value = data.get(rectangles.field) if isinstance(data, dict) else None
        with self._bodies.account() as account:
            try:
                async with asyncio.timeout(_seconds_until(upload.deadline)):
                    image = await self._images.read(
                        value, f"tasks[{place}].data.{rectangles.field}"
                    )
            except TimeoutError:
                raise DeadlineExceeded("the deadline passed while the image was read") from None
            account.take(len(image))
            result = await detect_file(
                self._detector,
                UploadedFile("", image),
                upload,
                f"{upload.request_id}-{place + 1}",
            )
        return prediction_of(result, rectangles)

    def _rectangles(self, label_config: object) -> Rectangles:
        if not isinstance(label_config, str) or not label_config.strip():
            raise InvalidOptions("there is no labelling configuration: an XML text")
        return read_label_config(label_config, tuple(self._detector.model.labels))

    async def _project_document(self, request: Request) -> Mapping[str, Any]:
        """The document of a request without images, which is handled as soon as it is read."""
        with self._bodies.account() as account:
            return await self._document(request, None, account)

    async def _document(
        self, request: Request, deadline: float | None, account: BodyAccount
    ) -> Mapping[str, Any]:
        body = await read_plain_body(
            request.headers, request.receive, self._limits, deadline, account
        )
        try:
            return await parse_body(body, lambda data: read_json(data, _TASK_IMAGES))
        except JsonError as error:
            raise malformed_json(str(error)) from None


def _seconds_until(deadline: float | None) -> float | None:
    return None if deadline is None else deadline - time.monotonic()


def _tasks(document: Mapping[str, Any]) -> list[Any]:
    tasks = document.get("tasks")
    if not isinstance(tasks, list):
        raise malformed_json('the JSON has no list "tasks"')
    if len(tasks) > _MAX_TASKS:
        raise InvalidOptions(
            f'"tasks" has {len(tasks)} tasks; at most {_MAX_TASKS} are accepted in one request'
        )
    return tasks


def _json(document: Mapping[str, Any]) -> Response:
    return Response(orjson.dumps(document), media_type="application/json", headers=_NO_STORE)
