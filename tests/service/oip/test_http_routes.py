"""The HTTP routes with a stand-in detector: deadlines, priority, disconnects, exceptions."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest
import structlog
from starlette.types import Message

from service.oip.http_codec import HEADER_LENGTH
from service.types import Priority
from tests.service.oip.grpc_caller import build_app
from tests.service.oip.running_service import StandInControl
from tests.service.rest.standin import MODEL, StandIn
from tests.support.images import solid_png

IMAGE = solid_png((0, 128, 128), 200, 100)
PATH = f"/v2/models/{MODEL.name}/infer"
RAW = {HEADER_LENGTH: "0"}


@pytest.fixture
def standin() -> StandIn:
    return StandIn()


def calling(standin: StandIn, control: StandInControl | None = None) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(build_app(standin, control))
    return httpx.AsyncClient(transport=transport, base_url="http://service")


class LeavingClient:
    """A client that sends one body and disconnects when `leave` is set."""

    def __init__(self, body: bytes, headers: dict[str, str], *, whole: bool = True) -> None:
        self.messages: list[Message] = [
            {"type": "http.request", "body": body, "more_body": not whole}
        ]
        self.headers = headers
        self.leave = asyncio.Event()
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        if self.messages:
            return self.messages.pop()
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def run(self, standin: StandIn) -> None:
        headers = [(name.lower().encode(), text.encode()) for name, text in self.headers.items()]
        scope = {
            "type": "http",
            "method": "POST",
            "path": PATH,
            "query_string": b"",
            "headers": headers,
        }
        await build_app(standin)(scope, self.receive, self.send)


def outcome_count(standin: StandIn, outcome: str) -> float:
    labels = {"protocol": "oip_http", "outcome": outcome}
    registry = standin.metrics.registry
    return registry.get_sample_value("lite_detr_requests_total", labels) or 0.0


async def test_a_client_that_disconnects_cancels_its_detection(standin: StandIn) -> None:
    standin.hold = asyncio.Event()
    client = LeavingClient(IMAGE, RAW)
    call = asyncio.create_task(client.run(standin))
    await standin.started.wait()
    client.leave.set()
    await call
    assert standin.cancelled
    assert not client.sent
    assert outcome_count(standin, "cancelled") == 1


async def test_a_client_that_disconnects_within_its_body_is_counted_and_gets_no_response(
    standin: StandIn,
) -> None:
    client = LeavingClient(IMAGE[:50], RAW | {"content-length": str(len(IMAGE))}, whole=False)
    client.leave.set()
    await client.run(standin)
    assert not client.sent
    assert not standin.deadlines
    assert outcome_count(standin, "cancelled") == 1


async def test_the_earlier_of_header_and_parameter_is_the_deadline(standin: StandIn) -> None:
    body = b'{"inputs": [{"name": "IMAGE", "datatype": "BYTES", "shape": [1], "data": ["eA=="]}]%s}'
    long, short = (
        b', "parameters": {"timeout": 50000000}',
        b', "parameters": {"timeout": 5000000}',
    )
    started = time.monotonic()
    async with calling(standin) as client:
        for parameters in (long, short, b""):
            headers = {"X-Request-Timeout-Ms": "20000"}
            await client.post(PATH, content=body % parameters, headers=headers)
        await client.post(PATH, content=body % short)
        await client.post(PATH, content=body % b"")
    ended = time.monotonic()
    *bounded, unbounded = standin.deadlines
    assert unbounded is None
    for deadline, seconds in zip(bounded, (20, 5, 20, 5), strict=True):
        assert deadline is not None
        assert started + seconds <= deadline <= ended + seconds


async def test_the_priority_parameter_takes_precedence_over_the_header(standin: StandIn) -> None:
    body = b'{"inputs": [{"name": "IMAGE", "datatype": "BYTES", "shape": [1], "data": ["eA=="]}]%s}'
    high = {"X-Request-Priority": "high"}
    async with calling(standin) as client:
        await client.post(PATH, content=body % b"")
        await client.post(PATH, content=body % b"", headers=high)
        await client.post(PATH, content=body % b', "parameters": {"priority": 1}')
        await client.post(PATH, content=body % b', "parameters": {"priority": 2}', headers=high)
        bad = await client.post(PATH, content=b"", headers={"X-Request-Priority": "first"})
    assert bad.status_code == 422
    usual = Priority.NORMAL
    assert standin.priorities == [usual, Priority.HIGH, Priority.HIGH, usual]


async def test_an_unexpected_exception_is_logged_and_gives_no_details_away(
    standin: StandIn,
) -> None:
    standin.error = RuntimeError("secret")
    with structlog.testing.capture_logs() as logs:
        async with calling(standin) as client:
            response = await client.post(PATH, content=IMAGE, headers=RAW)
    assert (response.status_code, response.json()) == (500, {"error": "An unexpected error."})
    assert [line["event"] for line in logs] == ["unexpected error"]
    assert logs[0]["request_id"] == response.headers["x-request-id"]


async def test_a_service_that_is_not_live_gets_503(standin: StandIn) -> None:
    standin.live = False
    async with calling(standin) as client:
        assert (await client.get("/v2/health/live")).status_code == 503
        assert (await client.get("/v2/health/ready")).status_code == 200


async def test_responses_are_not_stored_by_caches(standin: StandIn) -> None:
    async with calling(standin) as client:
        for path in ("/v2", "/v2/health/ready", "/v2/nothing"):
            assert (await client.get(path)).headers["cache-control"] == "no-store"


async def test_a_load_responds_when_the_model_is_loaded(standin: StandIn) -> None:
    control = StandInControl("stand-in", loaded=False, hold=asyncio.Event())
    assert control.hold is not None
    async with calling(standin, control) as client:
        call = asyncio.create_task(client.post("/v2/repository/models/stand-in/load"))
        while not control.calls:
            await asyncio.sleep(0)
        assert not call.done()
        control.hold.set()
        assert (await call).status_code == 200
    assert control.loaded
