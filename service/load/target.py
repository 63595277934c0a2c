"""The service that gets the load: its address, and the checks before it."""

from __future__ import annotations

import http.client
import re
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

import orjson

from service.load.loop import Load, post_request
from service.load.steps import Generator

_URL = re.compile(r"[\x21-\x7e]*")
_CONNECTIONS = 256
_OPENED_FIRST = 16
_CONNECT_SECONDS = 10.0
_RESPONSE_SECONDS = 60.0
_MAX_RESPONSE_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 20
_OK, _UNAUTHENTICATED, _FORBIDDEN = 200, 401, 403
_BUSY = (429, 503)


class TargetError(Exception):
    """The load cannot start; the text says why."""


@dataclass(frozen=True)
class ImageFile:
    """An image to send."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Checked:
    """What the checks found."""

    model: str  # name and version
    usual_ms: float  # latency of a request without load, the shortest of those to the images


class Target(Protocol):
    """A service over one protocol."""

    def check(self, images: Sequence[ImageFile]) -> Checked:
        """Sends each image once.

        Raises:
            TargetError: if there is no usable service, or it refuses an image.
        """

    def open(self, images: Sequence[ImageFile]) -> AbstractAsyncContextManager[Generator]:
        """Opens a generator for one step."""


@dataclass(frozen=True)
class Address:
    """A URL of a service."""

    url: str
    tls: bool
    host: str
    port: int
    path: str  # prefix of its paths, without a slash at its end

    @classmethod
    def of(cls, url: str) -> Address:
        """Splits a URL.

        Raises:
            ValueError: for a text that is none.
        """
        if not _URL.fullmatch(url):
            raise ValueError("a URL has ASCII characters without spaces; others are written as %XX")
        parts = urlsplit(url)
        if "@" in parts.netloc:  # not repeated, because it may have a password
            raise ValueError("the URL has a user name, which is not sent: see --api-key")
        if parts.query or parts.fragment:
            raise ValueError(f"{url!r} has a query or a fragment, which are not sent")
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"{url!r} is not a URL such as http://localhost:8000")
        tls = parts.scheme == "https"
        path = parts.path.rstrip("/").removesuffix("/detect")
        try:
            port = parts.port or (443 if tls else 80)
        except ValueError:
            raise ValueError(f"the port of {url!r} is not a number up to 65535") from None
        return cls(url, tls, parts.hostname, port, path)

    @property
    def host_and_port(self) -> str:
        """As in the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class HttpTarget:
    """POST /detect."""

    def __init__(self, address: Address, key: str | None) -> None:
        """Takes the address, and the API key if one is required."""
        self._address = address
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._tls = ssl.create_default_context() if address.tls else None

    def check(self, images: Sequence[ImageFile]) -> Checked:
        """Reads the model's name, and sends each image once; errors as for `Target`."""
        status, document = self._request("GET", "/v1/models")
        self._check_key(status)
        models = document.get("models") if isinstance(document, dict) else None
        if status != _OK or not isinstance(models, list) or not models:
            raise TargetError(
                f"{self._address.url} is not a Lite DETR service: GET /v1/models has the status "
                f"{status}, and no models"
            )
        latencies = []
        for image in images:
            started = time.perf_counter()
            status, document = self._request("POST", "/detect", image.data)
            latencies.append((time.perf_counter() - started) * 1000)
            self._check_key(status)
            if status in _BUSY:
                raise TargetError(f"the service is not ready: {_detail(document)}")
            if status != _OK:
                raise TargetError(
                    f"the service refuses {image.name} with status {status}: {_detail(document)}"
                )
        found = models[0] if isinstance(models[0], dict) else {}
        return Checked(f"{found.get('name')} {found.get('version')}", min(latencies))

    @asynccontextmanager
    async def open(self, images: Sequence[ImageFile]) -> AsyncIterator[Generator]:
        """Opens a generator with some connections."""
        address = self._address
        headers = self._headers | {"Content-Type": "application/octet-stream"}
        path = f"{address.path}/detect"
        requests = [
            post_request(path, image.data, headers, address.host_and_port) for image in images
        ]
        load = Load(address.port, requests, _CONNECTIONS, address.host, self._tls)
        await load.open_connections(_OPENED_FIRST)
        try:
            yield load
        finally:
            load.close()

    def _check_key(self, status: int) -> None:
        if status == _UNAUTHENTICATED:
            given = "refuses the key" if self._headers else "requires an API key"
            raise TargetError(f"the service {given}: see --api-key")
        if status == _FORBIDDEN:
            raise TargetError("the API key lacks the scope detect")

    def _request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
        address = self._address
        connection = (
            http.client.HTTPConnection(address.host, address.port, timeout=_CONNECT_SECONDS)
            if self._tls is None
            else http.client.HTTPSConnection(
                address.host, address.port, timeout=_CONNECT_SECONDS, context=self._tls
            )
        )
        try:
            connection.connect()
            connection.sock.settimeout(_RESPONSE_SECONDS)
            headers = self._headers | {"Content-Type": "application/octet-stream"}
            connection.request(method, address.path + path, body, headers)
            response = connection.getresponse()
            data = _read(response)
        except http.client.HTTPException as error:
            hint = "" if address.tls else "; the URL of a service with TLS begins with https"
            raise TargetError(
                f"{address.url} is not a Lite DETR service: its response cannot be read "
                f"({error!r}){hint}"
            ) from error
        except TimeoutError as error:
            raise TargetError(f"{address.url} does not respond") from error
        except (OSError, UnicodeError) as error:  # the latter for a name that no host can have
            reason = getattr(error, "strerror", None) or error
            raise TargetError(f"cannot connect to {address.url}: {reason}") from error
        finally:
            connection.close()
        try:
            return response.status, orjson.loads(data)
        except orjson.JSONDecodeError:
            return response.status, None


def _read(response: http.client.HTTPResponse) -> bytes:
    """Reads a body within limits of size and time; the socket's limit is that of each part."""
    until = time.monotonic() + _RESPONSE_SECONDS
    data = bytearray()
    while chunk := response.read1(_CHUNK_BYTES):
        data += chunk
        if len(data) > _MAX_RESPONSE_BYTES:
            raise http.client.HTTPException(f"more than {_MAX_RESPONSE_BYTES} bytes")
        if time.monotonic() > until:
            raise TimeoutError
    return bytes(data)


def _detail(document: Any) -> str:
    detail = document.get("detail") if isinstance(document, dict) else None
    return detail if isinstance(detail, str) else "the response has no reason"
