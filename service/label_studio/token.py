"""The access token for Label Studio: sent as it is, or exchanged for one that expires.

A personal access token is a JWT that only gets access tokens of some minutes; a legacy token is 40
hex digits.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import orjson

from model.data.input_files import read_text_file
from service.label_studio.http_get import HttpGet, Unavailable
from service.settings import SettingsError

_TOKEN = re.compile(r"[\x21-\x7e]+")
_JWT_DOTS = 2
_OK = 200
_KEPT_SECONDS = 120.0  # an access token is valid for five minutes
_REFRESH_PATH = "/api/token/refresh"


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


class Token:
    """Gives the Authorization header of requests."""

    def __init__(self, token: str, get: HttpGet, path: str) -> None:
        """Takes a token.

        Args:
            token: legacy, or personal.
            get: for exchanging a personal one.
            path: below which Label Studio is served.
        """
        self._token = token
        self._get = get
        self._path = path + _REFRESH_PATH
        self.expires = token.count(".") == _JWT_DOTS
        self._access, self._received = "", 0.0

    async def authorization(self, *, renew: bool = False) -> str:
        """The header's value.

        Args:
            renew: whether the last value was refused.

        Raises:
            Unavailable: if Label Studio does not exchange the token.
        """
        if not self.expires:
            return f"Token {self._token}"
        if renew or not self._access or time.monotonic() - self._received > _KEPT_SECONDS:
            self._access, self._received = await self._exchange(), time.monotonic()
        return f"Bearer {self._access}"

    async def _exchange(self) -> str:
        body = orjson.dumps({"refresh": self._token})
        status, data = await self._get.request("POST", self._path, body=body)
        if status != _OK:
            raise Unavailable(f"it refused the token ({status}): see label_studio_token_file")
        try:
            access = orjson.loads(data)["access"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            access = None
        if not isinstance(access, str) or not _TOKEN.fullmatch(access):
            raise Unavailable("its response to the token has no access token")
        return access
