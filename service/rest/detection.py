"""POST /detect: reads the upload, calls the Detector, encodes the results."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import structlog
from starlette.requests import Request
from starlette.responses import Response

from model.images.decode import ImageLimits
from service.core.detector import Detector
from service.core.encoding import FileResult
from service.core.formats import JSON, Encoded, EncodeInput, OutputFormat
from service.core.served_model import ServedModel
from service.errors import DetectionError
from service.rest.multipart import UploadedFile
from service.rest.problems import INTERNAL_ERROR, item_error
from service.rest.upload import Upload, UploadReader
from service.settings import Settings
from service.transport.http_body import BodyMemory
from service.transport.http_request import OutcomeCounter, unless_client_leaves
from service.transport.http_response import CountedResponse
from service.types import DetectResult, StageTimings

_PROTOCOL = "http"  # in metrics
_FILES_IN_FLIGHT = 4  # of one form: enough to fill a batch, few enough to leave slots to others

_SERVER_TIMING = b", ".join(
    stage.encode() + b";dur=%.3f" for stage in (*StageTimings._fields, "encode")
)

_log = structlog.get_logger(__name__)


class DetectEndpoint:
    """Handles POST /detect."""

    def __init__(
        self,
        detector: Detector,
        settings: Settings,
        bodies: BodyMemory,
        protocol: str = _PROTOCOL,
    ) -> None:
        """Takes the limits from the settings.

        Args:
            detector: the core.
            settings: limits of a request.
            bodies: counts the bytes of bodies.
            protocol: label of the requests in the metrics.
        """
        self._detector = detector
        self._protocol = protocol
        self._reader = UploadReader(settings)
        self._image_limits = ImageLimits(
            settings.max_body_bytes, settings.max_image_pixels, settings.max_jpeg_scans
        )
        self._bodies = bodies

    async def respond(self, request: Request) -> Response:
        """Handles a request to /detect; errors as for `respond_in`."""
        return await self.respond_in(JSON, request)

    async def respond_in(self, output_format: OutputFormat, request: Request) -> Response:
        """Handles one request.

        Args:
            output_format: of the response to an image or a form that names none.
            request: whose body has not been read.

        Raises:
            DetectionError: for a request without any result.
            RequestRefused: for a body or header that cannot be read.
            ClientGone: when the client disconnected before the response.
        """
        with (
            OutcomeCounter(self._detector.metrics, self._protocol),
            self._bodies.account() as account,
        ):
            upload = await self._reader.read(request, account, output_format)
            single = len(upload.files) == 1
            work = self._respond_to_one(upload) if single else self._respond_to_several(upload)
            return await unless_client_leaves(work, request.scope, request.receive)

    async def _respond_to_several(self, upload: Upload) -> Response:
        outcomes = await detect_files(self._detector, upload)
        model = self._detector.model
        encoded = upload.output_format.encode(
            EncodeInput(outcomes, model.labels, upload.request_id, category_ids=model.category_ids)
        )
        return _response(encoded)

    async def _respond_to_one(self, upload: Upload) -> Response:
        if not upload.output_format.explains:
            return await self._respond_to_file(upload)
        with self._detector.explaining(upload.request_id):
            return await self._respond_to_file(upload)

    async def _respond_to_file(self, upload: Upload) -> Response:
        file = upload.files[0]
        drawn = upload.output_format.draws_images
        result = await detect_file(self._detector, file, upload, upload.request_id, drawn=drawn)
        encode_started = time.monotonic()
        output_format = upload.output_format
        outcomes = (FileResult(file.name or None, result),)
        if output_format.draws_images:
            response = await self._draw(output_format, file, upload, outcomes)
        else:
            response = _response(
                output_format.encode(EncodeInput(outcomes, result.label_names, upload.request_id))
            )
        encode_s = time.monotonic() - encode_started
        self._detector.metrics.observe_stage("encode", encode_s)
        response.raw_headers.append((b"server-timing", _server_timing(result, encode_s * 1000)))
        return response

    async def _draw(
        self,
        output_format: OutputFormat,
        file: UploadedFile,
        upload: Upload,
        outcomes: Sequence[FileResult],
    ) -> Response:
        job = EncodeInput(outcomes, limits=self._image_limits)
        account = self._bodies.account()
        encoded = await self._detector.encode_with_image(
            output_format,
            job,
            file.data,
            upload.deadline,
            upload.priority,
            accept=lambda encoded: account.take(len(encoded.data)),
        )
        return CountedResponse(encoded.data, encoded.media_type, account)


async def detect_file(  # noqa: PLR0913 - a file, its request and how its result is used
    detector: Detector,
    file: UploadedFile,
    upload: Upload,
    request_id: str,
    *,
    drawn: bool = False,
    served: ServedModel | None = None,
) -> DetectResult:
    """Detects in one file of a request.

    Args:
        detector: the core.
        file: of the upload.
        upload: has the options.
        request_id: of this file.
        drawn: whether the result is drawn in the image, as for `Detector.detect`.
        served: the model, likewise.

    Raises:
        DetectionError: also for a file that could not be read.
    """
    if file.error is not None:
        raise file.error
    return await detector.detect(
        file.data,
        upload.options,
        request_id=request_id,
        deadline=upload.deadline,
        priority=upload.priority,
        read_ms=upload.read_ms,
        drawn=drawn,
        served=served,
    )


async def detect_files(detector: Detector, upload: Upload) -> Sequence[FileResult]:
    """Detects in each file of a request by itself: one failure does not affect the others.

    All results are those of one model.
    """
    in_flight = asyncio.Semaphore(_FILES_IN_FLIGHT)

    async def one(number: int, file: UploadedFile, served: ServedModel) -> FileResult:
        request_id = f"{upload.request_id}-{number}"
        async with in_flight:
            try:
                result = await detect_file(detector, file, upload, request_id, served=served)
                return FileResult(file.name, result)
            except DetectionError as error:
                return FileResult(file.name, error=item_error(error))
            except Exception:
                _log.exception("unexpected error", request_id=request_id)
                return FileResult(file.name, error=INTERNAL_ERROR)

    with detector.one_model() as served:
        tasks = [one(number, file, served) for number, file in enumerate(upload.files, start=1)]
        return await asyncio.gather(*tasks)


def _response(encoded: Encoded) -> Response:
    return Response(encoded.data, media_type=encoded.media_type)


def _server_timing(result: DetectResult, encode_ms: float) -> bytes:
    return _SERVER_TIMING % (*result.timings, encode_ms)
