"""A replica in the test's own event loop: HTTP as an ASGI application, gRPC as Ray calls it."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2
from structlog.testing import capture_logs

from service.access.api_keys import Scope, key_line, new_key
from service.oip.pb import grpc_service_pb2 as oip_pb
from service.ray_serve import grpc_proxy, retries
from service.ray_serve.grpc_methods import ForwardedCall
from service.ray_serve.grpc_proxy import ForwardedService, services, unary_methods
from service.ray_serve.options import RayOptions
from service.ray_serve.proxy import REPLICA_HEADER
from service.ray_serve.replica import NotLive, Replica
from service.ray_serve.settings import replica_settings
from service.rpc.pb import detection_pb2 as pb
from tests.service.rpc.caller import Caller, trailing
from tests.support.fake_serve import FakeSettings, fake_backend
from tests.support.fake_service import fake_settings
from tests.support.images import solid_png

pytestmark = pytest.mark.asyncio(loop_scope="module")

IMAGE = solid_png((10, 128, 250))
CHECK = "/grpc.health.v1.Health/Check"


class Lifespan:
    """Runs the lifespan of an ASGI application, as Ray Serve does."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._to_app: asyncio.Queue[Any] = asyncio.Queue()
        self._from_app: asyncio.Queue[Any] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def startup(self) -> dict[str, Any]:
        scope = {"type": "lifespan"}
        self._task = asyncio.create_task(self._app(scope, self._to_app.get, self._from_app.put))
        return await self._send("lifespan.startup")

    async def shutdown(self) -> dict[str, Any]:
        message = await self._send("lifespan.shutdown")
        assert self._task is not None
        await self._task
        return message

    async def _send(self, kind: str) -> dict[str, Any]:
        await self._to_app.put({"type": kind})
        message: dict[str, Any] = await self._from_app.get()
        return message


@asynccontextmanager
async def running(settings: FakeSettings) -> AsyncIterator[Replica]:
    settings = replica_settings(settings, RayOptions())  # type: ignore[assignment]
    replica = Replica(settings, fake_backend(settings))
    lifespan = Lifespan(replica)
    assert await lifespan.startup() == {"type": "lifespan.startup.complete"}
    try:
        yield replica
    finally:
        assert await lifespan.shutdown() == {"type": "lifespan.shutdown.complete"}


def http_client(replica: Replica) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(replica), base_url="http://replica")


