"""POST /detect: reads a photo or a form of photos, calls the Detector, encodes what it found."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from functools import partial

import structlog
from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.responses import Response

from model.images.decode import ImageLimits
from service.core.detector import Detector
from service.core.encoding import (
    FileResult,
    ItemError,
    encode_coco,
    encode_result,
    encode_results,
)
from service.core.selection import PRIORITY_HEADER, parse_priority
from service.errors import DetectionError, InvalidImage, InvalidOptions, UnsupportedImage
from service.images.drawing import render_detections
from service.observability.request_scope import StageInterval, current_scope
from service.rest.multipart import FormReader, UploadedFile
from service.rest.problems import item_error
from service.rest.query import (
    AnswerFormat,
    DetectQuery,
    parse_query,
    parse_query_string,
    split_query_string,
)
from service.settings import Settings
from service.transport.http_body import (
    TIMEOUT_HEADER,
    BodyAccount,
    BodyLimits,
    BodyMemory,
    ClientGone,
    RequestRefused,
    parse_timeout_s,
    read_body,
    receive_body,
    unless_client_leaves,
)
from service.transport.http_request_id import request_id_of
from service.types import DetectResult, Priority, StageTimings

_FORM_TYPE = "multipart/form-data"
# Besides image/*: what clients say that know no better ("" = nothing, the last = bare curl).
_RAW_TYPES = frozenset({"", "application/octet-stream", "application/x-www-form-urlencoded"})
_MAX_DRAWINGS = 2  # at once: each holds a full-size picture and a core
_LARGE_DRAWING_PIXELS = 25_000_000  # of these one at a time
_FILES_IN_FLIGHT = 4  # of one form: enough to fill a batch, too few to crowd out other clients

_SERVER_TIMING = b", ".join(
    stage.encode() + b";dur=%.3f" for stage in (*StageTimings._fields, "encode")
)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Upload:
    """What came in one request."""

    files: tuple[UploadedFile, ...]
    query: DetectQuery
    request_id: str
    deadline: float | None  # time.monotonic seconds
    priority: Priority
    read_ms: float


class DetectEndpoint:
    """Handles POST /detect."""

    def __init__(self, detector: Detector, settings: Settings, bodies: BodyMemory) -> None:
        """Takes the limits from the settings, and counts what bodies hold in `bodies`."""
        self._detector = detector
        self._max_files = settings.max_files
        self._image_limits = ImageLimits(
            settings.max_body_bytes, settings.max_image_pixels, settings.max_jpeg_scans
        )
        self._body_limits = BodyLimits.of(settings)
        self._bodies = bodies
        self._drawing_slots = CapacityLimiter(_MAX_DRAWINGS)
        self._large_drawing_slot = CapacityLimiter(1)

    async def answer(self, request: Request) -> Response:
        """Answers one request.

        Raises:
            DetectionError: for a request that got nothing detected.
            RequestRefused: for a body or header that cannot be read.
            ClientGone: when the client left before its answer.
        """
        outcome = "internal"
        try:
            with self._bodies.account() as account:
                upload = await self._read(request, account)
                alone = len(upload.files) == 1
                work = self._respond_one(upload) if alone else self._respond_all(upload)
                response = await unless_client_leaves(work, request.scope, request.receive)
            outcome = "ok"
            return response
        except (ClientGone, asyncio.CancelledError):
            outcome = "cancelled"
            raise
        except (DetectionError, RequestRefused) as error:
            outcome = error.code
            raise
        finally:
            self._detector.metrics.count_request("http", outcome)

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
                f"Content-Type is {media_type!r}; send the image's own bytes as image/*, or "
                f"files as {_FORM_TYPE}"
            )
        if not files:
            raise InvalidImage("the form holds no file; send a photo as a file field")
        if len(files) > 1 and query.answer_format is AnswerFormat.IMAGE:
            raise InvalidOptions("format=image answers one file at a time; send one file")
        ended = time.monotonic()
        if (scope := current_scope()) is not None:
            scope.record_stage(StageInterval("read", started, ended))
        read_ms = (ended - started) * 1000
        request_id = request_id_of(request.scope)
        return _Upload(files, query, request_id, deadline, priority, read_ms)

    async def _respond_all(self, upload: _Upload) -> Response:
        outcomes = await self._detect_all(upload)
        if upload.query.answer_format is AnswerFormat.COCO:
            answered = next((each.result for each in outcomes if each.result), None)
            labels = self._detector.model.labels if answered is None else answered.label_names
            body = encode_coco(outcomes, labels)
        else:
            body = encode_results(outcomes, upload.request_id)
        return _json(body)

    async def _respond_one(self, upload: _Upload) -> Response:
        file = upload.files[0]
        result = await self._detect(file, upload, upload.request_id)
        encode_started = time.monotonic()
        match upload.query.answer_format:
            case AnswerFormat.IMAGE:
                response = await self._draw(file, result)
            case AnswerFormat.COCO:
                outcome = FileResult(file.name or None, result)
                response = _json(encode_coco([outcome], result.label_names))
            case AnswerFormat.JSON:
                response = _json(encode_result(result))
        encode_s = time.monotonic() - encode_started
        self._detector.metrics.observe_stage("encode", encode_s)
        response.raw_headers.append((b"server-timing", _server_timing(result, encode_s * 1000)))
        return response

    async def _draw(self, file: UploadedFile, result: DetectResult) -> Response:
        large = result.width * result.height > _LARGE_DRAWING_PIXELS
        drawn = await to_thread.run_sync(
            partial(
                render_detections,
                file.data,
                result.detections,
                result.label_names,
                self._image_limits,
            ),
            limiter=self._large_drawing_slot if large else self._drawing_slots,
        )
        return Response(drawn.data, media_type=drawn.media_type)

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
        """Each file on its own: what spoils one leaves the others be."""
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


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


def _server_timing(result: DetectResult, encode_ms: float) -> bytes:
    return _SERVER_TIMING % (*result.timings, encode_ms)
