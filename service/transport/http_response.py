"""A large HTTP response, counted in `BodyMemory` until its client has read it.

adapter --encoded image--> CountedResponse --part by part--> connection
"""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.transport.http_body import BodyAccount
from service.transport.http_request import ClientGone, Connection

_PART_BYTES = 1 << 16  # the transport holds about two of them


class CountedResponse(Response):
    """A response that is sent in parts, each once the client has read most of those before it.

    Its bytes stay counted meanwhile. When the memory is needed, it gives way to new requests as a
    body that arrives slowly does, and its connection is closed.
    """

    def __init__(self, content: bytes, media_type: str, account: BodyAccount) -> None:
        """Takes the encoded response.

        Args:
            content: the whole response.
            media_type: its type.
            account: holds the bytes of `content`; released when the response is sent.
        """
        super().__init__(content, media_type=media_type)
        self._account = account

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the response.

        Raises:
            ClientGone: if it gave way to other requests.
        """
        connection: Connection | None = scope.get("state", {}).get("connection")
        gives_way = False

        def give_up() -> None:
            nonlocal gives_way
            gives_way = True
            if connection is not None:
                connection.abort()

        memory, body = self._account.memory, memoryview(self.body)
        memory.begin(self._account, give_up)
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            for begin in range(0, max(1, len(body)), _PART_BYTES):
                end = begin + _PART_BYTES
                part, more = bytes(body[begin:end]), end < len(body)
                await send({"type": "http.response.body", "body": part, "more_body": more})
                if gives_way:
                    raise ClientGone
        finally:
            memory.end(self._account)
            self._account.release()
