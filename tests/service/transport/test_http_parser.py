"""Offers to upgrade are ignored: the body belongs to its request, the next bytes to the next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import orjson
import pytest

from service.transport.http_parser import RequestParser
from service.transport.http_server import HttpServer, listen
from tests.support.fake_service import fake_settings

BODY = b"GET /inner HTTP/1.1\r\nHost: x\r\n\r\n"  # would be a request if it were parsed as one
CHUNKED_BODY = b"a\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (BODY[:10], len(BODY) - 10, BODY[10:])
NEXT = b"POST /next HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"
FRAMINGS = {
    "length": (b"Content-Length: %d" % len(BODY), BODY),
    "chunked": (b"Transfer-Encoding: chunked", CHUNKED_BODY),
}
OFFERS: dict[str, tuple[bytes, ...]] = {
    "h2c": (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"),
    "websocket": (b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13"),
    "TLS": (b"Upgrade: TLS/1.0", b"Connection: upgrade"),
    "several values": (b"connection: keep-alive, UPGRADE", b"upgrade: h2c, websocket, TLS/1.3"),
    "several headers": (
        b"CONNECTION: keep-alive",
        b"Connection: uPgRaDe",
        b"Upgrade: foo/2",
        b"Upgrade: h2c",
    ),
    "an unknown protocol": (b"Connection:upgrade", b"Upgrade:\t;;;"),
    "no protocol": (b"Connection: upgrade", b"Upgrade:"),
}


async def _echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    content = orjson.dumps([scope["method"], scope["path"], body.decode()]) + b"\n"
    headers = [(b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


@pytest.fixture
async def port() -> AsyncIterator[int]:
    server = HttpServer(_echo, fake_settings(), listen("127.0.0.1", 0))
    task = asyncio.create_task(server.run_until_drained())
    yield server.port
    server.drain()
    await asyncio.wait_for(task, 60)


async def _exchange(port: int, packets: Sequence[bytes]) -> list[Any]:
    """Sends packets, each after the previous one was parsed, and returns what was echoed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for packet in packets:
        writer.write(packet)
        await writer.drain()
        for _ in range(20):
            await asyncio.sleep(0)
    async with asyncio.timeout(60):
        received = await reader.read()
    writer.close()
    assert b"HTTP/1.1 101" not in received, received
    return [orjson.loads(line) for line in received.split(b"\n") if line.startswith(b"[")]


def _head(*headers: bytes, method: bytes = b"POST", target: bytes = b"/first?x=1") -> bytes:
    return b"\r\n".join((method + b" " + target + b" HTTP/1.1", b"Host: x", *headers, b"", b""))


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("framing", FRAMINGS)
async def test_a_body_after_an_offer_belongs_to_its_request(
    port: int, offer: str, framing: str
) -> None:
    header, body = FRAMINGS[framing]
    head = _head(*OFFERS[offer], header)
    both = [["POST", "/first", BODY.decode()], ["POST", "/next", "hi"]]
    middle = len(head) // 2
    for packets in (
        [head + body + NEXT],
        [head, body, NEXT],
        [head, body + NEXT],
        [head + body[:7], body[7:12], body[12:] + NEXT],
        [head[:middle], head[middle:] + body, NEXT],
        [head[:-1], head[-1:] + body + NEXT[:20], NEXT[20:]],
        [(head + body) * 3 + NEXT],
        [head + body, head, body, NEXT],
    ):
        repeats = b"".join(packets).count(b"/first")
        assert await _exchange(port, packets) == both[:1] * repeats + both[1:], packets


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
async def test_a_request_without_a_body_is_followed_by_the_next_one(
    port: int, offer: str, method: str
) -> None:
    head = _head(*OFFERS[offer], method=method.encode())
    for packets in ([head + NEXT], [head, NEXT], [head[:-2], head[-2:], NEXT]):
        assert await _exchange(port, packets) == [
            [method, "/first", ""],
            ["POST", "/next", "hi"],
        ]


async def test_each_byte_may_come_in_its_own_packet(port: int) -> None:
    header, body = FRAMINGS["chunked"]
    data = _head(*OFFERS["h2c"], header) + body + NEXT
    packets = [data[index : index + 1] for index in range(len(data))]
    assert await _exchange(port, packets) == [
        ["POST", "/first", BODY.decode()],
        ["POST", "/next", "hi"],
    ]


async def test_the_connection_ends_where_the_client_says_so(port: int) -> None:
    head = _head(b"Connection: close, Upgrade", b"Upgrade: h2c", b"Content-Length: 2")
    assert await _exchange(port, [head, b"ab"]) == [["POST", "/first", "ab"]]
    old = head.replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"close, ", b"")
    assert await _exchange(port, [old, b"ab"]) == [["POST", "/first", "ab"]]


async def test_a_client_that_waits_for_100_continue_may_offer_an_upgrade(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_head(*OFFERS["h2c"], b"Expect: 100-continue", b"Content-Length: 2"))
    async with asyncio.timeout(60):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"ab")
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        assert orjson.loads(await reader.readline()) == ["POST", "/first", "ab"]
    writer.close()


@pytest.mark.parametrize(
    ("header", "body"),
    [
        (b"Transfer-Encoding: chunked", b"zz\r\n"),
        (b"Transfer-Encoding: gzip", b"abc"),
        (b"Content-Length: 3\r\nTransfer-Encoding: chunked", b"0\r\n\r\n"),
        (b"Content-Length: 3\r\nContent-Length: 4", b"abc"),
    ],
)
async def test_a_malformed_body_after_an_offer_is_refused(
    port: int, header: bytes, body: bytes
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_head(*OFFERS["h2c"], header))
    writer.write(body + NEXT)
    async with asyncio.timeout(60):
        received = await reader.read()
    writer.close()
    assert received.startswith(b"HTTP/1.1 400") and received.count(b"HTTP/1.1 ") == 1, received


@pytest.mark.parametrize("headers", [(), (b"Content-Length: 3",), OFFERS["h2c"]])
async def test_nothing_after_the_head_of_a_connect_is_parsed(
    port: int, headers: tuple[bytes, ...]
) -> None:
    head = _head(*headers, method=b"CONNECT", target=b"/first")
    for packets in ([head + NEXT], [head, NEXT]):
        assert await _exchange(port, packets) == [["CONNECT", "/first", ""]]


def test_the_parser_calls_each_event_once() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.headers: list[tuple[bytes, bytes]] = []
            self.events: list[Any] = []

        def on_message_begin(self) -> None:
            self.headers.clear()
            self.events.append("begin")

        def on_url(self, url: bytes) -> None:
            self.events.append(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self.headers.append((name.lower(), value))

        def on_headers_complete(self) -> None:
            self.events.append(len(self.headers))

        def on_body(self, body: bytes) -> None:
            self.events.append(body)

        def on_message_complete(self) -> None:
            if not parser.ignores_upgrade():
                self.events.append("end")

    recorder = Recorder()
    parser = RequestParser(recorder)
    head = _head(*OFFERS["websocket"], b"Content-Length: 2")
    parser.feed_data(head + b"ab" + NEXT)
    first = ["begin", b"/first?x=1", 5, b"ab", "end"]
    assert recorder.events == [*first, "begin", b"/next", 3, b"hi", "end"]
