"""Timeouts of the HTTP clients against slow servers: they limit the whole call."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import httpcore
import httpx
import pytest

from lite_detr_client import AsyncHttpClient, ConnectionFailed, DeadlineExceeded, HttpClient
from lite_detr_client.retries import RetryPolicy
from lite_detr_client.time_limit import limit_connections, time_limit
from tests.client.test_http_wire import RESULT

TIMEOUT_S = 0.2
# The timeout, half a second in which the service may report it, and time for a busy machine. The
# servers here take twice as long.
LIMIT_S = 2.5
STEP_S = 0.1
STEPS = 50

ONCE = RetryPolicy(attempts=1)
BODY = json.dumps(RESULT).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % len(BODY)

Handle = Callable[[socket.socket], None]


@contextlib.contextmanager
def serving(handle: Handle) -> Iterator[str]:
    """Serves each connection by `handle` and returns the address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        listener.settimeout(20)

        def serve(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                connection.settimeout(10)
                handle(connection)

        def accept() -> None:
            for _ in range(20):
                try:
                    connection, _ = listener.accept()
                except OSError:  # the test has ended
                    return
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)


def drip(connection: socket.socket, data: bytes) -> None:
    for position in range(STEPS):
        time.sleep(STEP_S)
        connection.sendall(data[position : position + 1])


def drips_its_body(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    connection.sendall(HEAD + b"\r\n")
    drip(connection, BODY)


def drips_its_head(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    drip(connection, HEAD)


def drips_after_a_pause(connection: socket.socket) -> None:
    """Sends a byte just before the end, then nothing."""
    connection.recv(1 << 16)
    connection.sendall(HEAD + b"\r\n")
    time.sleep(0.6)
    connection.sendall(BODY[:1])
    time.sleep(STEPS * STEP_S)


def reads_slowly(connection: socket.socket) -> None:
    for _ in range(STEPS):
        time.sleep(STEP_S)
        for _ in range(8):
            connection.recv(1 << 16)


def is_silent(connection: socket.socket) -> None:
    time.sleep(STEPS * STEP_S)


SLOW_SERVERS = [drips_its_body, drips_its_head, drips_after_a_pause, reads_slowly, is_silent]
IMAGE = bytes(32 << 20)  # more than the buffers of a connection


@contextlib.contextmanager
def raises_in_time() -> Iterator[None]:
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        yield
    assert time.monotonic() - started < LIMIT_S


@pytest.mark.parametrize("server", SLOW_SERVERS, ids=lambda server: server.__name__)
def test_a_timeout_limits_the_whole_synchronous_call(server: Handle) -> None:
    image = IMAGE if server is reads_slowly else b"image"
    with serving(server) as address, HttpClient(address) as http, raises_in_time():
        http.detect(image, timeout_s=TIMEOUT_S)


@pytest.mark.parametrize("server", SLOW_SERVERS, ids=lambda server: server.__name__)
async def test_a_timeout_limits_the_whole_asynchronous_call(server: Handle) -> None:
    image = IMAGE if server is reads_slowly else b"image"
    with serving(server) as address:
        async with AsyncHttpClient(address) as http:
            with raises_in_time():
                await http.detect(image, timeout_s=TIMEOUT_S)


@pytest.mark.parametrize("server", [drips_its_body, drips_its_head])
async def test_a_slow_service_is_not_ready_in_time(server: Handle) -> None:
    started = time.monotonic()
    with serving(server) as address:
        with HttpClient(address) as http:
            assert not http.ready(timeout_s=TIMEOUT_S)
        async with AsyncHttpClient(address) as http_too:
            assert not await http_too.ready(timeout_s=TIMEOUT_S)
    assert time.monotonic() - started < 2 * LIMIT_S


def test_a_timeout_limits_the_tls_handshake() -> None:
    with serving(is_silent) as address, HttpClient(f"https://{address}") as http, raises_in_time():
        http.detect(b"image", timeout_s=TIMEOUT_S)


def test_a_timeout_limits_calls_through_a_given_transport_of_httpx() -> None:
    transport = httpx.HTTPTransport(retries=2)
    with (
        serving(drips_its_body) as address,
        HttpClient(address, transport=transport) as http,
        raises_in_time(),
    ):
        http.detect(b"image", timeout_s=TIMEOUT_S)


def test_a_timeout_limits_the_wait_for_a_connection() -> None:
    transport = httpx.HTTPTransport(limits=httpx.Limits(max_connections=1))
    with (
        serving(is_silent) as address,
        HttpClient(address, transport=transport, retries=ONCE) as http,
        ThreadPoolExecutor(1) as threads,
    ):
        first = threads.submit(http.ready, timeout_s=1)
        time.sleep(STEP_S)
        with raises_in_time():
            http.detect(b"image", timeout_s=TIMEOUT_S)
        assert not first.result()


def test_a_call_without_a_timeout_waits() -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(HEAD + b"\r\n")
        for byte in (BODY[:1], BODY[1:2], BODY[2:]):
            time.sleep(STEP_S)
            connection.sendall(byte)

    with serving(serve) as address, HttpClient(address, timeout_s=None) as http:
        assert http.detect(b"image").request_id == "r"


def test_connections_are_limited_also_with_the_proxies_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The attributes of httpx and httpcore that have no public name are still there."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "localhost")
    with httpx.Client() as client:
        assert limit_connections(client)
        assert limit_connections(client)  # again, with a transport of another client
    transport = httpx.MockTransport(lambda _: httpx.Response(200))
    with httpx.Client(transport=transport) as client:
        assert not limit_connections(client)


def resolver(*addresses: str) -> Callable[..., list[object]]:
    return lambda *_, **__: [
        (socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, 0)) for address in addresses
    ]


def test_the_addresses_of_a_host_share_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts: list[tuple[str, float]] = []

    def connect(_: object, host: str, port: int, timeout: float, *more: object) -> None:
        timeouts.append((host, timeout))
        raise httpcore.ConnectTimeout("timed out")

    monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", connect)
    monkeypatch.setattr(socket, "getaddrinfo", resolver("192.0.2.1", "192.0.2.2", "192.0.2.1"))
    with HttpClient("http://service.test", retries=ONCE) as http, pytest.raises(DeadlineExceeded):
        http.detect(b"image", timeout_s=100)
    (first, first_timeout), (second, second_timeout) = timeouts
    assert (first, second) == ("192.0.2.1", "192.0.2.2")
    assert first_timeout == pytest.approx(50, abs=2)
    assert second_timeout == pytest.approx(100, abs=2)  # as the first did not use its half


def test_the_next_address_of_a_host_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(HEAD + b"\r\n" + BODY)

    with serving(serve) as address:
        port = address.partition(":")[2]
        monkeypatch.setattr(socket, "getaddrinfo", _numeric_or("127.0.0.2", "127.0.0.1"))
        with HttpClient(f"http://service.test:{port}", retries=ONCE) as http:
            assert http.detect(b"image").request_id == "r"


def _numeric_or(*addresses: str) -> Callable[..., list[object]]:
    """Resolves numeric addresses as they are, and any name to `addresses`."""
    named = resolver(*addresses)

    def resolve(host: str, port: int, *_: object, **__: object) -> list[object]:
        if host == "service.test":
            return named()
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, port))]

    return resolve


