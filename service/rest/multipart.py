"""multipart/form-data -> files and fields, parsed in memory while the body arrives.

Unlike Starlette's form parser it never writes to disk, and it stops at the first file too many.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from model.images.formats import image_kind
from service.errors import DetectionError, InvalidOptions
from service.rest.media_types import UNDECLARED_TYPES, may_be_image, media_type_of
from service.transport.http_request import RequestRefused

_SIGNATURE_BYTES = 64  # of an image file
_MAX_FIELD_BYTES = 4096  # of a value that is not a file
_MAX_FIELDS = 32
_MAX_PARTS_BEYOND_FILES = 64  # fields, and empty file inputs
_SILENT = logging.Logger("silent", logging.CRITICAL + 1)
_NOT_A_FORM = "it is not well-formed multipart/form-data"
# Parts of the parser's messages, and what they mean.
_PROBLEMS = {
    "end of boundary": "a boundary is not followed by a line end (CRLF)",
    "boundary padding": "a boundary is not followed by a line end (CRLF)",
    "oundary length": "its boundary is too long",
    "invalid character": "a header of a part has a character that is not allowed",
    "0-length header": "a header of a part has no name",
    "LF character at end of header": "a header of a part does not end with CRLF",
    "LF at end of headers": "the headers of a part do not end with an empty line",
    "header size": "a header of a part is too long",
    "header count": "a part has too many headers",
}


@dataclass(frozen=True)
class UploadedFile:
    """One file of a request."""

    name: str  # the client's file name; without one, the name of the field
    data: bytes
    error: DetectionError | None = None  # why there are no data, of a file that cannot be read


@dataclass(frozen=True)
class Form:
    """Files and plain fields of a form, each in their order in the body.

    File inputs without a file and blank fields, which browsers send too, are left out.
    """

    files: tuple[UploadedFile, ...]
    fields: tuple[tuple[str, str], ...]


@dataclass
class _Part:
    """The part that is being parsed."""

    headers: dict[str, bytes] = field(default_factory=dict)
    field_name: str = ""
    file_name: str | None = None  # None: a plain field
    is_empty_input: bool = False  # so far: no file was chosen
    data: bytearray = field(default_factory=bytearray)


class FormReader:
    """Parses one multipart body."""

    def __init__(self, content_type: str, max_files: int) -> None:
        """Reads the boundary.

        Args:
            content_type: the request's header, which names the boundary.
            max_files: in one form.

        Raises:
            RequestRefused: for a header without a usable boundary.
        """
        self._collector = _Collector(max_files)
        boundary = _boundary_of(content_type)
        self._parser = _parser(boundary, self._collector)
        self._delimiter = b"\r\n--" + boundary
        self._preamble = b"\r\n"  # its end; the body's beginning counts as that of a line
        self._took_bytes = self._began = False

    def take(self, chunk: bytes) -> None:
        """Parses the next chunk of the body; the caller limits their total size.

        Raises:
            RequestRefused: for a body that is not well-formed.
            InvalidOptions: for too many files or fields.
        """
        if not self._took_bytes and (kind := image_kind(chunk[:_SIGNATURE_BYTES])) is not None:
            raise RequestRefused(
                400,
                "malformed_form",
                f"the body is {kind}, but is sent as a form: either its Content-Type or the body "
                "is wrong",
            )
        self._took_bytes = True
        if not self._began:
            chunk = self._without_preamble(chunk)
        try:
            self._parser.write(chunk)
        except UnicodeDecodeError as error:
            raise _malformed("a field is not UTF-8 text") from error
        except FormParserError as error:
            raise _malformed(_in_plain_words(error)) from error

    def _without_preamble(self, chunk: bytes) -> bytes:
        """Removes what is before the first boundary (RFC 2046, section 5.1.1)."""
        found = self._preamble + chunk
        start = found.find(self._delimiter)
        if start < 0:
            self._preamble = found[-len(self._delimiter) :]
            return b""
        self._began = True
        return found[start + len(b"\r\n") :]

    def form(self) -> Form:
        """Returns the form, after the last chunk.

        Raises:
            RequestRefused: for a body that is not well-formed.
        """
        try:
            self._parser.finalize()
        except FormParserError as error:
            raise _malformed(_in_plain_words(error)) from error
        if not self._began:
            raise _malformed("it does not have the boundary that its Content-Type names")
        if not self._collector.ended:
            raise _malformed("its closing boundary is missing")
        return Form(tuple(self._collector.files), tuple(self._collector.fields))


def _boundary_of(content_type: str) -> bytes:
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise _malformed("its Content-Type names no boundary")
    return boundary


def _parser(boundary: bytes, collector: _Collector) -> MultipartParser:
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": collector.begin_part,
                "on_header_field": collector.add_header_name,
                "on_header_value": collector.add_header_value,
                "on_header_end": collector.end_header,
                "on_headers_finished": collector.end_headers,
                "on_part_data": collector.add_data,
                "on_part_end": collector.end_part,
                "on_end": collector.end,
            },
        )
    except FormParserError as error:
        raise _malformed(_in_plain_words(error)) from error
    parser.logger = _SILENT  # it logs what it raises: any client could fill the log
    return parser


def _in_plain_words(error: FormParserError) -> str:
    text = str(error)
    return next((words for part, words in _PROBLEMS.items() if part in text), _NOT_A_FORM)


def _malformed(reason: str) -> RequestRefused:
    return RequestRefused(400, "malformed_form", f"the multipart body is malformed: {reason}")


class _Collector:
    """Builds the form from the parser's events."""

    def __init__(self, max_files: int) -> None:
        self.files: list[UploadedFile] = []
        self.fields: list[tuple[str, str]] = []
        self.ended = False
        self._max_files = max_files
        self._num_parts = 0
        self._part = _Part()
        self._header_name = bytearray()
        self._header_value = bytearray()

    def begin_part(self) -> None:
        self._num_parts += 1
        if self._num_parts > self._max_files + _MAX_PARTS_BEYOND_FILES:
            raise InvalidOptions(f"the form has more than {self._num_parts - 1} parts")
        self._part = _Part()

    def add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def end_header(self) -> None:
        self._part.headers[self._header_name.decode("latin-1").lower()] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def end_headers(self) -> None:
        """Decides whether the part is a file: it has a file name or the type of an image."""
        part = self._part
        disposition = part.headers.get("content-disposition", b"")
        _, options = parse_options_header(disposition)
        part.field_name = options.get(b"name", b"").decode("utf-8", "replace")
        file_name = _file_name(disposition, options)
        if file_name is None and not _is_file_type(part.headers.get("content-type", b"")):
            if len(self.fields) >= _MAX_FIELDS:
                raise InvalidOptions(f"the form has more than {_MAX_FIELDS} fields")
            return
        part.file_name = file_name or part.field_name
        part.is_empty_input = file_name == ""
        if not part.is_empty_input:
            self._check_file_count()

    def add_data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        part.data += data[start:end]
        if part.is_empty_input and part.data:
            part.is_empty_input = False
            self._check_file_count()
        if part.file_name is None and len(part.data) > _MAX_FIELD_BYTES:
            raise InvalidOptions(
                f"the form's field {part.field_name!r} is longer than {_MAX_FIELD_BYTES} bytes; "
                "if it is a file, give it a file name"
            )

    def end_part(self) -> None:
        """Keeps the part, unless it is a file input without a file or a text field left blank."""
        part = self._part
        if part.file_name is None:
            if text := part.data.decode("utf-8").strip():
                self.fields.append((part.field_name, text))
        elif not part.is_empty_input:
            self.files.append(UploadedFile(part.file_name, bytes(part.data)))

    def _check_file_count(self) -> None:
        if len(self.files) >= self._max_files:
            raise InvalidOptions(
                f"the form has more than the {self._max_files} files accepted at a time"
            )

    def end(self) -> None:
        self.ended = True


