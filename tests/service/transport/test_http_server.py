from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable

import pytest
import uvloop

from service.transport import http_connection
from service.transport.http_server import listen
from tests.service.transport.http_bench import GET, Bench, serving


async def test_requests_are_answered_on_one_connection() -> None:
    async with serving() as bench:
        client = await bench.connect()
        for _ in range(3):
            client.send(GET)
            response = await client.read_response()
            assert response.startswith(b"HTTP/1.1 200")
            assert b"uvicorn" not in response
        await client.close()


@pytest.mark.parametrize("trickle", [b"", b"GET / HTTP/1.1\r\nx-slow: ", b"\r\n"])
async def test_a_client_that_does_not_finish_its_head_is_disconnected(trickle: bytes) -> None:
    async with serving(header_timeout_seconds=0.2) as bench:
        client = await bench.connect()
        client.send(trickle)
        response = await client.read_until_closed()
        assert response == b"" or response.startswith(b"HTTP/1.1 408")
        assert bench.app.requests == 0
        await client.close()


async def test_the_second_head_on_a_connection_has_a_timeout_too() -> None:
    async with serving(header_timeout_seconds=0.2) as bench:
        client = await bench.connect()
        client.send(GET)
        await client.read_response()
        client.send(b"GET / HTTP/1.1\r\nx-slow: ")
        assert (await client.read_until_closed()).startswith(b"HTTP/1.1 408")
        await client.close()


async def test_the_timeout_of_the_head_does_not_apply_to_the_response() -> None:
    async with serving(header_timeout_seconds=0.1) as bench:
        bench.app.may_respond.clear()
        client = await bench.connect()
        client.send(GET)
        await asyncio.sleep(0.4)
        bench.app.may_respond.set()
        assert (await client.read_response()).startswith(b"HTTP/1.1 200")
        await client.close()


async def test_an_endless_head_is_refused() -> None:
    async with serving() as bench:
        client = await bench.connect()
        client.send(b"GET / HTTP/1.1\r\nx-filler: " + b"y" * (64 * 1024))
        assert (await client.read_until_closed()).startswith(b"HTTP/1.1 431")
        await client.close()


async def test_a_drain_finishes_requests_in_flight_and_closes_the_port() -> None:
    bench = Bench()
    task = asyncio.create_task(bench.server.run_until_drained())
    bench.app.may_respond.clear()
    clients = [await bench.connect() for _ in range(5)]
    for client in clients:
        client.send(GET)
    while bench.app.requests < 5:
        await asyncio.sleep(0.005)
    bench.server.drain()
    # Reset: it was still in the backlog when the port closed.
    with pytest.raises((ConnectionRefusedError, ConnectionResetError)):
        while True:
            await (await bench.connect()).close()
            await asyncio.sleep(0.01)
    bench.app.may_respond.set()
    for client in clients:
        response = await client.read_until_closed()
        assert response.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in response
        await client.close()
    await asyncio.wait_for(task, 120)


@pytest.mark.parametrize(
    ("sent", "open_requests"),
    [
        (b"", 0),
        (GET[:-2], 0),
        (GET, 1),
        (GET * 3, 1),
        (b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 9\r\n\r\nx", 1),
    ],
    ids=["idle", "incomplete-head", "no-response-yet", "pipelined", "incomplete-body"],
)
async def test_requests_without_a_response_are_open(sent: bytes, open_requests: int) -> None:
    async with serving() as bench:
        bench.app.reads_body = True
        bench.app.may_respond.clear()
        client = await bench.connect()
        client.send(sent)
        while bench.app.requests < open_requests or not bench.server.server_state.connections:
            await asyncio.sleep(0.005)
        assert bench.server.open_requests == open_requests
        await client.close()


async def test_a_request_is_open_until_its_response_is_read() -> None:
    async with serving() as bench:
        bench.app.body = b"x" * (16 << 20)
        client = await bench.connect()
        client.stop_reading()
        client.send(GET)
        while not bench.app.requests:
            await asyncio.sleep(0.005)
        while bench.server.server_state.tasks:
            await asyncio.sleep(0.005)
        assert bench.server.open_requests == 1
        await client.close()


async def test_a_server_that_gives_up_cuts_its_connections() -> None:
    bench = Bench()
    task = asyncio.create_task(bench.server.run_until_drained())
    bench.app.reads_body = True
    client = await bench.connect()
    client.send(b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 9\r\n\r\nx")
    while not bench.app.requests:
        await asyncio.sleep(0.005)
    bench.server.drain()
    bench.server.give_up()
    with contextlib.suppress(ConnectionError):
        assert await client.read_until_closed() == b""
    await asyncio.wait_for(task, 120)
    await client.close()


def _read_all(client: socket.socket) -> bytes:
    client.settimeout(120)
    with client:
        return b"".join(iter(lambda: client.recv(4096), b""))


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_connection_not_yet_accepted_when_the_port_closes_gets_its_response(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_end_with_connections_in_the_backlog())


async def _end_with_connections_in_the_backlog() -> None:
    bench, clients = Bench(), []

    async def connect_and_end() -> None:
        """The server's main loop; it never yields, so that it accepts nothing."""
        for _ in range(20):
            client = socket.create_connection(("127.0.0.1", bench.port))
            client.sendall(GET)
            clients.append(client)

    bench.server.main_loop = connect_and_end  # type: ignore[method-assign]
    await asyncio.wait_for(bench.server.run_until_drained(), 120)
    responses = [await asyncio.to_thread(_read_all, client) for client in clients]
    assert [response[:12] for response in responses] == [b"HTTP/1.1 200"] * 20
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", bench.port))


def test_a_blocked_loop_reads_received_requests_before_it_closes_idle_connections() -> None:
    async def story() -> None:
        bench = Bench()
        task = asyncio.create_task(bench.server.run_until_drained())
        idle = await bench.connect()
        idle.send(GET)
        await idle.read_response()
        bench.server.drain()
        while not bench.server._limits.closing:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.1)
        idle.send(GET)  # uvloop writes at once
        time.sleep(0.5)  # the loop hangs; its timers are due before it looks at sockets
        response = await idle.read_until_closed()
        assert response.startswith(b"HTTP/1.1 200")
        await idle.close()
        await asyncio.wait_for(task, 120)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(story())


async def test_a_request_on_the_wire_when_the_port_closes_gets_its_response() -> None:
    bench = Bench()
    task = asyncio.create_task(bench.server.run_until_drained())
    idle, fresh = await bench.connect(), await bench.connect()
    idle.send(GET)
    await idle.read_response()
    bench.server.drain()
    while not bench.server._limits.closing:
        await asyncio.sleep(0.001)
    for client in (idle, fresh):
        client.send(GET)
        response = await client.read_until_closed()
        assert response.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in response
        await client.close()
    await asyncio.wait_for(task, 120)


async def test_a_request_on_a_connection_over_the_limit_is_marked_and_its_last() -> None:
    async with serving(max_connections=2) as bench:
        clients = [await bench.connect() for _ in range(3)]
        for client in clients:
            client.send(GET)
            await client.read_response()
        assert bench.app.over_limit == [False, False, True]
        assert await clients[2].read_until_closed() == b""
        for client in clients:
            await client.close()


async def test_a_new_connection_replaces_a_long_idle_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_connection, "_IDLE_SECONDS", 0.0)
    async with serving(max_connections=2) as bench:
        clients = [await bench.connect() for _ in range(2)]
        for client in clients:
            client.send(GET)
            await client.read_response()
        newest = await bench.connect()
        newest.send(GET)
        assert (await newest.read_response()).startswith(b"HTTP/1.1 200")
        assert await clients[0].read_until_closed() == b""
        clients[1].send(GET)
        assert (await clients[1].read_response()).startswith(b"HTTP/1.1 200")
        assert bench.app.over_limit == [False] * 4
        for client in (*clients, newest):
            await client.close()


