"""API keys: stored as hashes, compared in constant time.

    key file --read--> KeyRing <--check-- the guards of HTTP and gRPC

A key is 256 random bits, so its SHA-256 hash cannot be reversed by trying likely keys; a slow
password hash is not needed.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from model.data.input_files import read_text_file

_KEY_PREFIX = "ldk_"  # recognised by people and secret scanners
_HASH_PREFIX = "sha256:"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")
_FIELDS = "NAME SCOPES sha256:HEX"


class Scope(enum.StrEnum):
    """What a key gives access to."""

    DETECT = "detect"  # detection and model metadata
    METRICS = "metrics"  # GET /metrics
    ADMIN = "admin"  # loading and unloading models, and everything else


class KeyFileError(ValueError):
    """A key file that cannot be used; the message names the file and the line."""


class Unauthenticated(Exception):
    """No key was sent, or an unknown one."""


class Forbidden(Exception):
    """The key lacks the required scope."""


@dataclass(frozen=True)
class ApiKey:
    """One line of a key file."""

    name: str  # for logs; the key itself is not stored
    scopes: frozenset[Scope]
    digest: bytes

    def allows(self, scope: Scope) -> bool:
        """Whether the key gives access to what requires `scope`."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


class KeyRing:
    """The keys of a key file.

    Attributes:
        generation: grows whenever the file is read again; checks of before may not hold any more.
    """

    def __init__(self, path: Path) -> None:
        """Reads the file.

        Args:
            path: one key per line, as written by `key_line`; lines that begin with # are comments.

        Raises:
            KeyFileError: if it cannot be read, has no key or an invalid line.
        """
        self._path = path
        self._keys = _read(path)
        self.generation = 0

    @property
    def keys(self) -> tuple[ApiKey, ...]:
        """All keys."""
        return self._keys

    def reload(self) -> int:
        """Reads the file again; the keys do not change if that fails.

        Returns:
            The number of keys.

        Raises:
            KeyFileError: if the file cannot be used.
        """
        self._keys = _read(self._path)
        self.generation += 1
        return len(self._keys)

    def check(self, presented: str | None, scope: Scope) -> ApiKey:
        """Checks a client's key; the time does not depend on how much of a wrong key matches.

        Args:
            presented: the key that the client sent; None if it sent none.
            scope: the required scope.

        Returns:
            The matching key.

        Raises:
            Unauthenticated: if there is no key, or an unknown one.
            Forbidden: if the key lacks the scope.
        """
        if presented is None:
            raise Unauthenticated("an API key is required: Authorization: Bearer KEY")
        digest = hashlib.sha256(presented.encode("utf-8", "surrogateescape")).digest()
        found = None
        for key in self._keys:  # no early exit: constant time
            if hmac.compare_digest(key.digest, digest):
                found = key
        if found is None:
            raise Unauthenticated("the API key is unknown")
        if not found.allows(scope):
            raise Forbidden(f"the API key {found.name!r} lacks the scope {scope.value!r}")
        return found


def presented_key(header: Callable[[str], str | None]) -> str | None:
    """Returns the key of a request: `Authorization: Bearer KEY`, or `X-API-Key: KEY`.

    It may also be the password of basic authentication, for clients that have no other (Label
    Studio); the user name is not checked.

    Args:
        header: returns a header (or gRPC metadata) by its lower-case name.
    """
    kind, _, key = (header("authorization") or "").partition(" ")
    if kind.lower() == "bearer" and key.strip():
        return key.strip()
    if kind.lower() == "basic" and (password := _password(key.strip())):
        return password
    return header("x-api-key")


def _password(credentials: str) -> str:
    """The password of basic authentication (RFC 7617); empty if there is none."""
    try:
        decoded = base64.b64decode(credentials, validate=True).decode()
    except ValueError:
        return ""
    return decoded.partition(":")[2]


def new_key() -> str:
    """Generates a key."""
    return _KEY_PREFIX + secrets.token_urlsafe(32)


def key_line(name: str, scopes: Iterable[Scope], key: str) -> str:
    """Returns the line of a key file for a key.

    Raises:
        ValueError: if the name has other characters than letters, digits, ".", "-" and "_".
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"invalid name {name!r}: use 1 to 64 letters, digits, '.', '-' or '_'")
    digest = hashlib.sha256(key.encode()).hexdigest()
    return f"{name} {','.join(sorted(scopes))} {_HASH_PREFIX}{digest}"


def _read(path: Path) -> tuple[ApiKey, ...]:
    try:
        lines = read_text_file(path).splitlines()
    except OSError as error:
        reason = error.strerror or error
        raise KeyFileError(f"{path}: cannot be read: {reason}") from error
    except UnicodeDecodeError as error:
        raise KeyFileError(f"{path}: cannot be read: {error}") from error
    keys: dict[str, ApiKey] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            key = _parse(line, f"{path}, line {number}")
            if key.name in keys:
                raise KeyFileError(f"{path}, line {number}: duplicate name {key.name!r}")
            keys[key.name] = key
    if not keys:
        raise KeyFileError(f"{path}: has no key; create one with `lite-detr key NAME`")
    return tuple(keys.values())


def _parse(line: str, place: str) -> ApiKey:
    fields = line.split()
    if len(fields) != len(_FIELDS.split()):
        raise KeyFileError(f"{place}: expected {_FIELDS}, got {len(fields)} fields")
    name, scopes, hashed = fields
    if not _NAME.fullmatch(name):
        raise KeyFileError(f"{place}: invalid name {name!r}")
    try:
        opened = frozenset(Scope(scope) for scope in scopes.split(","))
    except ValueError:
        known = ", ".join(Scope)
        raise KeyFileError(f"{place}: invalid scopes {scopes!r}; known are {known}") from None
    digest = hashed.removeprefix(_HASH_PREFIX)
    if digest == hashed or not _HEX_DIGEST.fullmatch(digest):
        raise KeyFileError(f"{place}: the third field must be {_HASH_PREFIX} and 64 hex digits")
    return ApiKey(name, opened, bytes.fromhex(digest))
