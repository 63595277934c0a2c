"""Discards the rest of a body after an early response, so that the client can read the response.

Most clients send their whole body before they read. If a server responds early (413, 415, 422)
and closes, the client's kernel discards the response together with the connection. So after an
early response the rest of the body is received and dropped for a limited time, and only then the
connection is closed.
"""

from __future__ import annotations

import asyncio

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_MAX_PAUSE_S = 2.0  # between two chunks of a discarded body
_MAX_DISCARD_S = 30.0


class DiscardUnreadBody:
    """ASGI middleware: discards the rest of a body, then closes the connection."""

    def __init__(self, app: ASGIApp) -> None:
        """Wraps an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        body_ended = not _has_body(headers)
        # A client that waits for "100 Continue" sends its body only once we receive.
        body_held_back = headers.get(b"expect", b"").lower() == b"100-continue"

        async def watched_receive() -> Message:
            nonlocal body_ended, body_held_back
            message = await receive()
            body_held_back = False
            body_ended = not message.get("more_body", False)
            return message

        async def delayed_send(message: Message) -> None:
            if not body_ended and message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Connection"] = "close"
            if body_ended or body_held_back or not _is_last(message):
                await send(message)
                return
            # This sends the whole response; only its end is delayed.
            await send({**message, "more_body": True})
            await _discard_body(watched_receive)
            await send({"type": "http.response.body", "body": b""})

        await self._app(scope, watched_receive, delayed_send)


def _has_body(headers: dict[bytes, bytes]) -> bool:
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"


def _is_last(message: Message) -> bool:
    return message["type"] == "http.response.body" and not message.get("more_body", False)


async def _discard_body(receive: Receive) -> None:
    """Receives until the body ends, pauses or takes too long."""
    try:
        async with asyncio.timeout(_MAX_DISCARD_S):
            more = True
            while more:
                async with asyncio.timeout(_MAX_PAUSE_S):
                    message = await receive()
                more = message.get("more_body", False)
    except TimeoutError:
        return
