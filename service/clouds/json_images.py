"""Requests with several images as base64 text in JSON, in the form of a cloud.

    body -> JSON -> JsonForm.read -> images and options -> Detector, one call an image
         -> JsonForm.write -> JSON, one entry an image

An image that cannot be read has an error as its entry; the others are not affected. A request with
one image gets the HTTP status of its error, as POST /detect does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.access.api_keys import Scope as KeyScope
from service.core.detector import Detector
from service.core.encoding import FileResult, ItemError
from service.core.formats import JSON
from service.core.selection import PRIORITY_HEADER, parse_priority
from service.errors import DetectionError, InvalidImage, InvalidOptions
from service.observability.request_scope import record_failure
from service.rest.detection import DetectEndpoint, detect_file, detect_files
from service.rest.media_types import FORM_TYPE, UNDECLARED_TYPES, may_be_image, media_type_of
from service.rest.multipart import UploadedFile
from service.rest.problems import INTERNAL_ERROR, item_error
from service.rest.query import parse_query, split_query_string
from service.rest.upload import Upload, json_options, record_read
from service.settings import Settings
from service.transport.base64_text import Base64Error, decode_base64
from service.transport.compression import read_plain_body
from service.transport.http_body import BodyAccount, BodyLimits, BodyMemory
from service.transport.http_request import (
    ClientGone,
    OutcomeCounter,
    RequestRefused,
    deadline_of,
    malformed_json,
    request_id_of,
    unless_client_leaves,
)
from service.transport.json_body import JsonError, JsonText, parse_body, read_json
from service.transport.route_access import require

_NO_STORE = {"Cache-Control": "no-store"}

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class JsonRequest:
    """What a form reads from a document."""

    images: Sequence[UploadedFile]
    parameters: object  # the options by name, or None; not checked yet


@dataclass(frozen=True)
class JsonForm:
    """The JSON of a cloud.

    Attributes:
        protocol: label of its requests in the metrics.
        image_path: as for `read_json`.
        read: reads a document; the second argument is the maximum number of images.
        write: returns the document of the results, in the order of the images.
        write_error: returns the document of an error.
    """

    protocol: str
    image_path: tuple[str, ...]
    read: Callable[[Mapping[str, Any], int], JsonRequest]
    write: Callable[[Sequence[FileResult]], Any]
    write_error: Callable[[ItemError], Any]


def predict_route(
    path: str, form: JsonForm, detector: Detector, settings: Settings, bodies: BodyMemory
) -> Route:
    """The route of a cloud's requests: JSON in its form; images and forms as by POST /detect."""
    by_json = _JsonEndpoint(form, detector, settings, bodies)
    by_upload = DetectEndpoint(detector, settings, bodies, form.protocol)

    async def respond(request: Request) -> Response:
        media_type = media_type_of(request.headers.get("content-type", ""))
        is_file = may_be_image(media_type) or media_type == FORM_TYPE
        if is_file and media_type not in UNDECLARED_TYPES:
            return await by_upload.respond_in(JSON, request)
        return await by_json.respond(request)

    return require(KeyScope.DETECT, Route(path, respond, methods=["POST"]))


def list_of(owner: Mapping[str, Any], name: str, max_images: int) -> list[Any]:
    """Returns the list of images.

    Raises:
        RequestRefused: if it is not there, or empty.
        InvalidOptions: for more than `max_images`.
    """
    images = owner.get(name)
    if not isinstance(images, list):
        raise malformed_json(f'the JSON has no list "{name}"')
    if not images:
        raise malformed_json(f'"{name}" is empty; it takes at least one image')
    if len(images) > max_images:
        raise InvalidOptions(
            f'"{name}" has {len(images)} images; at most {max_images} are accepted in one request'
        )
    return images


def image_of(text: object, place: str) -> UploadedFile:
    """Decodes one image.

    Args:
        text: of the JSON; base64 or a `data:` URL.
        place: in the JSON, for error messages.

    Returns:
        The image, or the error of this image only.
    """
    if not isinstance(text, str | JsonText):
        return UploadedFile("", b"", InvalidImage(f"{place} is not text: the image as base64"))
    try:
        return UploadedFile("", decode_base64(text))
    except Base64Error as error:
        return UploadedFile("", b"", InvalidImage(f"{place} is not base64: {error}"))


class _JsonEndpoint:
    """Handles requests in the form of a cloud."""

    def __init__(
        self, form: JsonForm, detector: Detector, settings: Settings, bodies: BodyMemory
    ) -> None:
        self._form = form
        self._detector = detector
        self._bodies = bodies
        self._limits = BodyLimits.of(settings)
        self._max_images = settings.max_files

    async def respond(self, request: Request) -> Response:
        """Handles one request; errors become responses in the form of the cloud."""
        try:
            with (
                OutcomeCounter(self._detector.metrics, self._form.protocol),
                self._bodies.account() as account,
            ):
                upload = await self._read(request, account)
                work = self._detect(upload)
                return await unless_client_leaves(work, request.scope, request.receive)
        except (ClientGone, asyncio.CancelledError):
            raise
        except RequestRefused as error:
            return self._error(ItemError(error.code, "", error.detail, error.status))
        except DetectionError as error:
            return self._error(item_error(error))
        except Exception:
            _log.exception("unexpected error", request_id=request_id_of(request.scope))
            return self._error(INTERNAL_ERROR)

    async def _read(self, request: Request, account: BodyAccount) -> Upload:
        started = time.monotonic()
        headers = request.headers
        deadline = deadline_of(headers, started)
        priority = parse_priority(headers.get(PRIORITY_HEADER))
        body = await read_plain_body(headers, request.receive, self._limits, deadline, account)
        read = await parse_body(body, self._parse)
        account.take(sum(len(image.data) for image in read.images))
        query = split_query_string(request.scope["query_string"])
        chosen = parse_query([*query, *json_options(_object(read.parameters))])
        if chosen.output_format is not None:
            raise InvalidOptions("format is not an option of this path")
        read_ms = record_read(started)
        return Upload(
            files=tuple(read.images),
            options=chosen.options,
            output_format=JSON,
            request_id=request_id_of(request.scope),
            deadline=deadline,
            priority=priority,
            read_ms=read_ms,
        )

    def _parse(self, body: bytes) -> JsonRequest:
        try:
            document = read_json(body, self._form.image_path)
        except JsonError as error:
            raise malformed_json(str(error)) from None
        return self._form.read(document, self._max_images)

    async def _detect(self, upload: Upload) -> Response:
        if len(upload.files) == 1:
            result = await detect_file(self._detector, upload.files[0], upload, upload.request_id)
            results: Sequence[FileResult] = (FileResult(None, result),)
        else:
            results = await detect_files(self._detector, upload)
        started = time.monotonic()
        response = _json_response(self._form.write(results))
        self._detector.metrics.observe_stage("encode", time.monotonic() - started)
        return response

    def _error(self, error: ItemError) -> Response:
        record_failure(error.code, error.detail)
        wait_s = error.retry_after_s
        headers = {} if wait_s is None else {"Retry-After": str(wait_s)}
        return _json_response(self._form.write_error(error), error.status or 500, headers)


def _object(parameters: object) -> Mapping[str, object]:
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise malformed_json("the parameters of the JSON are not an object")
    return parameters


def _json_response(
    document: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    return Response(
        orjson.dumps(document), status, _NO_STORE | dict(headers or {}), "application/json"
    )
