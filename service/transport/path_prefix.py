"""Serves below a path such as /vision, which a reverse proxy removes from requests or not.

The pages and the OpenAPI document have relative links only, so they need no prefix themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from service.observability.proxies import TrustedProxies

_FORWARDED_PREFIX = "x-forwarded-prefix"
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)*")
_DOTS = frozenset({".", ".."})


def normalized_prefix(text: str) -> str | None:
    """The path without a slash at its end, empty for none; None: not a plain path."""
    stripped = text.strip().strip("/")
    prefix = f"/{stripped}" if stripped else ""
    usable = _PREFIX.fullmatch(prefix) and _DOTS.isdisjoint(prefix.split("/"))
    return prefix if usable else None


class PathPrefix:
    """ASGI middleware: removes the prefix from the paths of requests that have it."""

    def __init__(
        self, app: ASGIApp, root_path: str, proxies: TrustedProxies, own_paths: Iterable[str]
    ) -> None:
        """Wraps an application.

        Args:
            app: an ASGI application.
            root_path: the prefix of the setting, normalized; empty for none.
            proxies: whose `X-Forwarded-Prefix` is used.
            own_paths: of the application's routes; they have no prefix.
        """
        self._app = app
        self._root_path = root_path
        self._proxies = proxies
        self._own_paths = tuple(own_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] == "http":
            path: str = scope["path"]
            for prefix in self._prefixes(scope):
                if path == prefix:  # without a slash, relative links would lead elsewhere
                    await _add_slash(scope)(scope, receive, send)
                    return
                if path.startswith(f"{prefix}/"):
                    scope = {**scope, **_without(prefix, scope)}
                    break
        await self._app(scope, receive, send)

    def _prefixes(self, scope: Scope) -> list[str]:
        """The prefixes that the path may have, the longest one first."""
        prefixes = {self._root_path}
        client = scope.get("client")
        if client is not None and self._proxies.trusts(client[0]):
            for value in Headers(scope=scope).getlist(_FORWARDED_PREFIX):
                # Each of several proxies adds its own.
                parts = [normalized_prefix(part) or "" for part in value.split(",")]
                prefixes.update(p for p in ("".join(parts), *parts) if not self._is_own(p))
        return sorted(prefixes - {""}, key=len, reverse=True)

    def _is_own(self, prefix: str) -> bool:
        """Whether paths of the application begin with the prefix: it must have been removed."""
        return any(is_below(path, prefix) for path in self._own_paths)


def is_below(path: str, prefix: str) -> bool:
    """Whether a path is the prefix or below it."""
    return path == prefix or path.startswith(f"{prefix}/")


def _without(prefix: str, scope: Scope) -> dict[str, object]:
    raw_path: bytes = scope.get("raw_path") or b""
    return {
        "path": scope["path"][len(prefix) :],
        "raw_path": raw_path.removeprefix(prefix.encode()),
    }


def _add_slash(scope: Scope) -> RedirectResponse:
    """A redirect, relative: the path that the client requested may have further prefixes."""
    name = scope["path"].rpartition("/")[2]
    query = scope["query_string"].decode("latin-1")
    return RedirectResponse(f"{name}/?{query}" if query else f"{name}/")
