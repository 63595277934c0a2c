"""Limits and rules of request heads, by raw bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import product

import orjson
import pytest
import uvloop
from structlog.testing import capture_logs

from service.transport.request_head import MAX_HEAD_BYTES, MAX_HEADERS
from tests.service.transport.http_bench import GET, Bench, Client, serving

LINE = b"GET /%b HTTP/1.1\r\nhost: test\r\nconnection: close\r\n"
LAST = b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"


def _one_header(size: int) -> bytes:
    start, end = LINE % b"" + b"x-filler: ", b"\r\n\r\n"
    return start + b"y" * (size - len(start) - len(end)) + end


def _many_headers(size: int) -> bytes:
    lines = [LINE % b"", *(b"x-%d: %b\r\n" % (n, b"y" * 400) for n in range(140))]
    head = b"".join(lines)
    end = b"\r\n\r\n"
    return head + b"z: " + b"y" * (size - len(head) - len(end) - 3) + end


def _long_target(size: int) -> bytes:
    return LINE % (b"y" * (size - len(LINE % b"") - 2)) + b"\r\n"


def _white_space(size: int) -> bytes:
    start, end = LINE % b"" + b"x-filler:", b"y\r\n\r\n"
    return start + b" " * (size - len(start) - len(end)) + end


LAYOUTS: tuple[Callable[[int], bytes], ...] = (
    _one_header,
    _many_headers,
    _long_target,
    _white_space,
)


def _in_one_write(data: bytes) -> list[bytes]:
    return [data]


def _in_pieces(data: bytes) -> list[bytes]:
    return [data[start : start + 9973] for start in range(0, len(data), 9973)]


def _at_the_end_alone(data: bytes) -> list[bytes]:
    return [data[:-1], data[-1:]]


async def _exchange(client: Client, packets: list[bytes]) -> bytes:
    for packet in packets:
        try:
            client.send(packet)
            await client.drain()
        except (ConnectionError, RuntimeError):  # closed by the server; the latter is uvloop's
            break
        for _ in range(10):
            await asyncio.sleep(0)
    return await client.read_until_closed()


def _statuses(received: bytes) -> list[bytes]:
    return [part[:3] for part in received.split(b"HTTP/1.1 ")[1:]]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> asyncio.Runner:
    return asyncio.Runner(loop_factory=request.param)


@pytest.mark.parametrize("split", [_in_one_write, _in_pieces, _at_the_end_alone])
def test_a_head_of_64_kib_is_accepted_and_a_larger_one_refused(
    runner: asyncio.Runner, split: Callable[[bytes], list[bytes]]
) -> None:
    sizes = (MAX_HEAD_BYTES, MAX_HEAD_BYTES + 1, 66_000, 70_000, 300_000)

    async def story() -> None:
        async with serving() as bench:
            for layout, size in product(LAYOUTS, sizes):
                head = layout(size)
                assert len(head) == size
                client = await bench.connect()
                try:
                    received = await _exchange(client, split(head))
                except ConnectionError:  # closed while the rest of a large head was being sent
                    assert size > 100_000
                else:
                    expected = [b"200"] if size <= MAX_HEAD_BYTES else [b"431"]
                    assert _statuses(received) == expected, (layout, size)
                await client.close()
            assert bench.app.requests == len(LAYOUTS)

    with runner:
        runner.run(story())


@pytest.mark.parametrize("first", [GET, POST], ids=["get", "post"])
def test_the_limit_holds_for_a_pipelined_head(runner: asyncio.Runner, first: bytes) -> None:
    layouts, sizes = (_one_header, _many_headers, _long_target), (65_000, 66_000, 70_000, 120_000)

    async def story() -> None:
        async with serving() as bench:
            for layout, size in product(layouts, sizes):
                client, before = await bench.connect(), bench.app.requests
                received = await _exchange(client, [first + layout(size)])
                accepted = size <= MAX_HEAD_BYTES
                # The refusal must not be mistaken for the response to the first request.
                expected = [b"200"] * 2 if accepted else [b"200"]
                assert _statuses(received) == expected, (layout, size)
                assert bench.app.requests - before == 1 + accepted
                await client.close()

    with runner:
        runner.run(story())


async def test_a_head_after_a_completed_request_has_the_same_limit() -> None:
    async with serving() as bench:
        client = await bench.connect()
        client.send(POST)
        await client.read_response()
        assert _statuses(await _exchange(client, [_one_header(MAX_HEAD_BYTES + 1)])) == [b"431"]
        await client.close()


async def test_a_large_body_in_the_same_packets_does_not_count_towards_a_head() -> None:
    async with serving() as bench:
        size = 3_000_000
        head = b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n" % size
        client = await bench.connect()
        assert _statuses(await _exchange(client, [(head + b"x" * size) * 2 + LAST])) == [b"200"] * 3
        await client.close()


async def test_more_than_the_maximum_number_of_headers_is_refused() -> None:
    async with serving() as bench:
        for count, status in ((MAX_HEADERS, b"200"), (MAX_HEADERS + 1, b"431")):
            client = await bench.connect()
            head = LINE % b"" + b"x: y\r\n" * (count - 2) + b"\r\n"
            assert _statuses(await _exchange(client, [head])) == [status]
            await client.close()


async def test_trailers_are_not_added_to_the_headers() -> None:
    async with serving() as bench:
        client = await bench.connect()
        body = b"2\r\nhi\r\n0\r\nx-api-key: stolen\r\nhost: other\r\n\r\n"
        assert _statuses(await _exchange(client, [CHUNKED + body])) == [b"200"]
        names = [name for name, _ in bench.app.scopes[0]["headers"]]
        assert names == [b"host", b"connection", b"transfer-encoding"]
        await client.close()


@pytest.mark.parametrize(
    "trailer",
    [b"x-filler: " + b"y" * 1_000_000, b"x: y\r\n" * 100_000, b"1;" + b"y" * 1_000_000],
    ids=["one endless line", "many lines", "a chunk extension"],
)
async def test_a_trailer_above_the_limit_is_refused(trailer: bytes) -> None:
    async with serving() as bench:
        bench.app.may_respond.clear()
        client = await bench.connect()
        end = b"" if trailer.startswith(b"1;") else b"0\r\n"
        client.send(CHUNKED + b"2\r\nhi\r\n" + end)
        await asyncio.sleep(0.05)
        try:
            received = await _exchange(client, _in_pieces(trailer))
        except ConnectionError:  # closed while the rest was being sent
            pass
        else:
            assert _statuses(received) == [b"431"]
        while bench.server.server_state.connections:
            await asyncio.sleep(0.005)
        await client.close()


@pytest.mark.parametrize(
    ("head", "status", "named"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400, "Host"),
        (b"GET / HTTP/1.1\r\nhost: a\r\nHOST: a\r\n\r\n", 400, "Host"),
        (b"GET / HTTP/1.0\r\nhost: a\r\nhost: b\r\n\r\n", 400, "Host"),
        (b"GET / HTTP/1.1\r\nhost: a b\r\n\r\n", 400, "Host"),
        (b"GET / HTTP/1.1\r\nhost: a@b/c\r\n\r\n", 400, "Host"),
        (b"GET / HTTP/1.1\r\nhost: a\r\nexpect: foo\r\n\r\n", 417, "'foo'"),
        (b"GET / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue, foo\r\n\r\n", 417, "foo"),
        (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n", 501, "'gzip"),
        (
            b"POST / HTTP/1.1\r\nhost: a\r\nTransfer-Encoding: gzip\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n",
            501,
            "'gzip, chunked'",
        ),
        (b"POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n", 400, "HTTP/1.0"),
        (b"GET / HTTP/2.0\r\nhost: a\r\n\r\n", 505, "HTTP/2.0"),
        (b"GET / HTTP/0.9\r\nhost: a\r\n\r\n", 505, "HTTP/0.9"),
    ],
)
async def test_a_head_that_is_not_acceptable_is_marked_with_its_refusal(
    head: bytes, status: int, named: str
) -> None:
    async with serving() as bench:
        client = await bench.connect()
        assert b"connection: close" in await _exchange(client, [head])
        refused = bench.app.scopes[0]["state"]["refused"]
        assert (refused.status, named in refused.detail) == (status, True)
        await client.close()


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.0\r\nexpect: foo\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost:\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: [::1]:8000\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: xn--bcher-kva.example:80\r\n\r\n",
        b"GET http://a/ HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nexpect:\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: Chunked \r\n\r\n0\r\n\r\n",
    ],
)
async def test_other_heads_are_not_marked(head: bytes) -> None:
    async with serving() as bench:
        client = await bench.connect()
        head = head.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
        assert _statuses(await _exchange(client, [head])) == [b"200"]
        assert "refused" not in bench.app.scopes[0]["state"]
        await client.close()


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_only_a_client_of_http_1_1_gets_100_continue(version: bytes) -> None:
    async with serving() as bench:
        bench.app.reads_body = True
        client = await bench.connect()
        client.send(
            b"POST / HTTP/%b\r\nhost: a\r\nexpect: 100-Continue\r\ncontent-length: 2\r\n"
            b"connection: close\r\n\r\n" % version
        )
        await asyncio.sleep(0.1)
        received = await _exchange(client, [b"hi"])
        expected = [b"200"] if version == b"1.0" else [b"100", b"200"]
        assert _statuses(received) == expected
        await client.close()


async def test_an_unfinished_pipelined_head_has_a_timeout_after_the_response() -> None:
    async with serving(header_timeout_seconds=0.2) as bench:
        client = await bench.connect()
        received = await _exchange(client, [GET + b"GET / HTTP/1.1\r\nx-slow: "])
        assert _statuses(received) == [b"200", b"408"]
        await client.close()


async def test_refusals_are_logged_by_client_and_code_in_few_lines() -> None:
    with capture_logs() as lines:
        bench = Bench()
        task = asyncio.create_task(bench.server.run_until_drained())
        for data in [b"no such thing\r\n\r\n"] * 50 + [_one_header(70_000)] * 3:
            client = await bench.connect()
            received = await _exchange(client, [data])
            assert orjson.loads(received.partition(b"\r\n\r\n")[2])["status"] in {400, 431}
            await client.close()
        bench.server.drain()
        await asyncio.wait_for(task, 60)
    first, last = (line for line in lines if line["log_level"] == "warning")
    assert first["codes"] == {"malformed_request": 1}
    assert last["codes"] == {"malformed_request": 49, "header_too_large": 3}
    assert last["clients"] == {"127.0.0.1": 52}


@pytest.mark.parametrize(
    ("head", "status", "named"),
    [
        (b"FOO / HTTP/1.1\r\nhost: a\r\n\r\n", 501, "FOO"),
        (b"get / HTTP/1.1\r\nhost: a\r\n\r\n", 501, "get"),
        (b"GETS / HTTP/1.1\r\nhost: a\r\n\r\n", 501, "GETS"),
        (b"\r\nX-Y / HTTP/1.0\r\nhost: a\r\n\r\n", 501, "X-Y"),
        (b"GET / HTTP/1.2\r\nhost: a\r\n\r\n", 400, "well-formed"),
        (b"FOO / FTP/1.1\r\nhost: a\r\n\r\n", 400, "well-formed"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "well-formed"),
        (b"F\x00O / HTTP/1.1\r\nhost: a\r\n\r\n", 400, "well-formed"),
    ],
)
async def test_an_unknown_method_is_not_called_malformed(
    head: bytes, status: int, named: str
) -> None:
    async with serving() as bench:
        client = await bench.connect()
        received = await _exchange(client, [head])
        problem = orjson.loads(received.partition(b"\r\n\r\n")[2])
        assert (problem["status"], named in problem["detail"]) == (status, True), problem
        await client.close()


async def test_white_space_around_values_of_headers_is_removed() -> None:
    async with serving() as bench:
        client = await bench.connect()
        head = LINE % b"" + b"x-api-key: \t KEY \t \r\nx-a:a  b\r\nx-empty: \t\r\n\r\n"
        assert _statuses(await _exchange(client, [head])) == [b"200"]
        headers = dict(bench.app.scopes[0]["headers"])
        found = (headers[b"x-api-key"], headers[b"x-a"], headers[b"x-empty"])
        assert found == (b"KEY", b"a  b", b"")
        await client.close()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nhost: a\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhello",
        CHUNKED + b"5\r\nhel",
    ],
    ids=["head", "body", "chunk"],
)
def test_the_end_of_an_incomplete_request_gets_400(runner: asyncio.Runner, data: bytes) -> None:
    async def story() -> None:
        async with serving() as bench:
            bench.app.reads_body = True
            bench.app.may_respond.clear()
            client = await bench.connect()
            client.send(data)
            client.send_eof()
            received = await client.read_until_closed()
            assert _statuses(received) == [b"400"]
            assert b"ends before it is complete" in received
            await client.close()

    with runner:
        runner.run(story())


@pytest.mark.parametrize("data", [b"", GET, GET + b"GET / HTTP/1.1\r\n"])
def test_the_end_of_a_connection_gets_no_response_that_a_request_could_take(
    runner: asyncio.Runner, data: bytes
) -> None:
    async def story() -> None:
        async with serving() as bench:
            bench.app.may_respond.clear()
            client = await bench.connect()
            client.send(data)
            while data and not bench.app.requests:
                await asyncio.sleep(0.005)
            client.send_eof()
            assert await client.read_until_closed() == b""
            await client.close()

    with runner:
        runner.run(story())
