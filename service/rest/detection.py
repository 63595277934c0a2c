"""POST /detect: reads one image or a form of images, calls the Detector, encodes the results."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass

import structlog
from starlette.requests import Request
from starlette.responses import Response

from model.images.decode import ImageLimits
from service.core.detector import Detector
from service.core.encoding import FileResult, ItemError
from service.core.formats import Encoded, EncodeInput, OutputFormat
from service.core.selection import PRIORITY_HEADER, parse_priority
from service.errors import DetectionError, InvalidImage, InvalidOptions, UnsupportedImage
from service.observability.request_scope import StageInterval, current_scope
from service.rest.multipart import FormReader, UploadedFile
from service.rest.problems import item_error
from service.rest.query import (
    DetectQuery,
    parse_query,
    parse_query_string,
    split_query_string,
)
from service.settings import Settings
from service.transport.http_body import (
    BodyAccount,
    BodyLimits,
    BodyMemory,
    read_body,
    receive_body,
)
from service.transport.http_request import (
    TIMEOUT_HEADER,
    OutcomeCounter,
    parse_timeout_s,
    request_id_of,
    unless_client_leaves,
)
from service.types import DetectResult, Priority, StageTimings

_PROTOCOL = "http"  # in metrics
_FORM_TYPE = "multipart/form-data"
# Besides image/*: types that clients send by default ("": none; the last: curl --data-binary).
_RAW_TYPES = frozenset({"", "application/octet-stream", "application/x-www-form-urlencoded"})
_FILES_IN_FLIGHT = 4  # of one form: enough to fill a batch, few enough to leave slots to others

_SERVER_TIMING = b", ".join(
    stage.encode() + b";dur=%.3f" for stage in (*StageTimings._fields, "encode")
)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Upload:
    """The contents of one request."""

    files: tuple[UploadedFile, ...]
    query: DetectQuery
    request_id: str
    deadline: float | None  # time.monotonic seconds
    priority: Priority
    read_ms: float


class DetectEndpoint:
    """Handles POST /detect."""

    def __init__(self, detector: Detector, settings: Settings, bodies: BodyMemory) -> None:
        """Takes the limits from the settings, and counts the bytes of bodies in `bodies`."""
        self._detector = detector
        self._max_files = settings.max_files
        self._image_limits = ImageLimits(
            settings.max_body_bytes, settings.max_image_pixels, settings.max_jpeg_scans
        )
        self._body_limits = BodyLimits.of(settings)
        self._bodies = bodies

    async def respond(self, request: Request) -> Response:
        """Handles one request.

        Raises:
            DetectionError: for a request without any result.
            RequestRefused: for a body or header that cannot be read.
            ClientGone: when the client disconnected before the response.
        """
        with (
            OutcomeCounter(self._detector.metrics, _PROTOCOL),
            self._bodies.account() as account,
        ):
            upload = await self._read(request, account)
            single = len(upload.files) == 1
            work = self._respond_to_one(upload) if single else self._respond_to_several(upload)
            return await unless_client_leaves(work, request.scope, request.receive)

    async def _read(self, request: Request, account: BodyAccount) -> _Upload:
        started = time.monotonic()
        timeout_s = parse_timeout_s(request.headers.get(TIMEOUT_HEADER))
        deadline = None if timeout_s is None else started + timeout_s
        priority = parse_priority(request.headers.get(PRIORITY_HEADER))
        query_string: bytes = request.scope["query_string"]
        query = parse_query_string(query_string)
        content_type = request.headers.get("content-type", "")
        media_type = content_type.partition(";")[0].strip().lower()
        body = (request.headers, request.receive, self._body_limits)
        if media_type == _FORM_TYPE:
            reader = FormReader(content_type, self._max_files)
            await receive_body(*body, reader.take, deadline, account)
            form = reader.form()
            query = parse_query([*split_query_string(query_string), *form.fields])
            files = form.files
        elif media_type.startswith("image/") or media_type in _RAW_TYPES:
            files = (UploadedFile("", await read_body(*body, deadline, account)),)
        else:
            raise UnsupportedImage(
                f"Content-Type is {media_type!r}; send the bytes of one image as image/*, or "
                f"files as {_FORM_TYPE}"
            )
        if not files:
            raise InvalidImage("the form holds no file; send an image as a file field")
        if len(files) > 1 and query.output_format.draws_images:
            raise InvalidOptions(
                f"format={query.output_format.name} takes one file at a time; send one file"
            )
        ended = time.monotonic()
        if (scope := current_scope()) is not None:
            scope.record_stage(StageInterval("read", started, ended))
        read_ms = (ended - started) * 1000
        request_id = request_id_of(request.scope)
        return _Upload(files, query, request_id, deadline, priority, read_ms)

    async def _respond_to_several(self, upload: _Upload) -> Response:
        outcomes = await self._detect_all(upload)
        model = self._detector.model
        encoded = upload.query.output_format.encode(
            EncodeInput(outcomes, model.labels, upload.request_id, category_ids=model.category_ids)
        )
        return _response(encoded)

    async def _respond_to_one(self, upload: _Upload) -> Response:
        file = upload.files[0]
        result = await self._detect(file, upload, upload.request_id)
        encode_started = time.monotonic()
        output_format = upload.query.output_format
        outcomes = (FileResult(file.name or None, result),)
        if output_format.draws_images:
            encoded = await self._draw(output_format, file, upload, outcomes)
        else:
            encoded = output_format.encode(
                EncodeInput(outcomes, result.label_names, upload.request_id)
            )
        response = _response(encoded)
        encode_s = time.monotonic() - encode_started
        self._detector.metrics.observe_stage("encode", encode_s)
        response.raw_headers.append((b"server-timing", _server_timing(result, encode_s * 1000)))
        return response

    async def _draw(
        self,
        output_format: OutputFormat,
        file: UploadedFile,
        upload: _Upload,
        outcomes: Sequence[FileResult],
    ) -> Encoded:
        job = EncodeInput(outcomes, limits=self._image_limits)
        return await self._detector.encode_with_image(
            output_format.encode, job, file.data, upload.deadline
        )

    def _detect(
        self, file: UploadedFile, upload: _Upload, request_id: str
    ) -> Awaitable[DetectResult]:
        return self._detector.detect(
            file.data,
            upload.query.options,
            request_id=request_id,
            deadline=upload.deadline,
            priority=upload.priority,
            read_ms=upload.read_ms,
        )

    async def _detect_all(self, upload: _Upload) -> Sequence[FileResult]:
        """Each file by itself: one failure does not affect the others."""
        in_flight = asyncio.Semaphore(_FILES_IN_FLIGHT)

        async def one(number: int, file: UploadedFile) -> FileResult:
            request_id = f"{upload.request_id}-{number}"
            async with in_flight:
                try:
                    return FileResult(file.name, await self._detect(file, upload, request_id))
                except DetectionError as error:
                    return FileResult(file.name, error=item_error(error))
                except Exception:
                    _log.exception("unexpected error", request_id=request_id)
                    return FileResult(file.name, error=_INTERNAL_ERROR)

        tasks = [one(number, file) for number, file in enumerate(upload.files, start=1)]
        return await asyncio.gather(*tasks)


_INTERNAL_ERROR = ItemError("internal", "Internal error", "An unexpected error.", status=500)


def _response(encoded: Encoded) -> Response:
    return Response(encoded.data, media_type=encoded.media_type)


def _server_timing(result: DetectResult, encode_ms: float) -> bytes:
    return _SERVER_TIMING % (*result.timings, encode_ms)
