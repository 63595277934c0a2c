"""Reads the image of a task: a `data:` URI, or a file of the one configured Label Studio.

The service must not fetch what a request names (SSRF): only the scheme, host and port of the
setting are contacted, only paths of files below it, and redirects are not followed.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from urllib.parse import quote, unquote, urljoin, urlsplit

from service.errors import InvalidImage, short_repr
from service.label_studio.http_get import HttpGet, Unavailable
from service.label_studio.token import Token
from service.transport.base64_text import Base64Error, decode_base64
from service.transport.http_request import RequestRefused
from service.transport.json_body import JsonError, JsonText

_DATA = "data:"
_MAX_URL = 4096  # characters
# Files that were uploaded or imported, and those of storages that Label Studio serves itself.
_FILE_PATHS = ("/data/", "/storage-data/", "/tasks/")
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\]")
_SAFE = "/%:@!$&'()*+,;=~"
_UNAUTHORIZED = (401, 403)
_OK, _NOT_FOUND = 200, 404
_REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True)
class Origin:
    """The address of a Label Studio."""

    scheme: str
    host: str
    port: int
    path: str  # below which it is served; without a slash at its end

    @classmethod
    def of(cls, url: str) -> Origin:
        """Splits a URL.

        Raises:
            ValueError: for a port that is none.
        """
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return cls(parts.scheme, parts.hostname or "", port, parts.path.rstrip("/"))

    def __str__(self) -> str:
        """The URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"

    def path_of(self, text: str) -> str | None:
        """The path and query of a file's URL or path; None if it is not a file of this origin."""
        if len(text) > _MAX_URL or _FORBIDDEN.search(text):
            return None
        base = f"{self}/"
        try:
            parts = urlsplit(urljoin(base, text))
            found = Origin.of(parts.geturl())
        except ValueError:
            return None
        if "@" in parts.netloc or (found.scheme, found.host, found.port) != self._address():
            return None
        path = parts.path
        if self.path and not path.startswith(f"{self.path}/"):  # Label Studio omits its own path
            path = self.path + path
        below = unquote(unquote(path.removeprefix(self.path)))
        if not below.startswith(_FILE_PATHS) or ".." in below.split("/") or "\\" in below:
            return None
        query = f"?{quote(parts.query, _SAFE + '?')}" if parts.query else ""
        return quote(path, _SAFE) + query

    def _address(self) -> tuple[str, str, int]:
        return self.scheme, self.host, self.port


class TaskImages:
    """Reads the images of tasks."""

    def __init__(self, origin: Origin | None, token: Token | None, get: HttpGet) -> None:
        """Takes where files are read from.

        Args:
            origin: of Label Studio; None: only `data:` URIs are read.
            token: for it; None: none is sent.
            get: requests files of the origin.
        """
        self._origin = origin
        self._token = token
        self._get = get

    async def read(self, value: object, place: str) -> bytes:
        """Reads one image.

        Args:
            value: of the task's data.
            place: of the value, for error messages.

        Raises:
            InvalidImage: for a value that is no image, or is not read.
            RequestRefused: if Label Studio does not return the file.
        """
        if not isinstance(value, str | JsonText):
            raise InvalidImage(f"{place} is {short_repr(value)}; it takes the URL of an image")
        if _beginning(value).startswith(_DATA):
            try:
                if isinstance(value, JsonText):  # long
                    return await asyncio.to_thread(decode_base64, value)
                return decode_base64(value)
            except Base64Error as error:
                raise InvalidImage(f"{place}: {error}") from None
        if self._origin is None:
            raise InvalidImage(
                f"{place} is {short_repr(value)}; only data: URIs are read, because "
                "label_studio_url is not set"
            )
        path = self._origin.path_of(value) if isinstance(value, str) else None
        if path is None:
            raise InvalidImage(
                f"{place} is {short_repr(value)}; images are read from data: URIs and from files "
                f"of {self._origin} only"
            )
        try:
            return await self._file(path)
        except Unavailable as error:
            raise RequestRefused(
                502, "image_unavailable", f"{place}: {self._origin}: {error}"
            ) from None

    async def _file(self, path: str) -> bytes:
        """Requests a file; once more with another token, if the last one was refused.

        Raises:
            InvalidImage: if there is no such file.
            Unavailable: if it is not returned.
        """
        token = self._token
        authorization = None if token is None else await token.authorization()
        status, data = await self._get.get(path, authorization)
        if status in _UNAUTHORIZED and token is not None and authorization is not None:
            other = await token.renewed(authorization)
            if other is not None:
                status, data = await self._get.get(path, other)
        if status == _OK:
            return data
        if status == _NOT_FOUND:
            raise InvalidImage(f"Label Studio has no file {path[:200]}")
        if status in _UNAUTHORIZED:
            raise Unavailable(f"it refused the token ({status}): see label_studio_token_file")
        if status in _REDIRECTS:
            raise Unavailable(
                f"it redirects ({status}), which is not followed: see docs/labelling.md"
            )
        raise Unavailable(f"it responded with status {status}")


def _beginning(value: str | JsonText) -> str:
    if isinstance(value, str):
        return value[: len(_DATA)].lower()
    try:
        chunk = next(value.chunks(), b"")
    except JsonError as error:
        raise InvalidImage(str(error)) from None
    return chunk[: len(_DATA)].decode("latin-1").lower()
