"""The body and options of POST /detect -> `Upload`.

    image/*, application/octet-stream, ...   the bytes of one image
    multipart/form-data                      files, and options as plain fields
    application/json                         {"inputs": base64, "parameters": {options}}

The last is what Hugging Face's clients send (`huggingface_hub.InferenceClient.object_detection`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from starlette.requests import Request

from service.core.formats import HUGGINGFACE, OutputFormat
from service.core.selection import PRIORITY_HEADER, parse_priority
from service.errors import InvalidImage, InvalidOptions, UnsupportedImage
from service.observability.request_scope import StageInterval, current_scope
from service.rest.media_types import FORM_TYPE, may_be_image, media_type_of
from service.rest.multipart import FormReader, UploadedFile
from service.rest.query import (
    DetectQuery,
    parse_query,
    parse_query_string,
    split_query_string,
)
from service.settings import Settings
from service.transport.base64_text import Base64Error, decode_base64
from service.transport.compression import read_plain_body
from service.transport.http_body import BodyAccount, BodyLimits, receive_body
from service.transport.http_request import deadline_of, malformed_json, request_id_of
from service.transport.json_body import JsonError, JsonText, parse_body, read_json
from service.types import DetectOptions, Priority

_JSON_TYPE = "application/json"
_JSON_FORM = '{"inputs": "the image file as base64", "parameters": {"threshold": 0.5}}'


@dataclass(frozen=True)
class Upload:
    """The contents of one request."""

    files: tuple[UploadedFile, ...]
    options: DetectOptions
    output_format: OutputFormat
    request_id: str
    deadline: float | None  # time.monotonic seconds
    priority: Priority
    read_ms: float


class UploadReader:
    """Reads requests."""

    def __init__(self, settings: Settings) -> None:
        """Takes the limits from the settings."""
        self._max_files = settings.max_files
        self._limits = BodyLimits.of(settings)

    async def read(
        self, request: Request, account: BodyAccount, output_format: OutputFormat
    ) -> Upload:
        """Reads one request.

        Args:
            request: whose body has not been read.
            account: counts the bytes of the body.
            output_format: for requests with an image or a form that name none.

        Raises:
            DetectionError: for a request without an image, or with an invalid option.
            RequestRefused: for a body or header that cannot be read.
            ClientGone: when the client disconnected.
        """
        started = time.monotonic()
        deadline = deadline_of(request.headers, started)
        priority = parse_priority(request.headers.get(PRIORITY_HEADER))
        query_string: bytes = request.scope["query_string"]
        query = parse_query_string(query_string)
        content_type = request.headers.get("content-type", "")
        media_type = media_type_of(content_type)
        body = (request.headers, request.receive, self._limits)
        if may_be_image(media_type):
            files: tuple[UploadedFile, ...] = (
                UploadedFile("", await read_plain_body(*body, deadline, account)),
            )
        elif media_type == FORM_TYPE:
            reader = FormReader(content_type, self._max_files)
            if "content-encoding" in request.headers:
                reader.take(await read_plain_body(*body, deadline, account))
            else:
                await receive_body(*body, reader.take, deadline, account)
            form = reader.form()
            query = parse_query([*split_query_string(query_string), *form.fields])
            files = form.files
        elif media_type == _JSON_TYPE:
            file, query = await _read_json(
                await read_plain_body(*body, deadline, account), query_string, account
            )
            files, output_format = (file,), HUGGINGFACE
        else:
            raise UnsupportedImage(
                f"Content-Type is {media_type!r}; send the bytes of one image as image/*, or "
                f"files as {FORM_TYPE}"
            )
        output_format = query.output_format or output_format
        _check_files(files, output_format)
        read_ms = record_read(started)
        return Upload(
            files=files,
            options=query.options,
            output_format=output_format,
            request_id=request_id_of(request.scope),
            deadline=deadline,
            priority=priority,
            read_ms=read_ms,
        )


def record_read(started: float) -> float:
    """Records the stage "read" of a request, which ends now; returns its milliseconds."""
    ended = time.monotonic()
    if (scope := current_scope()) is not None:
        scope.record_stage(StageInterval("read", started, ended))
    return (ended - started) * 1000


def _check_files(files: tuple[UploadedFile, ...], output_format: OutputFormat) -> None:
    """Checks the number of files.

    Raises:
        InvalidImage: for none.
        InvalidOptions: for more than the format can have.
    """
    if not files:
        raise InvalidImage("the form holds no file; send an image as a file field")
    if len(files) > 1 and output_format.draws_images:
        raise InvalidOptions(f"format={output_format.name} takes one file at a time; send one file")


async def _read_json(
    body: bytes, query_string: bytes, account: BodyAccount
) -> tuple[UploadedFile, DetectQuery]:
    image, parameters = await parse_body(body, _parse_json)
    account.take(len(image))
    given = [*split_query_string(query_string), *json_options(parameters)]
    return UploadedFile("", image), parse_query(given)


def _parse_json(body: bytes) -> tuple[bytes, Mapping[str, object]]:
    """Returns the image and the parameters.

    Raises:
        RequestRefused: for a body that is not a JSON object.
        UnsupportedImage: for JSON without an image.
        InvalidImage: for text that is not base64.
    """
    try:
        document = read_json(body, ("inputs",))
    except JsonError as error:
        raise malformed_json(str(error)) from None
    text = document.get("inputs")
    if not isinstance(text, str | JsonText):
        raise UnsupportedImage(
            f"Content-Type is {_JSON_TYPE!r}, but the JSON has no text in its field inputs; send "
            f"{_JSON_FORM}, the bytes of one image as image/*, or files as {FORM_TYPE}"
        )
    parameters = document.get("parameters")
    if not isinstance(parameters, dict | None):
        raise malformed_json("the field parameters of the JSON is not an object")
    try:
        return decode_base64(text), parameters or {}
    except Base64Error as error:
        raise InvalidImage(f"the field inputs of the JSON is not base64: {error}") from None


def json_options(parameters: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """The parameters of a JSON body as options.

    null stands for "not given", a list for several labels.
    """
    for name, value in parameters.items():
        for each in value if isinstance(value, list) and name == "labels" else (value,):
            if each is not None:
                yield name, each
