"""HTTP as no decent client speaks it: refused in words, in time, and without a trace left."""

from __future__ import annotations

import itertools
import time

import pytest

from tests.e2e.hostile import bombs
from tests.e2e.hostile.wire import PATIENCE_SECONDS, Wire, request, wire
from tests.support.images import solid_png
from tests.support.running import DEFAULTS, Service

PHOTO = bombs.jpeg()
LENGTH = b"Content-Length: %d" % len(PHOTO)
CHUNKED = b"Transfer-Encoding: chunked"

REFUSED = {
    "a length that is negative": request(b"Content-Length: -5", body=PHOTO),
    "a length that is no number": request(b"Content-Length: many", body=PHOTO),
    "a length beyond 64 bits": request(b"Content-Length: " + b"9" * 40, body=PHOTO),
    "a length above the limit": request(b"Content-Length: 99999999999", body=PHOTO),
    "two lengths": request(LENGTH, b"Content-Length: 5", body=PHOTO),
    "a length and chunks": request(LENGTH, CHUNKED, body=b"0\r\n\r\n"),
    "an encoding of no known kind": request(b"Transfer-Encoding: gzip, moon", body=PHOTO),
    "an encoding in disguise": request(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n"),
    "chunks whose size is no number": request(CHUNKED, body=b"zz\r\nabc\r\n0\r\n\r\n"),
    "chunks whose size is negative": request(CHUNKED, body=b"-1\r\nabc\r\n0\r\n\r\n"),
    "chunks whose size passes 64 bits": request(CHUNKED, body=b"f" * 40 + b"\r\nabc\r\n"),
    "a chunk longer than it says": request(CHUNKED, body=b"1\r\nabcdef\r\n0\r\n\r\n"),
    "a header with a line break": request(b"X-Odd: a\rX-Injected: b", LENGTH, body=PHOTO),
    "a header with a zero byte": request(b"X-Odd: a\0b", LENGTH, body=PHOTO),
    "a header without a name": request(b": nothing", LENGTH, body=PHOTO),
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "TLS": bytes.fromhex("160301020001000001fc0303") + bytes(range(200)),
    "rubbish": bytes(range(256)) * 8,
    "a path with spaces": b"GET /a b c HTTP/1.1\r\nHost: x\r\n\r\n",
    "a path of 70000 letters": b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "a head of 400 KB": request(*(b"X-%d: %b" % (i, b"v" * 1000) for i in range(400)), LENGTH),
    "a request line without end": b"GET /" + b"a" * 400_000,
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_request_that_is_wrong_is_refused_in_words(service: Service, name: str) -> None:
    with wire(service) as connection:
        connection.send(REFUSED[name])
        connection.end_sending()
        answer = connection.read_to_end()
    status = answer.partition(b"\r\n")[0]
    # A client that is still sending when it is refused may find the connection reset.
    assert not answer or status.startswith(b"HTTP/1.1 4"), answer
    assert not answer or b"application/problem+json" in answer
    assert b"X-Injected" not in answer and b"x-injected" not in answer


def test_a_body_shorter_than_it_says_is_nobodys_request(service: Service) -> None:
    with wire(service) as connection:
        connection.send(request(b"Content-Length: 100000", body=PHOTO))
        connection.end_sending()
        assert not connection.read_to_end().startswith(b"HTTP/1.1 2")


def test_bytes_behind_a_body_are_a_request_of_their_own(service: Service) -> None:
    smuggled = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with wire(service) as connection:
        connection.send(request(LENGTH, body=PHOTO + smuggled + b"rubbish\r\n\r\n"))
        answers = connection.read_to_end()
    assert answers.count(b"HTTP/1.1 200") == 2
    assert b"detections" in answers and b"live" in answers


def test_a_request_id_cannot_write_headers(service: Service) -> None:
    headers = (b"X-Request-Id: a%0d%0aX-Injected: b", b"traceparent: 00-\xff", LENGTH)
    with wire(service) as connection:
        connection.send(request(*headers, b"Connection: close", body=PHOTO))
        answer = connection.read_to_end().lower()
    assert answer.startswith(b"http/1.1 200")
    assert b"injected" not in answer


@pytest.mark.parametrize("trickle", [b"x", b"X-A: b\r\n"])
def test_a_head_that_trickles_is_cut_off(service: Service, trickle: bytes) -> None:
    with wire(service) as connection:
        connection.send(b"POST /detect HTTP/1.1\r\n")
        answer = _trickle(connection, trickle)
    assert not answer or answer.startswith(b"HTTP/1.1 408"), answer


def test_a_body_that_pauses_is_given_up(service: Service) -> None:
    with wire(service) as connection:
        connection.send(request(LENGTH, body=PHOTO[:50]))
        answer = connection.read_to_end()
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"paused" in answer


def test_a_body_that_trickles_without_a_pause_is_given_up(service: Service) -> None:
    with wire(service) as connection:
        connection.send(request(CHUNKED))
        answer = _trickle(connection, b"1\r\nx\r\n")
    assert answer.startswith(b"HTTP/1.1 408"), answer
    assert b"bytes a second" in answer


def _trickle(connection: Wire, data: bytes) -> bytes:
    """Sends a little again and again, until the service has had enough."""
    connection.socket.settimeout(0.1)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not connection.send(data):
            break
        try:
            answer = connection.socket.recv(1 << 16)
        except TimeoutError:
            continue
        except ConnectionError:
            return b""
        connection.socket.settimeout(PATIENCE_SECONDS)
        return answer + connection.read_to_end()
    assert time.monotonic() < deadline, "the service takes a trickle for ever"
    return b""


def test_idle_connections_up_to_the_limit_leave_probes_answered() -> None:
    service = Service(**(DEFAULTS | {"max_connections": "50", "header_timeout_seconds": "60"}))
    idle: list[Wire] = []
    try:
        service.wait_until_ready()
        idle += [Wire(service) for _ in range(50)]
        for path in ("healthz", "readyz"):
            assert service.http.get(f"{service.url}/{path}").status_code == 200
        refused = service.http.post(f"{service.url}/detect", content=PHOTO)
        assert refused.status_code in {200, 503}
        if refused.status_code == 503:
            assert refused.json()["code"] == "too_many_connections"
            assert refused.headers["Retry-After"] == "1"
        # Who is idle for long makes room for who is not.
        deadline = time.monotonic() + 60
        while True:
            answer = service.http.post(f"{service.url}/detect", content=PHOTO)
            if answer.status_code == 200:
                break
            assert time.monotonic() < deadline
            time.sleep(0.5)
    finally:
        for connection in idle:
            connection.socket.close()
        service.kill()


def test_half_closed_clients_get_their_answers(service: Service) -> None:
    with wire(service) as connection:
        connection.send(request(LENGTH, b"Connection: close", body=PHOTO))
        connection.end_sending()
        answer = connection.read_to_end()
    # uvicorn takes a closed half for a client that left, as most servers do.
    assert not answer or answer.startswith(b"HTTP/1.1 200")


def test_pipelined_requests_are_answered_in_turn(service: Service) -> None:
    colours = [(number * 20, 3, 3) for number in range(8)]
    pictures = [solid_png(colour, 60 + number) for number, colour in enumerate(colours)]
    stream = b"".join(
        request(b"Content-Length: %d" % len(picture), body=picture) for picture in pictures
    )
    with wire(service) as connection:
        connection.send(stream + request(b"Content-Length: 0", b"Connection: close"))
        answers = connection.read_to_end()
    widths = [int(part.partition(b",")[0]) for part in answers.split(b'"image":{"width":')[1:]]
    assert widths == list(range(60, 68))


def test_clients_that_never_read_do_not_fill_the_memory(service: Service) -> None:
    before = service.rss_bytes()
    connections = [Wire(service) for _ in range(20)]
    ask = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
    for connection in connections:
        connection.socket.settimeout(0.5)
        for _ in range(50):
            if not connection.send(ask * 100):
                break
    assert service.http.get(f"{service.url}/healthz").status_code == 200
    assert service.rss_bytes() - before < 128 << 20
    for connection in connections:
        connection.socket.close()


def test_bodies_of_all_clients_together_are_held_to_a_limit() -> None:
    limits = {"max_bodies_bytes": "1000000", "body_timeout_seconds": "60"}
    service = Service(**(DEFAULTS | limits))
    held: list[Wire] = []
    try:
        service.wait_until_ready()
        # Held bodies race with the probes: more of them come until a probe finds no room.
        for _ in range(50):
            held.append(Wire(service))
            held[-1].send(request(b"Content-Length: 500000", body=bytes(300_000)))
            answer = service.http.post(f"{service.url}/detect", content=bytes(350_000))
            if answer.status_code == 429:
                break
        assert answer.status_code == 429
        assert answer.headers["Retry-After"] == "1"
        for connection in held:
            connection.socket.close()
        deadline = time.monotonic() + 60
        while service.http.post(f"{service.url}/detect", content=PHOTO).status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        service.kill()


BOUNDARY = b"Content-Type: multipart/form-data; boundary=b"
PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'

FORMS = {
    "33 files": (BOUNDARY, (PART + PHOTO + b"\r\n") * 33 + b"--b--\r\n"),
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
    "no boundary": (b"Content-Type: multipart/form-data", PART + PHOTO),
    "a boundary of 10000 letters": (BOUNDARY + b"b" * 10_000, PART + PHOTO),
    "no end": (BOUNDARY, PART + PHOTO),
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
def test_a_form_that_is_wrong_is_refused(service: Service, name: str) -> None:
    header, body = FORMS[name]
    before = service.rss_bytes()
    with wire(service) as connection:
        connection.send(
            request(header, b"Content-Length: %d" % len(body), b"Connection: close", body=body)
        )
        answer = connection.read_to_end()
    assert answer.startswith(b"HTTP/1.1 4"), answer[:300]
    assert b"application/problem+json" in answer
    assert service.rss_bytes() - before < 128 << 20


def test_a_file_whose_name_is_a_megabyte_does_not_come_back_whole(service: Service) -> None:
    name = b"n" * (1 << 20)
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="' + name
    body = b"".join((part, b'"\r\n\r\n', PHOTO, b"\r\n")) * 2 + b"--b--\r\n"
    with wire(service) as connection:
        connection.send(
            request(BOUNDARY, b"Content-Length: %d" % len(body), b"Connection: close", body=body)
        )
        answer = connection.read_to_end()
    assert len(answer) < 100_000


def test_connections_that_come_and_go_leave_nothing(service: Service) -> None:
    before = service.rss_bytes()
    pieces = itertools.cycle([b"", b"P", request(LENGTH), request(LENGTH, body=PHOTO[:99])])
    for _, piece in zip(range(1000), pieces, strict=False):
        with wire(service) as connection:
            connection.send(piece)
    assert service.http.get(f"{service.url}/healthz").status_code == 200
    assert service.rss_bytes() - before < 64 << 20
