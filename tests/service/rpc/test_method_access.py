"""API keys over gRPC: whatever the method's spelling and the metadata, no lesser key executes it.

Every handler of the server is replaced by one that records its execution.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from grpc.aio._server import Server

from service.access.api_keys import KeyRing, Scope, key_line, new_key
from service.core.model_control import ModelControl
from service.oip.grpc_service import InferenceService
from service.rpc.api_key_interceptor import scope_of_method
from service.settings import load_settings
from tests.service.rest.standin import StandIn
from tests.service.rpc.caller import Caller, calling, serving

KEYS = {scope: new_key() for scope in Scope}
WRONG = new_key()
EXECUTED = grpc.StatusCode.DATA_LOSS  # the service never uses it
TIMEOUT_SECONDS = 60.0
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _GOAWAY = 0, 1, 3, 4, 7  # frames of HTTP/2
Metadata = tuple[tuple[str, str | bytes], ...]

_DETECTION = "/litedetr.v1.DetectionService/"
_INFERENCE = "/inference.GRPCInferenceService/"
METHOD_SCOPES = {
    "/grpc.health.v1.Health/Check": None,
    "/grpc.health.v1.Health/Watch": None,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Scope.DETECT,
    _DETECTION + "Detect": Scope.DETECT,
    _DETECTION + "DetectBatch": Scope.DETECT,
    _DETECTION + "DetectStream": Scope.DETECT,
    _DETECTION + "GetModel": Scope.DETECT,
    _INFERENCE + "ModelConfig": Scope.DETECT,
    _INFERENCE + "ModelInfer": Scope.DETECT,
    _INFERENCE + "ModelMetadata": Scope.DETECT,
    _INFERENCE + "ModelReady": Scope.DETECT,
    _INFERENCE + "ModelStatistics": Scope.DETECT,
    _INFERENCE + "ModelStreamInfer": Scope.DETECT,
    _INFERENCE + "RepositoryIndex": Scope.DETECT,
    _INFERENCE + "RepositoryModelLoad": Scope.ADMIN,
    _INFERENCE + "RepositoryModelUnload": Scope.ADMIN,
    _INFERENCE + "ServerLive": None,
    _INFERENCE + "ServerMetadata": Scope.DETECT,
    _INFERENCE + "ServerReady": None,
}


def _recording(handler: Any, method: str, executed: list[str]) -> Any:
    async def run(_request: object, context: Any) -> None:
        executed.append(method)
        await context.abort(EXECUTED)

    async def run_stream(_request: object, context: Any) -> AsyncIterator[bytes]:
        executed.append(method)
        await context.abort(EXECUTED)
        yield b""

    kind = "_".join(
        "stream" if streams else "unary"
        for streams in (handler.request_streaming, handler.response_streaming)
    )
    return handler._replace(
        **{kind: run_stream if handler.response_streaming else run}, request_deserializer=None
    )


@pytest.fixture
def methods() -> set[str]:
    """All methods that the server registered."""
    return set()


@pytest.fixture
def executed() -> list[str]:
    return []


@pytest.fixture
async def port(
    standin: StandIn,
    tmp_path: Path,
    methods: set[str],
    executed: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[int]:
    """The server with both services and keys, on a port of its own."""
    register = Server.add_registered_method_handlers

    def add_nothing(_server: Any, _handlers: Any) -> None:
        """Nothing is left that is not registered."""

    def register_recording(server: Any, service: str, handlers: dict[str, Any]) -> None:
        recording = {
            name: _recording(each, f"/{service}/{name}", executed)
            for name, each in handlers.items()
        }
        methods.update(f"/{service}/{name}" for name in handlers)
        register(server, service, recording)

    monkeypatch.setattr(Server, "add_generic_rpc_handlers", add_nothing)
    monkeypatch.setattr(Server, "add_registered_method_handlers", register_recording)
    file = tmp_path / "keys"
    file.write_text("\n".join(key_line(scope.value, [scope], key) for scope, key in KEYS.items()))
    settings = load_settings(model_control="explicit")
    inference = InferenceService(standin.as_detector(), cast(ModelControl, object()), settings)
    detector = standin.as_detector()
    async with serving(detector, None, [inference], keys=KeyRing(file)) as server:
        yield server.port


@pytest.fixture
async def caller(port: int) -> AsyncIterator[Caller]:
    class Server:
        def __init__(self) -> None:
            self.port = port

    async with calling(cast(Any, Server())) as caller:
        yield caller


async def _call(caller: Caller, method: str, metadata: Metadata) -> grpc.StatusCode:
    """The status of a call with one empty message."""
    # The message and the end of the stream are sent at once, which is what all four kinds of
    # methods accept. A client stream that is refused while it sends may end with INTERNAL.
    stream: Any = caller.channel.unary_stream(method)
    call = stream(b"", metadata=metadata, timeout=TIMEOUT_SECONDS)
    with suppress(grpc.aio.AioRpcError):
        async for _ in call:
            pass
    code: grpc.StatusCode = await call.code()
    return code


def _presentations() -> Iterator[tuple[str, Metadata, Scope | None]]:
    """Names of ways to send keys, the metadata, and the scope of the key that counts."""
    yield "nothing", (), None
    for scope, key in KEYS.items():
        yield f"bearer {scope}", (("authorization", f"Bearer {key}"),), scope
        yield f"x-api-key {scope}", (("x-api-key", key),), scope
        yield f"bearer in other case {scope}", (("authorization", f"bEARER {key}"),), scope
        yield f"bearer and spaces {scope}", (("authorization", f"Bearer   {key}  "),), scope
        yield f"without bearer {scope}", (("authorization", key),), None
        yield f"basic {scope}", (("authorization", f"Basic {key}"),), None
        yield f"bearer without a space {scope}", (("authorization", f"Bearer{key}"),), None
        yield f"binary {scope}", (("authorization-bin", f"Bearer {key}".encode()),), None
        yield f"binary x-api-key {scope}", (("x-api-key-bin", key.encode()),), None
        yield f"cookie {scope}", (("cookie", f"x-api-key={key}"),), None
        yield f"underscores {scope}", (("x_api_key", key),), None
        yield f"other case of the key {scope}", (("x-api-key", key.swapcase()),), None
        yield f"part of the key {scope}", (("x-api-key", key[:-1]),), None
        yield f"longer than the key {scope}", (("x-api-key", key + "A"),), None
        digest = hashlib.sha256(key.encode()).hexdigest()
        yield f"hash {scope}", (("x-api-key", f"sha256:{digest}"),), None
        yield (
            f"two authorizations {scope}",
            (("authorization", f"Bearer {key}"), ("authorization", f"Bearer {KEYS[Scope.ADMIN]}")),
            scope,
        )
        yield (
            f"two x-api-keys {scope}",
            (("x-api-key", key), ("x-api-key", KEYS[Scope.ADMIN])),
            scope,
        )
        yield (
            f"wrong x-api-key first {scope}",
            (("x-api-key", WRONG), ("x-api-key", key)),
            None,
        )
        yield (
            f"authorization before x-api-key {scope}",
            (("x-api-key", KEYS[Scope.ADMIN]), ("authorization", f"Bearer {key}")),
            scope,
        )
        yield (
            f"two keys in one {scope}",
            (("x-api-key", f"{KEYS[Scope.DETECT]},{key}"),),
            None,
        )
    for value in ("", " ", "Bearer", "Bearer ", "Bearer  ", f"Bearer {WRONG}", "*", "null"):
        yield f"authorization {value!r}", (("authorization", value),), None
        yield f"x-api-key {value!r}", (("x-api-key", value),), None


def _allows(presented: Scope | None, required: Scope | None) -> bool:
    return required is None or presented in {required, Scope.ADMIN}


async def test_every_method_requires_the_scope_that_is_listed_here(
    caller: Caller, methods: set[str]
) -> None:
    assert {method: scope_of_method(method) for method in methods} == METHOD_SCOPES


@pytest.mark.parametrize("service", [_DETECTION, _INFERENCE, "/another.Service/"])
def test_a_method_that_is_not_listed_requires_an_admin_key(service: str) -> None:
    assert scope_of_method(service + "MethodOfTomorrow") is Scope.ADMIN


@pytest.mark.parametrize("method", METHOD_SCOPES)
async def test_a_method_is_executed_for_sufficient_keys_only(
    caller: Caller, executed: list[str], method: str
) -> None:
    required = METHOD_SCOPES[method]
    for name, metadata, presented in _presentations():
        executed.clear()
        status = await _call(caller, method, metadata)
        if _allows(presented, required):
            assert (executed, status) == ([method], EXECUTED), name
        else:
            refused = "UNAUTHENTICATED" if presented is None else "PERMISSION_DENIED"
            assert (executed, status.name) == ([], refused), name


def _manglings(method: str) -> Iterator[str]:
    """Spellings of a method that some part of a server might read as that method."""
    _, service, name = method.split("/")
    for tail in ("/", "//", " ", "\t", "\x7f", ";x", "?x", "#x", "%00", "%0A", "%20", "%2F", "/."):
        yield method + tail
    yield from (f"/{method}", f"//x{method}", f"/.{method}", f"/x/..{method}", f"/%2e{method}")
    yield from (method.upper(), method.lower(), method.swapcase(), method[1:], f"{method}é")
    yield from (f"/{service}//{name}", f"/{service}/./{name}", f"/{service}%2F{name}")
    yield from (f"/{service}.{name}", f"/{service}/{name.lower()}", f"/{service}/", f"/{service}")
    yield from (f"/{service.upper()}/{name}", f"/.{service}/{name}", f"/x.{service}/{name}")
    yield from (f"{method}?x-api-key={KEYS[Scope.ADMIN]}", f"http://h{method}")
    yield f"/grpc.health.v1.Health/Check/..{method}"
    yield f"/grpc.health.v1.Health/Check?{method}"
    for place in (1, len(method) // 2, len(method) - 1):
        yield f"{method[:place]}%{ord(method[place]):02X}{method[place + 1 :]}"


@pytest.mark.parametrize("method", METHOD_SCOPES)
async def test_no_spelling_of_a_method_is_open_to_a_lesser_key(
    caller: Caller, executed: list[str], method: str
) -> None:
    for mangled in _manglings(method):
        for presented in (None, Scope.METRICS, Scope.DETECT):
            executed.clear()
            metadata = () if presented is None else (("x-api-key", KEYS[presented]),)
            status = await _call(caller, mangled, metadata)
            if mangled == method:
                expected = [method] if _allows(presented, METHOD_SCOPES[method]) else []
                assert executed == expected
            else:
                assert executed == [], mangled
                assert status is grpc.StatusCode.UNIMPLEMENTED, mangled


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _opening_a_call(path: bytes, more: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """The bytes of a connection with one call; literal header fields, sent as they are."""
    fields = (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"x"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        *more,
    )
    block = b"".join(
        b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in fields
    )
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0)
    return preface + _frame(_HEADERS, 4, 1, block) + _frame(_DATA, 1, 1, bytes(5))


def _send_and_read(port: int, data: bytes) -> bytes:
    """All bytes until the call or the connection ends."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_SECONDS) as connection:
        connection.sendall(data)
        with suppress(ConnectionError):
            while not _ends_call(received) and (part := connection.recv(1 << 16)):
                received += part
    return received