def test_a_timeout_limits_the_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: object, **__: object) -> list[object]:
        time.sleep(STEPS * STEP_S)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with HttpClient("http://service.test", retries=ONCE) as http, raises_in_time():
        http.detect(b"image", timeout_s=TIMEOUT_S)


def test_an_unknown_host_is_a_failed_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: object, **__: object) -> list[object]:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    refuses = pytest.raises(ConnectionFailed, match="not known")
    with HttpClient("http://service.test", retries=ONCE) as http, refuses:
        http.detect(b"image")


def test_a_time_limit_ends_with_its_block_and_belongs_to_its_thread() -> None:
    transport = httpx.HTTPTransport()
    with serving(drips_its_body) as address, httpx.Client(transport=transport) as client:
        limit_connections(client)
        with time_limit(0.01), pytest.raises(httpx.TimeoutException):
            client.get(f"http://{address}", timeout=30)
        with client.stream("GET", f"http://{address}", timeout=30) as response:
            assert response.status_code == 200
            with time_limit(0), ThreadPoolExecutor(1) as threads:
                assert threads.submit(next, response.iter_raw()).result() == BODY[:1]


class _Held(BaseHTTPRequestHandler):
    """Responds after `release`, and records the timeout of each request in milliseconds."""

    protocol_version = "HTTP/1.1"
    timeouts_ms: ClassVar[list[float]]
    release: ClassVar[threading.Event]

    def do_GET(self) -> None:
        self.timeouts_ms.append(float(self.headers["X-Request-Timeout-Ms"]))
        self.release.wait(10)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def held() -> Iterator[tuple[str, type[_Held]]]:
    class Held(_Held):
        timeouts_ms: ClassVar[list[float]] = []
        release = threading.Event()

    with ThreadingHTTPServer(("127.0.0.1", 0), Held) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}", Held
        Held.release.set()
        server.shutdown()


ONE_CONNECTION = httpx.Limits(max_connections=1)


def test_the_service_gets_the_time_that_remains_when_the_request_is_sent(
    held: tuple[str, type[_Held]],
) -> None:
    address, handler = held
    transport = httpx.HTTPTransport(limits=ONE_CONNECTION)
    with HttpClient(address, transport=transport) as http, ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(http.ready, timeout_s=9) for _ in range(2)]
        time.sleep(0.5)  # the second one waits for the connection
        handler.release.set()
        assert all(call.result() for call in calls)
    first, second = handler.timeouts_ms
    assert 8000 < first <= 9000
    assert second < first - 400


async def test_asynchronous_clients_send_the_time_that_remains_too(
    held: tuple[str, type[_Held]],
) -> None:
    address, handler = held
    transport = httpx.AsyncHTTPTransport(limits=ONE_CONNECTION)
    async with AsyncHttpClient(address, transport=transport) as http:
        calls = asyncio.gather(*(http.ready(timeout_s=9) for _ in range(2)))
        await asyncio.sleep(0.5)
        handler.release.set()
        assert await calls == [True, True]
    first, second = handler.timeouts_ms
    assert 8000 < first <= 9000
    assert second < first - 400
