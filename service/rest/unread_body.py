"""Answers given before the body is whole: said at once, and yet heard by the client.

Most clients send their whole body before they read. A server that answers early (413, 415, 422)
and closes makes their kernel throw the answer away with the connection. So the rest of the body is
received and dropped for a while after such an answer, and the connection ends only then.
"""

from __future__ import annotations

import asyncio

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_MAX_PAUSE_S = 2.0  # between two chunks of a body that nobody wants
_MAX_LINGER_S = 30.0


class DiscardUnreadBody:
    """Drops the rest of a body that was answered early, then closes the connection."""

    def __init__(self, app: ASGIApp) -> None:
        """Wraps an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        body_ended = not _has_body(headers)
        # A client that waits for "100 Continue" sends its body only once we ask for it.
        body_held_back = b"expect" in headers

        async def watched_receive() -> Message:
            nonlocal body_ended, body_held_back
            message = await receive()
            body_held_back = False
            body_ended = not message.get("more_body", False)
            return message

        async def lingering_send(message: Message) -> None:
            if not body_ended and message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Connection"] = "close"
            if body_ended or body_held_back or not _is_last(message):
                await send(message)
                return
            # The client has its whole answer with this; only the end is held back.
            await send({**message, "more_body": True})
            await _drop_body(watched_receive)
            await send({"type": "http.response.body", "body": b""})

        await self._app(scope, watched_receive, lingering_send)


def _has_body(headers: dict[bytes, bytes]) -> bool:
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"


def _is_last(message: Message) -> bool:
    return message["type"] == "http.response.body" and not message.get("more_body", False)


async def _drop_body(receive: Receive) -> None:
    """Receives until the body ends, pauses or has taken too long."""
    try:
        async with asyncio.timeout(_MAX_LINGER_S):
            more = True
            while more:
                async with asyncio.timeout(_MAX_PAUSE_S):
                    message = await receive()
                more = message.get("more_body", False)
    except TimeoutError:
        return
