"""The access log says whose requests fail, over HTTP and gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import structlog.testing

from service.access.api_keys import KeyRing, Scope, key_line
from service.observability.proxies import TrustedProxies
from service.observability.request_log import RequestLog
from service.oip import InferenceService, oip_routes
from service.rest import create_app
from service.rpc.pb import detection_pb2 as pb
from service.transport.grpc_call import peer_address
from service.transport.http_body import BodyMemory
from tests.service.rest.standin import StandIn
from tests.service.rpc.caller import Caller, calling, serving
from tests.support.fake_service import fake_settings, open_fake_detector
from tests.support.images import solid_png

IMAGE = solid_png((1, 2, 3))
SHOP = {"authorization": "Bearer shop"}


Lines = list[MutableMapping[str, Any]]


@pytest.fixture
def logged() -> Iterator[Lines]:
    with structlog.testing.capture_logs() as lines:
        yield lines
    structlog.contextvars.clear_contextvars()


def _log() -> RequestLog:
    return RequestLog(log_requests=True, proxies=TrustedProxies("10.0.0.0/8, 127.0.0.1, ::1"))


def _keys(folder: Path) -> KeyRing:
    file = folder / "keys"
    file.write_text(
        key_line("shop", [Scope.DETECT], "shop") + "\n" + key_line("ops", [Scope.METRICS], "ops")
    )
    return KeyRing(file)


async def _requests(logged: Lines, count: int = 1) -> Lines:
    """The lines of so many requests; they are written after the responses."""

    def found() -> Lines:
        return [line for line in logged if line["event"] == "request"]

    async with asyncio.timeout(20):
        while len(found()) < count:
            await asyncio.sleep(0.01)
    return found()


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    settings = fake_settings()
    async with open_fake_detector(settings) as detector:
        bodies = BodyMemory(settings.max_bodies_bytes)
        # Routes of the model's control are not called here.
        routes = oip_routes(detector, None, settings, bodies)  # type: ignore[arg-type]
        app = create_app(detector, settings, _keys(tmp_path), _log(), routes, bodies)
        transport = httpx.ASGITransport(app, client=("10.0.0.1", 4711))
        async with httpx.AsyncClient(transport=transport, base_url="http://a") as http:
            yield http


async def test_a_failed_http_request_names_client_key_agent_and_error(
    client: httpx.AsyncClient, logged: Lines
) -> None:
    forwarded = {"X-Forwarded-For": "6.6.6.6, 203.0.113.7", "User-Agent": "shop-app/1.2"}
    await client.post("/detect", content=b"no image", headers=SHOP | forwarded)
    (line,) = await _requests(logged)
    assert line["client"] == "203.0.113.7"
    assert (line["api_key"], line["user_agent"]) == ("shop", "shop-app/1.2")
    assert (line["status"], line["code"]) == (415, "unsupported_image")
    assert "looks like text" in line["detail"]
    assert line["failed_images"] == 1


async def test_a_successful_request_has_no_error(client: httpx.AsyncClient, logged: Lines) -> None:
    assert (await client.post("/detect", content=IMAGE, headers=SHOP)).status_code == 200
    (line,) = await _requests(logged)
    assert not {"code", "detail", "failed_images"} & line.keys()
    assert (line["client"], line["images"]) == ("10.0.0.1", 1)


async def test_one_bad_image_of_several_is_recorded(
    client: httpx.AsyncClient, logged: Lines
) -> None:
    files = [("file", ("a", IMAGE, "image/png")), ("file", ("b", b"no image", "image/png"))]
    assert (await client.post("/detect", files=files, headers=SHOP)).status_code == 200
    (line,) = await _requests(logged)
    assert (line["images"], line["failed_images"]) == (1, 1)
    assert line["code"] == "unsupported_image"


@pytest.mark.parametrize(
    ("method", "path", "headers", "code"),
    [
        ("POST", "/detect", {}, "unauthenticated"),
        ("POST", "/detect", {"x-api-key": "ops"}, "forbidden"),
        ("POST", "/v2/models/a/infer", {}, "unauthenticated"),
        ("POST", "/v2/models/a/infer", SHOP, "unknown_model"),
        ("GET", "/v2/models/nothing", SHOP, "unknown_model"),
        ("GET", "/nothing", SHOP, "not_found"),
        ("PUT", "/detect", SHOP, "method_not_allowed"),
        ("POST", "/detect?threshold=9", SHOP, "invalid_options"),
        ("POST", "/detect", SHOP | {"x-request-timeout-ms": "-1"}, "invalid_options"),
    ],
)
async def test_every_refusal_is_logged_with_its_code(  # noqa: PLR0913, PLR0917
    client: httpx.AsyncClient,
    logged: Lines,
    method: str,
    path: str,
    headers: dict[str, str],
    code: str,
) -> None:
    response = await client.request(method, path, content=IMAGE, headers=headers)
    (line,) = await _requests(logged)
    assert (line["status"], line["code"]) == (response.status_code, code)
    assert line["detail"]


async def test_a_client_cannot_forge_or_flood_the_log(
    client: httpx.AsyncClient, logged: Lines
) -> None:
    agent = b"a\x1b[31m\x7f" + b"b" * 5000
    headers = [(b"user-agent", agent), (b"x-api-key", b"shop")]
    await client.post("/detect", content=IMAGE, headers=headers)
    (line,) = await _requests(logged)
    assert line["user_agent"].startswith("a?[31m?bbb")
    assert len(line["user_agent"]) == 200


async def test_refused_keys_are_counted(tmp_path: Path) -> None:
    standin = StandIn()
    keys = _keys(tmp_path)
    app = create_app(standin.as_detector(), fake_settings(), keys)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://a") as http:
        await http.post("/detect", content=IMAGE)
        await http.post("/v2/models/a/infer", content=IMAGE)
        await http.post("/detect", content=IMAGE, headers={"x-api-key": "ops"})
        await http.get("/healthz")
    async with (
        serving(standin.as_detector(), keys=keys) as server,
        calling(server) as caller,
    ):
        for metadata in ((), (("x-api-key", "ops"),), (("x-api-key", "shop"),)):
            try:
                await caller.detect(pb.DetectRequest(image=IMAGE), metadata=metadata)
            except grpc.aio.AioRpcError as error:
                assert error.code().name in {"UNAUTHENTICATED", "PERMISSION_DENIED"}

    def refused(protocol: str, reason: str) -> float | None:
        labels = {"protocol": protocol, "reason": reason}
        return standin.metrics.registry.get_sample_value("lite_detr_keys_refused_total", labels)

    assert (refused("http", "unauthenticated"), refused("http", "forbidden")) == (2, 1)
    assert (refused("grpc", "unauthenticated"), refused("grpc", "forbidden")) == (1, 1)


@pytest.fixture
async def caller(tmp_path: Path) -> AsyncIterator[Caller]:
    settings = fake_settings()
    async with open_fake_detector(settings) as detector:
        # Methods of the model's control are not called here.
        oip = InferenceService(detector, None, settings, _log())  # type: ignore[arg-type]
        async with (
            serving(
                detector, keys=_keys(tmp_path), request_log=_log(), extra_services=[oip]
            ) as server,
            calling(server) as client,
        ):
            yield client


async def test_a_failed_grpc_call_names_client_key_agent_and_error(
    caller: Caller, logged: Lines
) -> None:
    metadata = (("x-api-key", "shop"), ("x-forwarded-for", "203.0.113.7"))
    with pytest.raises(grpc.aio.AioRpcError):
        await caller.detect(pb.DetectRequest(image=b"no image"), metadata=metadata)
    (line,) = await _requests(logged)
    assert (line["client"], line["api_key"]) == ("203.0.113.7", "shop")
    assert "grpc-python" in line["user_agent"]
    assert (line["status"], line["code"]) == ("INVALID_ARGUMENT", "unsupported_image")
    assert line["detail"]


async def test_keys_of_concurrent_grpc_calls_are_not_mixed_up(
    caller: Caller, logged: Lines
) -> None:
    await caller.detect(pb.DetectRequest(image=IMAGE), metadata=(("x-api-key", "shop"),))
    with pytest.raises(grpc.aio.AioRpcError):
        await caller.detect(pb.DetectRequest(image=IMAGE))
    first, second = await _requests(logged, 2)
    assert first["api_key"] == "shop"
    assert "api_key" not in second
    assert (second["status"], second["code"]) == ("UNAUTHENTICATED", "unauthenticated")
    assert second["client"] in {"127.0.0.1", "::1"}


async def test_a_failed_call_of_the_open_inference_protocol_is_logged(
    caller: Caller, logged: Lines
) -> None:
    infer: Any = caller.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    with pytest.raises(grpc.aio.AioRpcError):
        await infer(b"", metadata=(("x-api-key", "shop"),))
    (line,) = await _requests(logged)
    assert (line["api_key"], line["code"]) == ("shop", "unknown_model")


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.1:4711", "10.0.0.1"),
        ("ipv6:[::1]:4711", "::1"),
        ("ipv6:%5B2001:db8::7%5D:4711", "2001:db8::7"),
        ("unix:/run/a.sock", ""),
        ("", ""),
    ],
)
def test_the_address_of_a_grpc_peer(peer: str, address: str) -> None:
    assert peer_address(peer) == address
