"""HTTP requests to Label Studio: limited in size and time, without redirects and proxies."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from http import HTTPStatus

import httptools

_CHUNK_BYTES = 65_536
_MAX_HEAD_BYTES = 65_536
_MAX_CONNECTIONS = 8  # at once, of all requests
_ENDED_BY = (b"content-length", b"transfer-encoding")  # without these, the connection's end does


class Unavailable(Exception):
    """No usable response; the text is a clause that says why."""


class _Response:
    """Collects a response from the parser's events; interim responses before it are dropped."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.num_bytes = 0
        self.headers_complete = self.complete = self.has_end = False
        self._parser = httptools.HttpResponseParser(self)

    @property
    def status(self) -> int:
        """The status, once `headers_complete`."""
        return self._parser.get_status_code()

    def feed(self, data: bytes) -> None:
        """Parses the next bytes.

        Raises:
            Unavailable: if they are not HTTP.
        """
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            raise Unavailable("it switches to another protocol") from None
        except httptools.HttpParserError:
            raise Unavailable("its response is not HTTP") from None

    def on_message_begin(self) -> None:
        self.has_end = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.has_end |= name.lower() in _ENDED_BY

    def on_headers_complete(self) -> None:
        self.headers_complete = self.status >= HTTPStatus.OK

    def on_body(self, data: bytes) -> None:
        self.parts.append(data)
        self.num_bytes += len(data)

    def on_message_complete(self) -> None:
        self.complete = self.headers_complete


class HttpGet:
    """Sends requests to one address, each on a connection of its own."""

    def __init__(
        self, scheme: str, host: str, port: int, max_bytes: int, timeout_seconds: float
    ) -> None:
        """Stores the address and the limits.

        Args:
            scheme: "http" or "https".
            host: name or address.
            port: of the server.
            max_bytes: of a response body.
            timeout_seconds: for a whole request, connecting included.
        """
        self._host, self._port = host, port
        self._tls = ssl.create_default_context() if scheme == "https" else None
        self._max_bytes = max_bytes
        self._timeout_seconds = timeout_seconds
        self._connections = asyncio.Semaphore(_MAX_CONNECTIONS)

    async def get(self, path: str, authorization: str | None) -> tuple[int, bytes]:
        """Requests a file; arguments and errors as for `request`."""
        return await self.request("GET", path, authorization)

    async def request(
        self, method: str, path: str, authorization: str | None = None, body: bytes = b""
    ) -> tuple[int, bytes]:
        """Sends one request.

        Args:
            method: of the request.
            path: with its query, percent-encoded.
            authorization: value of the header; None for none.
            body: JSON; empty for none.

        Returns:
            The status and the body; of other statuses than 200 the body is empty.

        Raises:
            Unavailable: if there is no response within the limits.
        """
        host = f"[{self._host}]" if ":" in self._host else self._host
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}:{self._port}", "Connection: close"]
        lines += ["Accept: image/*, */*;q=0.1", "User-Agent: lite-detr-serving"]
        if authorization is not None:
            lines.append(f"Authorization: {authorization}")
        if body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        data = "\r\n".join([*lines, "", ""]).encode("latin-1") + body
        async with self._connections:
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    return await self._exchange(data)
            except TimeoutError:
                raise Unavailable(f"no response within {self._timeout_seconds:g} s") from None
            except ssl.SSLError as error:
                raise Unavailable(f"TLS failed: {error.reason or error}") from None
            except OSError as error:
                raise Unavailable(f"cannot be reached: {error.strerror or error}") from None
            except UnicodeError:  # of a name that no host can have
                raise Unavailable("its host name is not valid") from None

    async def _exchange(self, data: bytes) -> tuple[int, bytes]:
        response = _Response()
        received = 0
        async with self._connection() as (reader, writer):
            writer.write(data)
            await writer.drain()
            while not response.complete:
                chunk = await reader.read(_CHUNK_BYTES)
                if not chunk:
                    break
                received += len(chunk)
                response.feed(chunk)
                if response.headers_complete and response.status != HTTPStatus.OK:
                    return response.status, b""
                if not response.headers_complete and received > _MAX_HEAD_BYTES:
                    raise Unavailable("the head of its response is too large")
                if response.num_bytes > self._max_bytes:
                    raise Unavailable(f"the file is larger than {self._max_bytes} bytes")
        if not response.headers_complete:
            raise Unavailable("it closed the connection without a response")
        if not response.complete and response.has_end:
            raise Unavailable("it closed the connection before the end of the file")
        return response.status, b"".join(response.parts)

    @contextlib.asynccontextmanager
    async def _connection(
        self,
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection(self._host, self._port, ssl=self._tls)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()