def _ends_call(received: bytes) -> bool:
    """Whether there is a GOAWAY, the reset of stream 1, or the last header of stream 1."""
    place = 0
    while place + 9 <= len(received):
        length = int.from_bytes(received[place : place + 3], "big")
        kind, flags = received[place + 3], received[place + 4]
        if kind in {_GOAWAY, _RST_STREAM} or (kind == _HEADERS and flags & 1):
            return True
        place += 9 + length
    return False


@pytest.mark.parametrize(
    "name", [b"Authorization", b"AUTHORIZATION", b"X-API-Key", b"X-Api-Key", b"authorization "]
)
async def test_a_header_name_that_http2_forbids_presents_no_key(
    port: int, executed: list[str], name: bytes
) -> None:
    key = KEYS[Scope.ADMIN].encode()
    value = key if b"x" in name.lower()[:1] else b"Bearer " + key
    path = (_INFERENCE + "RepositoryModelUnload").encode()
    valid = _opening_a_call(path, ((name.lower().strip(), value),))
    await asyncio.to_thread(_send_and_read, port, valid)
    assert len(executed) == 1
    executed.clear()
    await asyncio.to_thread(_send_and_read, port, _opening_a_call(path, ((name, value),)))
    assert executed == []


@pytest.mark.parametrize("ending", [b"\xff", b"\x00", b"\n", b"\r\n", b"\xc0\xaf", b"\xc3"])
async def test_a_method_of_other_bytes_is_not_executed(
    port: int, executed: list[str], ending: bytes
) -> None:
    for method in METHOD_SCOPES:
        data = _opening_a_call(method.encode() + ending, ())
        await asyncio.to_thread(_send_and_read, port, data)
    assert executed == []
    await _assert_serves(port, executed)


@pytest.mark.parametrize("name", [b"authorization", b"x-api-key", b"x-request-id", b"user-agent"])
@pytest.mark.parametrize("value", [b"\xff\xfe", b"\xc3", b"a\x00b", b"a\nb", b"Bearer \xe9"])
async def test_metadata_of_other_bytes_presents_no_key(
    port: int, executed: list[str], name: bytes, value: bytes
) -> None:
    data = _opening_a_call((_DETECTION + "Detect").encode(), ((name, value),))
    await asyncio.to_thread(_send_and_read, port, data)
    assert executed == []
    await _assert_serves(port, executed)


async def _assert_serves(port: int, executed: list[str]) -> None:
    valid = _opening_a_call(b"/grpc.health.v1.Health/Check", ())
    await asyncio.to_thread(_send_and_read, port, valid)
    assert executed == ["/grpc.health.v1.Health/Check"]
