"""Invalid and hostile HTTP traffic is refused with a message and leaves nothing behind."""

from __future__ import annotations

import itertools
import time

import pytest

from tests.e2e.hostile import bombs
from tests.e2e.hostile.wire import TIMEOUT_SECONDS, Wire, request, wire
from tests.support.images import solid_png
from tests.support.running import DEFAULTS, Service

IMAGE = bombs.jpeg()
LENGTH = b"Content-Length: %d" % len(IMAGE)
CHUNKED = b"Transfer-Encoding: chunked"

REFUSED = {
    "a length that is negative": request(b"Content-Length: -5", body=IMAGE),
    "a length that is not a number": request(b"Content-Length: many", body=IMAGE),
    "a length beyond 64 bits": request(b"Content-Length: " + b"9" * 40, body=IMAGE),
    "a length above the limit": request(b"Content-Length: 99999999999", body=IMAGE),
    "two lengths": request(LENGTH, b"Content-Length: 5", body=IMAGE),
    "a length and chunks": request(LENGTH, CHUNKED, body=b"0\r\n\r\n"),
    "an unknown encoding": request(b"Transfer-Encoding: gzip, moon", body=IMAGE),
    "a space before the colon": request(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n"),
    "chunks whose size is not a number": request(CHUNKED, body=b"zz\r\nabc\r\n0\r\n\r\n"),
    "chunks whose size is negative": request(CHUNKED, body=b"-1\r\nabc\r\n0\r\n\r\n"),
    "chunks whose size exceeds 64 bits": request(CHUNKED, body=b"f" * 40 + b"\r\nabc\r\n"),
    "a chunk longer than its size": request(CHUNKED, body=b"1\r\nabcdef\r\n0\r\n\r\n"),
    "a header with a line break": request(b"X-Odd: a\rX-Injected: b", LENGTH, body=IMAGE),
    "a header with a zero byte": request(b"X-Odd: a\0b", LENGTH, body=IMAGE),
    "a header without a name": request(b": nothing", LENGTH, body=IMAGE),
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "TLS": bytes.fromhex("160301020001000001fc0303") + bytes(range(200)),
    "random bytes": bytes(range(256)) * 8,
    "a path with spaces": b"GET /a b c HTTP/1.1\r\nHost: x\r\n\r\n",
    "a path of 70000 letters": b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "a head of 400 KB": request(*(b"X-%d: %b" % (i, b"v" * 1000) for i in range(400)), LENGTH),
    "a request line without end": b"GET /" + b"a" * 400_000,
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_invalid_request_is_refused_with_a_message(service: Service, name: str) -> None:
    with wire(service) as connection:
        connection.send(REFUSED[name])
        connection.end_sending()
        response = connection.read_to_end()
    status = response.partition(b"\r\n")[0]
    # The connection may be reset if the client is still sending when it is refused.
    refused = (b"HTTP/1.1 4", b"HTTP/1.1 501 ", b"HTTP/1.1 505 ")
    assert not response or status.startswith(refused), response
    assert not response or b"application/problem+json" in response
    assert b"X-Injected" not in response and b"x-injected" not in response


UNACCEPTABLE = {
    "HTTP/1.1 without Host": (b"GET %b HTTP/1.1\r\n\r\n", 400),
    "two Hosts": (b"GET %b HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400),
    "an invalid Host": (b"GET %b HTTP/1.1\r\nHost: x/y\r\n\r\n", 400),
    "an unknown expectation": (b"GET %b HTTP/1.1\r\nHost: x\r\nExpect: foo\r\n\r\n", 417),
    "a head of 66 KB": (b"GET %b HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 66_000 + b"\r\n\r\n", 431),
}


@pytest.mark.parametrize("path", [b"/healthz", b"/metrics", b"/v2", b"/nothing", b"/v2/nothing"])
@pytest.mark.parametrize("name", UNACCEPTABLE)
def test_a_head_that_is_not_acceptable_is_refused_on_every_path(
    service: Service, name: str, path: bytes
) -> None:
    head, status = UNACCEPTABLE[name]
    with wire(service) as connection:
        connection.send(head.replace(b"%b", path, 1))
        response = connection.read_to_end()
    assert response.startswith(b"HTTP/1.1 %d " % status), response[:200]
    assert response.count(b"HTTP/1.1 ") == 1
    form = b'"error":' if path.startswith(b"/v2") and status != 431 else b'"detail":'
    assert form in response


def test_a_body_shorter_than_its_length_is_not_processed(service: Service) -> None:
    with wire(service) as connection:
        connection.send(request(b"Content-Length: 100000", body=IMAGE))
        connection.end_sending()
        assert not connection.read_to_end().startswith(b"HTTP/1.1 2")


def test_bytes_after_a_body_are_the_next_request(service: Service) -> None:
    smuggled = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with wire(service) as connection:
        connection.send(request(LENGTH, body=IMAGE + smuggled + b"invalid\r\n\r\n"))
        responses = connection.read_to_end()
    assert responses.count(b"HTTP/1.1 200") == 2
    assert b"detections" in responses and b"live" in responses


def test_a_request_id_cannot_inject_headers(service: Service) -> None:
    headers = (b"X-Request-Id: a%0d%0aX-Injected: b", b"traceparent: 00-\xff", LENGTH)
    with wire(service) as connection:
        connection.send(request(*headers, b"Connection: close", body=IMAGE))
        response = connection.read_to_end().lower()
    assert response.startswith(b"http/1.1 200")
    assert b"injected" not in response


@pytest.mark.parametrize("piece", [b"x", b"X-A: b\r\n"])
@pytest.mark.slow
def test_a_slow_head_times_out(impatient_service: Service, piece: bytes) -> None:
    with wire(impatient_service) as connection:
        connection.send(b"POST /detect HTTP/1.1\r\n")
        response = _send_slowly(connection, piece)
    assert not response or response.startswith(b"HTTP/1.1 408"), response


@pytest.mark.slow
def test_a_body_that_pauses_times_out(impatient_service: Service) -> None:
    with wire(impatient_service) as connection:
        connection.send(request(LENGTH, body=IMAGE[:50]))
        response = connection.read_to_end()
    assert response.startswith(b"HTTP/1.1 408")
    assert b"paused" in response


@pytest.mark.slow
def test_a_slow_body_without_pauses_times_out(impatient_service: Service) -> None:
    with wire(impatient_service) as connection:
        connection.send(request(CHUNKED))
        response = _send_slowly(connection, b"1\r\nx\r\n")
    assert response.startswith(b"HTTP/1.1 408"), response
    assert b"bytes a second" in response


def _send_slowly(connection: Wire, data: bytes) -> bytes:
    """Sends a few bytes repeatedly until the service closes the connection."""
    connection.socket.settimeout(0.1)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not connection.send(data):
            break
        try:
            response = connection.socket.recv(1 << 16)
        except TimeoutError:
            continue
        except ConnectionError:
            return b""
        connection.socket.settimeout(TIMEOUT_SECONDS)
        return response + connection.read_to_end()
    assert time.monotonic() < deadline, "the service does not end a slow request"
    return b""


@pytest.mark.slow
def test_probes_get_responses_when_idle_connections_reach_the_limit() -> None:
    service = Service(**(DEFAULTS | {"max_connections": "50", "header_timeout_seconds": "60"}))
    idle: list[Wire] = []
    try:
        service.wait_until_ready()
        idle += [Wire(service) for _ in range(50)]
        for path in ("healthz", "readyz"):
            assert service.http.get(f"{service.url}/{path}").status_code == 200
        refused = service.http.post(f"{service.url}/detect", content=IMAGE)
        assert refused.status_code in {200, 503}
        if refused.status_code == 503:
            assert refused.json()["code"] == "too_many_connections"
            assert refused.headers["Retry-After"] == "1"
        # Connections that are idle for long are closed in favour of new ones.
        deadline = time.monotonic() + 60
        while True:
            response = service.http.post(f"{service.url}/detect", content=IMAGE)
            if response.status_code == 200:
                break
            assert time.monotonic() < deadline
            time.sleep(0.5)
    finally:
        for connection in idle:
            connection.socket.close()
        service.kill()


def test_half_closed_connections_get_a_response_or_are_closed(service: Service) -> None:
    with wire(service) as connection:
        connection.send(request(LENGTH, b"Connection: close", body=IMAGE))
        connection.end_sending()
        response = connection.read_to_end()
    # uvicorn treats a half-closed connection as a disconnected client, as most servers do.
    assert not response or response.startswith(b"HTTP/1.1 200")


def test_pipelined_requests_get_responses_in_order(service: Service) -> None:
    colours = [(number * 20, 3, 3) for number in range(8)]
    images = [solid_png(colour, 60 + number) for number, colour in enumerate(colours)]
    stream = b"".join(request(b"Content-Length: %d" % len(image), body=image) for image in images)
    with wire(service) as connection:
        connection.send(stream + request(b"Content-Length: 0", b"Connection: close"))
        responses = connection.read_to_end()
    widths = [int(part.partition(b",")[0]) for part in responses.split(b'"image":{"width":')[1:]]
    assert widths == list(range(60, 68))


def test_clients_that_never_read_do_not_fill_the_memory(service: Service) -> None:
    before = service.rss_bytes()
    connections = [Wire(service) for _ in range(20)]
    request_bytes = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
    for connection in connections:
        connection.socket.settimeout(0.5)
        for _ in range(50):
            if not connection.send(request_bytes * 100):
                break
    assert service.http.get(f"{service.url}/healthz").status_code == 200
    assert service.rss_bytes() - before < 128 << 20
    for connection in connections:
        connection.socket.close()


def test_the_bodies_of_all_clients_share_one_limit() -> None:
    limits = {"max_bodies_bytes": "1000000", "body_timeout_seconds": "60"}
    service = Service(**(DEFAULTS | limits))
    held: list[Wire] = []
    try:
        service.wait_until_ready()
        # The service may not have read a body when the probe arrives: sends more until it is full.
        for _ in range(50):
            held.append(Wire(service))
            held[-1].send(request(b"Content-Length: 500000", body=bytes(300_000)))
            response = service.http.post(f"{service.url}/detect", content=bytes(350_000))
            if response.status_code == 429:
                break
        assert response.status_code == 429
        assert response.headers["Retry-After"] == "1"
        for connection in held:
            connection.socket.close()
        deadline = time.monotonic() + 60
        while service.http.post(f"{service.url}/detect", content=IMAGE).status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        service.kill()


BOUNDARY = b"Content-Type: multipart/form-data; boundary=b"
PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'

FORMS = {
    "33 files": (BOUNDARY, (PART + IMAGE + b"\r\n") * 33 + b"--b--\r\n"),
    "100000 tiny parts": (BOUNDARY, (PART + b"x\r\n") * 100_000 + b"--b--\r\n"),
    "100000 fields": (
        BOUNDARY,
        b'--b\r\nContent-Disposition: form-data; name="labels"\r\n\r\nx\r\n' * 100_000 + b"--b--",
    ),
    "a part header without end": (BOUNDARY, b"--b\r\nContent-Disposition: " + b"x" * (4 << 20)),
    "a million part headers": (BOUNDARY, b"--b\r\n" + b"a: b\r\n" * 1_000_000),
    "a form in a form": (
        BOUNDARY,
        b"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c\r\n\r\nx\r\n--c--\r\n--b--",
    ),
    "no boundary": (b"Content-Type: multipart/form-data", PART + IMAGE),
    "a boundary of 10000 letters": (BOUNDARY + b"b" * 10_000, PART + IMAGE),
    "no end": (BOUNDARY, PART + IMAGE),
    "a field name of 1 MB": (
        BOUNDARY,
        b'--b\r\nContent-Disposition: form-data; name="'
        + b"n" * (1 << 20)
        + b'"\r\n\r\nx\r\n--b--',
    ),
    "nothing": (BOUNDARY, b""),
    "line breaks": (BOUNDARY, b"\r\n" * 1_000_000),
    "almost boundaries": (BOUNDARY, PART + b"\r\n--" * 1_000_000),
}


@pytest.mark.parametrize("name", FORMS)
def test_an_invalid_form_is_refused(service: Service, name: str) -> None:
    header, body = FORMS[name]
    before = service.rss_bytes()
    with wire(service) as connection:
        connection.send(
            request(header, b"Content-Length: %d" % len(body), b"Connection: close", body=body)
        )
        response = connection.read_to_end()
    assert response.startswith(b"HTTP/1.1 4"), response[:300]
    assert b"application/problem+json" in response
    assert service.rss_bytes() - before < 128 << 20


def test_a_file_name_of_a_megabyte_is_not_returned_in_full(service: Service) -> None:
    name = b"n" * (1 << 20)
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="' + name
    body = b"".join((part, b'"\r\n\r\n', IMAGE, b"\r\n")) * 2 + b"--b--\r\n"
    with wire(service) as connection:
        connection.send(
            request(BOUNDARY, b"Content-Length: %d" % len(body), b"Connection: close", body=body)
        )
        response = connection.read_to_end()
    assert len(response) < 100_000


def test_closed_connections_leave_no_memory(service: Service) -> None:
    before = service.rss_bytes()
    pieces = itertools.cycle([b"", b"P", request(LENGTH), request(LENGTH, body=IMAGE[:99])])
    for _, piece in zip(range(1000), pieces, strict=False):
        with wire(service) as connection:
            connection.send(piece)
    assert service.http.get(f"{service.url}/healthz").status_code == 200
    assert service.rss_bytes() - before < 64 << 20
