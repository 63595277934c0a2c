"""The access token for Label Studio: sent as it is, or exchanged for one that expires.

A personal access token is a JWT that only gets access tokens of some minutes; a legacy token is 40
hex digits. The file is read again when it has changed, and when Label Studio refuses the token: the
token can be replaced while the service runs.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from pathlib import Path

import orjson
import structlog

from model.data.input_files import read_text_file
from service.access.watched_files import WatchedFiles
from service.label_studio.http_get import HttpGet, Unavailable
from service.settings import SettingsError

_TOKEN = re.compile(r"[\x21-\x7e]+")
_JWT_DOTS = 2
_OK = 200
_UNAUTHORIZED = (401, 403)
_KEPT_SECONDS = 120.0  # an access token is valid for five minutes
_FAILURE_SECONDS = 2.0  # for which an exchange that failed is not repeated
_REFRESH_PATH = "/api/token/refresh"

_log = structlog.get_logger(__name__)


def read_token(path: Path) -> str:
    """Reads the token file.

    Raises:
        SettingsError: if it cannot be read, or is not one token.
    """
    name = f"label_studio_token_file={str(path)!r}"
    try:
        text = read_text_file(path).strip()
    except OSError as error:
        raise SettingsError(f"{name}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{name}: is not text") from error
    if not _TOKEN.fullmatch(text):
        raise SettingsError(f"{name}: must have one token, without spaces")
    return text


def _is_personal(token: str) -> bool:
    """Whether a token must be exchanged."""
    return token.count(".") == _JWT_DOTS


class TokenFile:
    """The token of a file, which may be replaced while it is used; for several threads."""

    def __init__(self, path: Path) -> None:
        """Reads the file.

        Raises:
            SettingsError: if it cannot be read, or is not one token.
        """
        self._path = path
        self._file = WatchedFiles(path)
        self._lock = threading.Lock()
        self._problem = ""  # the last one that was logged
        self.token = read_token(path)

    def read_if_changed(self) -> None:
        """Reads a file that has changed again, once it was the same for two calls."""
        with self._lock:
            if self._file.changed():
                self._read()

    def read_again(self) -> None:
        """Reads the file again; an error is logged, and the previous token stays in use."""
        with self._lock:
            self._read()

    def _read(self) -> None:
        self._file.note_read()
        try:
            token = read_token(self._path)
        except SettingsError as error:
            if str(error) != self._problem:
                _log.error(
                    "Label Studio's token not reloaded; the previous one stays in use",
                    error=str(error),
                )
            self._problem = str(error)
            return
        self._problem = ""
        if token != self.token:
            _log.info("Label Studio's token reloaded")
        self.token = token


class Token:
    """Gives the Authorization header of requests."""

    def __init__(self, file: TokenFile, get: HttpGet, path: str) -> None:
        """Takes a token.

        Args:
            file: of a legacy token, or of a personal one.
            get: for exchanging a personal one.
            path: below which Label Studio is served.
        """
        self._file = file
        self._get = get
        self._path = path + _REFRESH_PATH
        self._exchanging = asyncio.Lock()
        # The last access token, the personal one that it is for, and when it was received.
        self._access, self._exchanged, self._received = "", "", 0.0
        self._failure, self._failed = "", 0.0  # of the last exchange, and when

    async def authorization(self) -> str:
        """The header's value.

        Raises:
            Unavailable: if Label Studio does not exchange the token.
        """
        await asyncio.to_thread(self._file.read_if_changed)
        return await self._header()

    async def renewed(self, refused: str) -> str | None:
        """Another value of the header, after Label Studio has refused one.

        Args:
            refused: the value.

        Returns:
            None if there is no other.

        Raises:
            Unavailable: if Label Studio does not exchange the token.
        """
        await asyncio.to_thread(self._file.read_again)
        header = await self._header(refused)
        return None if header == refused else header

    async def _header(self, refused: str = "") -> str:
        async with self._exchanging:  # other requests wait, and use the same access token
            token = self._file.token
            if not _is_personal(token):
                return f"Token {token}"
            is_old = time.monotonic() - self._received > _KEPT_SECONDS
            if is_old or token != self._exchanged or f"Bearer {self._access}" == refused:
                if self._failure and time.monotonic() - self._failed < _FAILURE_SECONDS:
                    raise Unavailable(self._failure)  # those that waited do not wait again
                await self._renew(token)
            if not _is_personal(self._file.token):  # replaced meanwhile
                return f"Token {self._file.token}"
            return f"Bearer {self._access}"

    async def _renew(self, token: str) -> None:
        try:
            self._access, self._exchanged = await self._exchange(token)
        except Unavailable as error:
            self._failure, self._failed = str(error), time.monotonic()
            raise
        self._failure, self._received = "", time.monotonic()

    async def _exchange(self, token: str) -> tuple[str, str]:
        """Returns an access token, and the personal one that it is for.

        Raises:
            Unavailable: if Label Studio gives none.
        """
        status, data = await self._refresh(token)
        if status in _UNAUTHORIZED:
            await asyncio.to_thread(self._file.read_again)
            if self._file.token != token:
                token = self._file.token
                if not _is_personal(token):
                    return "", token
                status, data = await self._refresh(token)
        if status != _OK:
            raise Unavailable(f"it refused the token ({status}): see label_studio_token_file")
        try:
            access = orjson.loads(data)["access"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            access = None
        if not isinstance(access, str) or not _TOKEN.fullmatch(access):
            raise Unavailable("its response to the token has no access token")
        return access, token

    async def _refresh(self, token: str) -> tuple[int, bytes]:
        return await self._get.request("POST", self._path, body=orjson.dumps({"refresh": token}))