class RayLikeServer:
    """Replaces the functions of handlers, as the server of Ray's gRPC proxy does."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self.lost = 0  # so many of the next calls lose their replica
        self.calls: list[ForwardedCall] = []
        self.server = grpc.aio.server()

    def add_generic_rpc_handlers(self, handlers: tuple[Any, ...]) -> None:
        [service] = handlers
        service._method_handlers = {
            path: handler._replace(unary_unary=self._forward, response_serializer=None)
            for path, handler in service._method_handlers.items()
        }
        self.server.add_generic_rpc_handlers(handlers)

    async def _forward(self, request: ForwardedCall, context: Any) -> bytes | None:
        call: ForwardedCall = pickle.loads(pickle.dumps(request))
        self.calls.append(call)
        if self.lost:
            self.lost -= 1
            context.set_code(grpc.StatusCode.INTERNAL)
            context.set_details("the actor died")
            return None
        context.set_trailing_metadata([("request_id", "of Ray")])
        try:
            result = (await self._replica.methods.run(call)).SerializeToString()
        except Exception as error:  # as Ray does it
            context.set_code(grpc.StatusCode.INTERNAL)
            context.set_details(str(error))
            return None
        context.set_code(grpc.StatusCode.OK)
        return result


@asynccontextmanager
async def calling(replica: Replica) -> AsyncIterator[tuple[RayLikeServer, Caller]]:
    ray = RayLikeServer(replica)
    grpc_proxy.add_services(None, ray)
    port = ray.server.add_insecure_port("127.0.0.1:0")
    await ray.server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield ray, Caller(channel)
    finally:
        await ray.server.stop(0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def replica() -> AsyncIterator[Replica]:
    async with running(fake_settings(http_port=8000, max_body_bytes=100_000)) as replica:
        yield replica


@pytest_asyncio.fixture(loop_scope="module")
async def called(replica: Replica) -> AsyncIterator[tuple[RayLikeServer, Caller]]:
    async with calling(replica) as called:
        yield called


async def test_http_has_the_routes_of_the_service_and_the_marker(replica: Replica) -> None:
    async with http_client(replica) as http:
        for path in (
            "/readyz",
            "/healthz",
            "/v1/models",
            "/v2/health/ready",
            "/metrics",
            "/nothing",
        ):
            response = await http.get(path)
            assert response.status_code == (404 if path == "/nothing" else 200)
            assert response.headers[REPLICA_HEADER.decode()] == "1"
        response = await http.post("/detect", content=IMAGE, headers={"X-Request-Id": "mine"})
        assert response.status_code == 200 and response.json()["detections"]
        assert response.headers["x-request-id"] == "mine"


async def test_grpc_has_the_same_detections_as_http(
    replica: Replica, called: tuple[RayLikeServer, Caller]
) -> None:
    async with http_client(replica) as http:
        expected = (await http.post("/detect", content=IMAGE)).json()["detections"]
    response = await called[1].detect(pb.DetectRequest(image=IMAGE))
    assert [(d.label, d.score) for d in response.detections] == [
        (d["label"], d["score"]) for d in expected
    ]
    batch = await called[1].detect_batch(
        pb.DetectBatchRequest(requests=[pb.DetectRequest(image=IMAGE)] * 2)
    )
    for outcome in batch.outcomes:
        assert outcome.response.detections == response.detections


async def test_request_id_deadline_and_address_are_carried(
    called: tuple[RayLikeServer, Caller],
) -> None:
    ray, caller = called
    call = caller.detect(
        pb.DetectRequest(image=IMAGE), metadata=(("x-request-id", "mine"),), timeout=60
    )
    assert (await call).request_id == "mine"
    metadata = dict(await call.trailing_metadata())
    assert metadata["x-request-id"] == "mine"
    assert "request_id" not in metadata
    [forwarded] = ray.calls
    assert forwarded.seconds_left is not None and 59 < forwarded.seconds_left < 61
    assert forwarded.peer.startswith("ipv4:127.0.0.1:")


async def test_errors_have_the_status_and_code_of_the_service(
    called: tuple[RayLikeServer, Caller],
) -> None:
    _, caller = called
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await caller.detect(pb.DetectRequest(image=b"no image"))
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert trailing(error.value)["lite-detr-code"] == "unsupported_image"
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await caller.raw["Detect"](b"\xff\xff")
    assert trailing(error.value)["lite-detr-code"] == "malformed_message"
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await caller.detect(pb.DetectRequest(image=bytes(200_000)))
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_streams_are_refused_with_the_reason(called: tuple[RayLikeServer, Caller]) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await called[1].detect_stream(iter([pb.DetectRequest(image=IMAGE)])).read()
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "unary" in (error.value.details() or "")


async def test_a_lost_call_is_sent_again(
    called: tuple[RayLikeServer, Caller], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "_PAUSE_SECONDS", 0.0)
    ray, caller = called
    ray.lost = 2
    assert (await caller.detect(pb.DetectRequest(image=IMAGE))).detections
    assert len(ray.calls) == 3
    ray.lost = 5
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await caller.detect(pb.DetectRequest(image=IMAGE))
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert trailing(error.value)["lite-detr-code"] == "replica_lost"


async def test_open_inference_protocol_and_health_are_there(
    called: tuple[RayLikeServer, Caller],
) -> None:
    channel = called[1].channel
    ready = channel.unary_unary(
        "/inference.GRPCInferenceService/ServerReady",
        oip_pb.ServerReadyRequest.SerializeToString,
        oip_pb.ServerReadyResponse.FromString,
    )
    assert (await ready(oip_pb.ServerReadyRequest())).ready
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        health_pb2.HealthCheckRequest.SerializeToString,
        health_pb2.HealthCheckResponse.FromString,
    )
    response = await check(health_pb2.HealthCheckRequest())
    assert response.status == health_pb2.HealthCheckResponse.SERVING


async def send(caller: Caller, method: str, data: bytes) -> None:
    """Sends bytes, which need not be a message."""
    channel: Any = caller.channel
    await channel.unary_unary(method)(data)


async def test_a_malformed_message_of_any_method_is_refused_once(
    called: tuple[RayLikeServer, Caller], replica: Replica
) -> None:
    ray, caller = called
    methods = list(replica.methods._handlers)
    assert CHECK in methods
    for method in methods:
        ray.calls.clear()
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await send(caller, method, b"\xff\xff")
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT, method
        assert trailing(error.value)["lite-detr-code"] == "malformed_message", method
        assert len(ray.calls) == 1, method


@pytest.mark.parametrize("place", ["handler", "response"])
async def test_an_exception_that_a_handler_does_not_handle_is_internal_once_and_logged(
    called: tuple[RayLikeServer, Caller],
    replica: Replica,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    async def fail(_request: object, context: Any) -> bytes:
        context.set_trailing_metadata((("x-request-id", "mine"),))
        if place == "handler":
            raise RuntimeError("a secret of the service")
        return b"not a message"

    handlers: dict[str, Any] = {
        CHECK: grpc.unary_unary_rpc_method_handler(
            fail, None, health_pb2.HealthCheckResponse.SerializeToString
        )
    }
    monkeypatch.setattr(replica.methods, "_handlers", handlers)
    ray, caller = called
    with capture_logs() as logs, pytest.raises(grpc.aio.AioRpcError) as error:
        await send(caller, CHECK, b"")
    assert error.value.code() is grpc.StatusCode.INTERNAL
    assert trailing(error.value) == {"x-request-id": "mine", "lite-detr-code": "internal"}
    assert "secret" not in (error.value.details() or "")
    assert len(ray.calls) == 1
    [line] = [each for each in logs if each["event"] == "a gRPC method failed"]
    assert line["method"] == CHECK and line["exc_info"]


async def test_a_deserializer_that_refuses_a_message_is_no_lost_replica(
    called: tuple[RayLikeServer, Caller], replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(_request: object, _context: object) -> None:
        raise AssertionError("not called")

    read = health_pb2.HealthCheckRequest.FromString
    handler: Any = grpc.unary_unary_rpc_method_handler(never, read)
    monkeypatch.setattr(replica.methods, "_handlers", {CHECK: handler})
    ray, caller = called
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await send(caller, CHECK, b"\xff\xff")
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert len(ray.calls) == 1


async def test_ray_finds_methods_by_names_that_are_unique() -> None:
    assert len(unary_methods()) == len(set(unary_methods()))
    assert {"Detect", "DetectBatch", "GetModel", "ModelInfer", "Check"} <= set(unary_methods())
    assert services()["litedetr.v1.DetectionService"]["DetectStream"]
    service = ForwardedService("a.B", {"One": False, "Many": True})
    assert list(service._method_handlers) == ["/a.B/One"]


async def test_keys_are_required_over_http_and_grpc(tmp_path: Path) -> None:
    key, file = new_key(), tmp_path / "keys"
    file.write_text(key_line("detect", [Scope.DETECT], key))
    async with running(fake_settings(http_port=8000, api_keys_file=file)) as replica:
        async with http_client(replica) as http:
            assert (await http.post("/detect", content=IMAGE)).status_code == 401
        async with calling(replica) as (_, caller):
            request = pb.DetectRequest(image=IMAGE)
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await caller.detect(request)
            assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
            metadata = (("authorization", f"Bearer {key}"),)
            assert (await caller.detect(request, metadata=metadata)).detections


async def test_a_stop_finishes_accepted_requests() -> None:
    async with running(fake_settings(http_port=8000, fake_per_image_ms=200.0)) as replica:
        http = http_client(replica)
        accepted = asyncio.create_task(http.post("/detect", content=IMAGE))
        while replica.active == 0:
            await asyncio.sleep(0.005)
    assert accepted.done() or (await accepted).status_code == 200
    assert (await accepted).status_code == 200
    await http.aclose()


async def test_health_is_liveness(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    replica.check_health()
    monkeypatch.setattr("service.core.detector.Detector.live", False)
    with pytest.raises(NotLive):
        replica.check_health()


async def test_a_replica_that_cannot_start_says_why() -> None:
    settings = fake_settings(http_port=8000, api_keys_file=Path("/no/such/file"))
    message = await Lifespan(Replica(settings, fake_backend(settings))).startup()
    assert message["type"] == "lifespan.startup.failed"
    assert "/no/such/file" in message["message"]