async def test_connections_far_over_the_limit_are_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_connection, "_MAX_OVER_LIMIT", 1)
    async with serving(max_connections=1) as bench:
        clients = [await bench.connect() for _ in range(3)]
        with contextlib.suppress(ConnectionError):
            assert await clients[2].read_until_closed() == b""
        for client in clients:
            await client.close()


async def test_pipelined_requests_are_served_in_order_up_to_a_limit() -> None:
    async with serving() as bench:
        client = await bench.connect()
        client.send(GET * 5000)
        responses = await client.read_until_closed()
        assert 1 <= responses.count(b"HTTP/1.1 200") <= 64
        assert responses.count(b"HTTP/1.1 ") == responses.count(b"hello")
        await client.close()


async def test_responses_to_earlier_requests_precede_the_refusal_of_a_malformed_one() -> None:
    async with serving() as bench:
        bench.app.may_respond.clear()
        client = await bench.connect()
        client.send(GET + b"no such thing\r\n\r\n")
        while not bench.app.requests:
            await asyncio.sleep(0.005)
        bench.app.may_respond.set()
        assert (await client.read_until_closed()).startswith(b"HTTP/1.1 200")
        await client.close()


async def test_an_endless_head_after_another_request_is_refused_too() -> None:
    async with serving() as bench:
        bench.app.may_respond.clear()
        client = await bench.connect()
        client.send(GET)
        client.send(b"GET / HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionError):
            for number in range(2000):
                client.send(b"x-filler-%d: %b\r\n" % (number, b"y" * 1000))
                await client.drain()
        bench.app.may_respond.set()
        with contextlib.suppress(ConnectionError):
            assert b"HTTP/1.1 200" not in (await client.read_until_closed())[20:]
        assert bench.app.requests == 1
        await client.close()


async def test_a_client_that_disconnects_after_a_body_with_a_long_last_part_is_noticed() -> None:
    async with serving() as bench:
        bench.app.reads_body = True
        bench.app.may_respond.clear()
        client = await bench.connect()
        client.send(b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 200000\r\n\r\n")
        while not bench.app.requests:
            await asyncio.sleep(0.005)
        (connection,) = bench.server.server_state.connections
        assert isinstance(connection, http_connection.LimitedConnection)
        connection.data_received(b"x" * 200_000)  # in one part, as from a fast network
        await client.close()
        async with asyncio.timeout(10):
            while not connection.lost:
                await asyncio.sleep(0.005)


async def test_a_client_that_never_reads_its_response_is_disconnected() -> None:
    async with serving(send_timeout_seconds=0.2) as bench:
        bench.app.body = b"x" * (32 << 20)
        client = await bench.connect()
        client.stop_reading()
        client.send(GET)
        while not bench.app.requests:
            await asyncio.sleep(0.005)
        while bench.server.server_state.connections:
            await asyncio.sleep(0.02)
        await client.close()


@pytest.mark.slow
async def test_a_client_that_reads_slowly_gets_its_whole_response() -> None:
    async with serving(send_timeout_seconds=2) as bench:
        bench.app.body = b"x" * (24 << 20)
        client = await bench.connect()
        client.send(GET)
        assert await client.read_slowly() >= 24 << 20
        await client.close()


def test_a_port_in_use_raises_immediately() -> None:
    with listen("127.0.0.1", 0) as first, pytest.raises(OSError, match="in use"):
        listen("127.0.0.1", first.getsockname()[1])
