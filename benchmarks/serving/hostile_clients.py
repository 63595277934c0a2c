"""Hostile clients, all at once: a process of its own, one thread and one bounded rate for each.

    python -m benchmarks.serving.hostile_clients --http-port 8000 --grpc-port 8001 --seconds 60

Reads an API key of the scope `detect` from stdin: some of the clients have one. Prints one line of
JSON: for each client, the number of its attempts by outcome.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from benchmarks.serving.hostile_target import TIMEOUT_SECONDS, Attempt, Held, Target
from lite_detr_client.pb import detection_pb2 as pb
from tests.e2e.hostile import bombs
from tests.support.faulty_decode import CRASH, EXHAUST, HANG, RAISE

_DETECT = "/litedetr.v1.DetectionService/Detect"
_WATCH = "/grpc.health.v1.Health/Watch"
_LARGE_MESSAGE = bytes(60 << 20)
_SLOW_BODY_BYTES = 60 << 20
_SLOW_FIRST_BYTES = 16 << 20
_SLOW_BYTES_PER_ATTEMPT = 4096
_RESET_STREAMS = 200  # per attempt
_PIPELINED = 50  # requests per attempt
_SEED = 7


def slow_uploads() -> Attempt:
    """Bodies of 60 MiB that begin fast and then arrive at a few KiB per second, with a key."""
    held = Held(24)

    def attempt(target: Target) -> str:
        closed = 0
        for connection in list(held.things):
            try:
                connection.sendall(bytes(_SLOW_BYTES_PER_ATTEMPT))
            except OSError:
                held.things.remove(connection)
                connection.close()
                closed += 1
        connection = target.connect(target.http_port)
        held.add(connection, socket.socket.close)
        with suppress(OSError):
            connection.sendall(target.head(b"/detect", _SLOW_BODY_BYTES) + bytes(_SLOW_FIRST_BYTES))
        return "opened, others were closed by the service" if closed else "opened"

    return attempt


def idle_connections(kind: str) -> Attempt:
    """TCP connections that send nothing, to one of the ports."""
    held = Held(400)

    def attempt(target: Target) -> str:
        port = target.http_port if kind == "http" else target.grpc_port
        held.add(target.connect(port), socket.socket.close)
        return "opened"

    return attempt


def keyless_messages() -> Attempt:
    """GRPC calls of 60 MiB without a key."""

    def attempt(target: Target) -> str:
        with target.channel() as channel:
            return _outcome(lambda: _bytes_call(channel)(_LARGE_MESSAGE, timeout=10))

    return attempt


def watches() -> Attempt:
    """Streams of Health/Watch that stay open, on one connection each."""
    request = health_pb2.HealthCheckRequest().SerializeToString()
    held = Held(100)

    def attempt(target: Target) -> str:
        channel = target.channel()
        call: Any = channel.unary_stream(_WATCH)(request, timeout=3600)
        held.add((channel, call), lambda oldest: oldest[0].close())  # an unused call is cancelled
        return _outcome(lambda: next(call))

    return attempt


def _bytes_call(channel: grpc.Channel) -> Any:
    """Detect, with messages as bytes."""
    return channel.unary_unary(_DETECT)


def _outcome(call: Callable[[], object]) -> str:
    try:
        call()
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code.name
    return "OK"


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _headers(stream: int, path: bytes) -> bytes:
    """A HEADERS frame that opens a gRPC call; its fields are literals."""
    fields = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"x"))
    more = ((b"te", b"trailers"), (b"content-type", b"application/grpc"))
    block = b"".join(
        b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value
        for name, value in (*fields, *more)
    )
    return _frame(1, 4, stream, block)


_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0)


def reset_streams() -> Attempt:
    """GRPC calls that are opened and reset at once."""
    reset = struct.pack(">I", 8)

    def attempt(target: Target) -> str:
        with target.connect(target.grpc_port) as connection:
            streams = range(1, 2 * _RESET_STREAMS, 2)
            data = (_headers(n, _DETECT.encode()) + _frame(3, 0, n, reset) for n in streams)
            with suppress(OSError):
                connection.sendall(_PREFACE + b"".join(data))
        return "sent"

    return attempt


def garbage() -> Attempt:
    """Random bytes to both ports."""
    generator = random.Random(_SEED)

    def attempt(target: Target) -> str:
        data = generator.randbytes(2000)
        for port, start in ((target.http_port, b""), (target.grpc_port, _PREFACE)):
            with target.connect(port) as connection, suppress(OSError):
                connection.sendall(start + data)
        return "sent"

    return attempt


def pipelined_requests() -> Attempt:
    """Many requests on one connection at once; the client leaves after the first response."""
    return lambda target: target.send(b"GET /readyz HTTP/1.1\r\nHost: service\r\n\r\n" * _PIPELINED)


def upgrade_offers() -> Attempt:
    """Offers to change the protocol."""
    offers = itertools.cycle((b"h2c", b"websocket", b"TLS/1.0, HTTP/1.1", b"x" * 1000))
    settings = b"HTTP2-Settings: AAMAAABkAAQAAP__"

    def attempt(target: Target) -> str:
        lines = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: " + next(offers), settings)
        return target.send(target.head(b"/detect", 0, *lines))

    return attempt


def _files(files: Iterator[bytes]) -> Attempt:
    return lambda target: target.post(next(files))


def bomb_images() -> Attempt:
    """Small files that are expensive to decode, with a key."""
    files = (
        bombs.png(8000, 8000),
        bombs.png(65535, 65535, rows=1),
        bombs.png_text_bomb(),
        bombs.png_profile_bomb(),
        bombs.jpeg_of_many_segments(4 << 20),
        bombs.jpeg_of_fill_bytes(4 << 20),
        bombs.jpeg_of_many_scans(60, 1000, 1000),
        bombs.gif_of_many_blocks(4 << 20),
        bombs.bmp_run_lengths(30000, 30000),
        bombs.webp_canvas(16000, 16000),
        bombs.exif_loop(),
    )
    return _files(itertools.cycle(files))


def long_images() -> Attempt:
    """Valid images of 81 megapixels in small files, with a key, each waited for."""
    image = bombs.png(9000, 9000)
    return lambda target: target.post(image, timeout_ms=10_000)


def decoder_faults() -> Attempt:
    """Images that crash, hang or exhaust their decoder, with a key."""
    marks = (CRASH, HANG, EXHAUST, RAISE)
    return _files(itertools.cycle([bombs.jpeg() + mark for mark in marks]))


def truncated_images() -> Attempt:
    """Images that end too early, with a key."""
    whole = (bombs.jpeg(), bombs.png(64, 64), bombs.gif())
    cuts = [data[: len(data) * part // 8] for data in whole for part in range(1, 8)]
    return _files(itertools.cycle(cuts))


def mangled_paths() -> Attempt:
    """HTTP paths that some part of a server might read as another path, without a key."""
    spelled = (b"//detect", b"/detect%0A", b"/%64etect", b"/x/../detect", b"/DETECT", b"/detect;x")
    paths = itertools.cycle((*spelled, b"/v2/repository/models/fake%2Fload", b"/\xff", b"/detect/"))

    def attempt(target: Target) -> str:
        head = b"POST " + next(paths) + b" HTTP/1.1\r\nHost: service\r\nContent-Length: 0\r\n\r\n"
        return target.send(head)

    return attempt


def mangled_methods() -> Attempt:
    """GRPC methods that do not exist, or are not even text, without a key."""
    path = _DETECT.encode()
    endings = itertools.cycle((b"/", b"\xff", b"%0A", b"\xc3", b"\x00", b"?x"))

    def attempt(target: Target) -> str:
        with target.connect(target.grpc_port) as connection, suppress(OSError):
            connection.sendall(_PREFACE + _headers(1, path + next(endings)))
            connection.recv(1 << 12)
        return "sent"

    return attempt


def invalid_messages() -> Attempt:
    """GRPC messages that are no images, or no messages, with a key."""
    messages = (b"\xff" * 100, pb.DetectRequest(image=b"no image").SerializeToString())
    bomb = pb.DetectRequest(image=bombs.jpeg() + CRASH).SerializeToString()
    cycle = itertools.cycle((*messages, bomb))

    def attempt(target: Target) -> str:
        metadata = (("x-api-key", target.key),)
        with target.channel() as channel:
            call = _bytes_call(channel)
            return _outcome(lambda: call(next(cycle), metadata=metadata, timeout=10))

    return attempt


# (name, attempts per second at most, the client)
CLIENTS: tuple[tuple[str, float, Attempt], ...] = (
    ("slow uploads", 2, slow_uploads()),
    ("idle HTTP connections", 20, idle_connections("http")),
    ("idle gRPC connections", 20, idle_connections("grpc")),
    ("keyless gRPC calls of 60 MiB", 1, keyless_messages()),
    ("Health/Watch streams", 5, watches()),
    (f"{_RESET_STREAMS} reset gRPC streams", 1, reset_streams()),
    ("garbage bytes", 5, garbage()),
    (f"{_PIPELINED} pipelined requests", 2, pipelined_requests()),
    ("Upgrade offers", 5, upgrade_offers()),
    ("bomb images", 1, bomb_images()),
    ("images that take long to decode", 1, long_images()),
    ("files that break their decoder", 1, decoder_faults()),
    ("truncated images", 5, truncated_images()),
    ("mangled HTTP paths", 5, mangled_paths()),
    ("mangled gRPC methods", 5, mangled_methods()),
    ("invalid gRPC messages", 2, invalid_messages()),
)


def _attack(target: Target, rate: float, attempt: Attempt, until: float) -> Counter[str]:
    """Repeats an attempt at a rate (per second) until a time."""
    outcomes: Counter[str] = Counter()
    while (now := time.monotonic()) < until:
        try:
            outcomes[attempt(target)] += 1
        except OSError as error:
            outcomes[type(error).__name__] += 1
        time.sleep(max(0.0, now + 1 / rate - time.monotonic()))
    return outcomes


def main() -> None:
    """Runs all clients and prints their outcomes."""
    parser = argparse.ArgumentParser(description="Attack the service.")
    parser.add_argument("--http-port", type=int, required=True)
    parser.add_argument("--grpc-port", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--clients", default="", help="regular expression of their names")
    options = parser.parse_args()
    clients = [each for each in CLIENTS if re.search(options.clients, each[0])]
    target = Target(options.http_port, options.grpc_port, sys.stdin.readline().strip())
    until = time.monotonic() + options.seconds
    outcomes: dict[str, Counter[str]] = {}

    def run(name: str, rate: float, attempt: Attempt) -> None:
        outcomes[name] = _attack(target, rate, attempt, until)

    threads = [threading.Thread(target=run, args=each, daemon=True) for each in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(options.seconds + 2 * TIMEOUT_SECONDS)
    print(json.dumps({name: dict(outcomes.get(name, {})) for name, _, _ in clients}))


if __name__ == "__main__":
    main()
