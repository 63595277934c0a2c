"""Who may use the service: API keys, kept as hashes, looked up in constant time.

    key file --read--> KeyRing <--check-- the guards of HTTP and gRPC (one rule for all protocols)

Keys are 256 random bits, so a plain SHA-256 of one gives nothing away: there is no list of likely
keys that could be tried, which is what slow password hashes are for.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

_KEY_PREFIX = "ldk_"  # so that people and secret scanners know one when they see it
_HASH_PREFIX = "sha256:"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")
_FIELDS = "NAME SCOPES sha256:HEX"


class Scope(enum.StrEnum):
    """What a key opens."""

    DETECT = "detect"  # detection, and what there is to know about the model
    METRICS = "metrics"  # for a scraper, which should be able to do nothing else
    ADMIN = "admin"  # loading and unloading, and everything else


class KeyFileError(ValueError):
    """A key file that cannot be used; the message names the file and the line."""


class Unauthenticated(Exception):
    """No key, or one that nobody has."""


class Forbidden(Exception):
    """A key that does not open this."""


@dataclass(frozen=True)
class ApiKey:
    """One line of a key file."""

    name: str  # for logs; the key itself is nowhere
    scopes: frozenset[Scope]
    digest: bytes

    def allows(self, scope: Scope) -> bool:
        """Whether it is enough for something that asks for `scope`."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


class KeyRing:
    """The keys of a file; `reload` reads it again."""

    def __init__(self, path: Path) -> None:
        """Reads the file.

        Args:
            path: one key a line, as `key_line` writes it; lines that begin with # are comments.

        Raises:
            KeyFileError: where it cannot be read, or holds no key or a bad line.
        """
        self._path = path
        self._keys = _read(path)

    @property
    def keys(self) -> tuple[ApiKey, ...]:
        """Them all; of each key only its hash is known."""
        return self._keys

    def reload(self) -> int:
        """Takes the keys that the file holds now; where it cannot be used, those before stay.

        Returns:
            How many there are.

        Raises:
            KeyFileError: where it cannot be used.
        """
        self._keys = _read(self._path)
        return len(self._keys)

    def check(self, presented: str | None, scope: Scope) -> ApiKey:
        """The key that was presented, where it opens what is asked for.

        The time does not depend on how much of a wrong key was right.

        Args:
            presented: the key as the client sent it; None where it sent none.
            scope: what it must open.

        Raises:
            Unauthenticated: for no key, or an unknown one.
            Forbidden: for a key without the scope.
        """
        if presented is None:
            raise Unauthenticated("an API key is needed: Authorization: Bearer KEY")
        digest = hashlib.sha256(presented.encode("utf-8", "surrogateescape")).digest()
        found = None
        for key in self._keys:  # all of them, whichever fits
            if hmac.compare_digest(key.digest, digest):
                found = key
        if found is None:
            raise Unauthenticated("the API key is not known")
        if not found.allows(scope):
            raise Forbidden(f"the API key {found.name!r} lacks the scope {scope.value!r}")
        return found


def presented_key(header: Callable[[str], str | None]) -> str | None:
    """The key of a request: `Authorization: Bearer KEY`, or `X-API-Key: KEY`.

    Args:
        header: gives a header (or gRPC metadata) by its name in small letters.
    """
    kind, _, key = (header("authorization") or "").partition(" ")
    if kind.lower() == "bearer" and key.strip():
        return key.strip()
    return header("x-api-key")


def new_key() -> str:
    """A key that nobody can guess."""
    return _KEY_PREFIX + secrets.token_urlsafe(32)


def key_line(name: str, scopes: Iterable[Scope], key: str) -> str:
    """The line of a key file for a key.

    Raises:
        ValueError: for a name with anything but letters, digits, dots, dashes and underscores.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"the name {name!r} needs 1 to 64 letters, digits, dots, - or _")
    digest = hashlib.sha256(key.encode()).hexdigest()
    return f"{name} {','.join(sorted(scopes))} {_HASH_PREFIX}{digest}"


def _read(path: Path) -> tuple[ApiKey, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFileError(f"{path}: cannot be read: {error}") from error
    keys: dict[str, ApiKey] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            key = _parse(line, f"{path}, line {number}")
            if key.name in keys:
                raise KeyFileError(f"{path}, line {number}: {key.name!r} is there twice")
            keys[key.name] = key
    if not keys:
        raise KeyFileError(f"{path}: holds no key; make one with `lite-detr key NAME`")
    return tuple(keys.values())


def _parse(line: str, place: str) -> ApiKey:
    fields = line.split()
    if len(fields) != len(_FIELDS.split()):
        raise KeyFileError(f"{place}: has {len(fields)} fields, not {_FIELDS}")
    name, scopes, hashed = fields
    if not _NAME.fullmatch(name):
        raise KeyFileError(f"{place}: {name!r} is no name of a key")
    try:
        opened = frozenset(Scope(scope) for scope in scopes.split(","))
    except ValueError:
        known = ", ".join(Scope)
        raise KeyFileError(f"{place}: scopes are {scopes!r}; known are {known}") from None
    digest = hashed.removeprefix(_HASH_PREFIX)
    if digest == hashed or not _HEX_DIGEST.fullmatch(digest):
        raise KeyFileError(f"{place}: the third field is no {_HASH_PREFIX} and 64 hex digits")
    return ApiKey(name, opened, bytes.fromhex(digest))