def _file_name(disposition: bytes, options: Mapping[bytes, bytes]) -> str | None:
    """The file name of a part; None for none, empty where a browser's file input has no file.

    Args:
        disposition: the header.
        options: its parameters, without `filename*` (RFC 8187), which the parser ignores.
    """
    plain = options.get(b"filename")
    if plain is not None:
        return plain.decode("utf-8", "replace")
    if b"filename*" not in disposition.lower():
        return None
    return _encoded_file_name(disposition)


def _encoded_file_name(disposition: bytes) -> str | None:
    """The file name of `filename*`, or of its pieces `filename*0`, ...; None for none.

    Only the character sets of RFC 5987 are decoded: Python knows more, some of which raise
    exceptions, or return text that no response can contain.

    Raises:
        RequestRefused: for pieces that have no order.
    """
    header = Message()
    header["content-disposition"] = disposition.decode("latin-1")
    try:
        value = header.get_param("filename", None, "content-disposition")
    except (TypeError, ValueError):  # numbered and others; a number of thousands of digits
        raise _malformed("the file name of a part is in pieces without an order") from None
    if value is None:
        return None
    charset, text = (value[0], value[2]) if isinstance(value, tuple) else (None, value)
    encoding = "latin-1" if str(charset).lower() == "iso-8859-1" else "utf-8"
    return text.encode("latin-1").decode(encoding, "replace").strip()


def _is_file_type(content_type: bytes) -> bool:
    media_type = media_type_of(content_type.decode("latin-1"))
    return media_type not in UNDECLARED_TYPES and may_be_image(media_type)
