"""A running service whose clients cancel, have short deadlines, or have high priority."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.live_load import (
    Flood,
    GrpcClient,
    HttpClient,
    Reply,
    count,
    random_colours,
)
from tests.support.watched_service import WatchedService

BASE_MS = 40  # of a batch of any size


@pytest.fixture(scope="module")
def service() -> Iterator[WatchedService]:
    yield from _running(fake_base_ms=BASE_MS, slots=48, priority_slots=8)


@pytest.fixture(scope="module")
def slow_service() -> Iterator[WatchedService]:
    """Runs 20 images per second, so that clients keep its queue full on a busy machine too."""
    yield from _running(fake_base_ms=100, max_batch_size=2, slots=16, priority_slots=4)


def _running(**settings: object) -> Iterator[WatchedService]:
    service = WatchedService(grpc_port=0, fake_per_image_ms=0, **settings)
    service.wait_until_ready()
    yield service
    service.kill()


@pytest.fixture(autouse=True)
def _service_is_idle_afterwards(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in {"service", "slow_service"} & set(request.fixturenames):
        _wait_until_idle(request.getfixturevalue(name))


def _wait_until_idle(service: WatchedService) -> None:
    service.until(lambda: service.metric_or_none("slots_in_use") == 0)
    assert service.metric_or_none("queue_depth") == 0
    assert service.health("/readyz") == 200


def _batches(service: WatchedService) -> float:
    return service.metric_or_none("batch_size_count") or 0.0


def _cancelled(service: WatchedService) -> float:
    return service.metric_or_none("cancelled_total") or 0.0


@pytest.mark.slow
async def test_a_thousand_clients_that_cancel_do_not_affect_others(
    service: WatchedService,
) -> None:
    cancelled_before = _cancelled(service)
    flood, rng = Flood(), random.Random(5)
    flood.add_http(service.url, 4)
    flood.add_grpc(service.grpc_address, 2)
    left = 0

    async def cancel_requests(seed: int, until_left: int) -> None:
        nonlocal left
        colour = random_colours(seed)
        if seed % 2:
            client: HttpClient | GrpcClient = HttpClient(service.url)
        else:
            client = GrpcClient(service.grpc_address)
        while left < until_left:
            call = asyncio.create_task(client.detect(colour()))
            await asyncio.wait([call], timeout=rng.uniform(0.0, 0.08))
            if call.cancel():
                left += 1
                with contextlib.suppress(asyncio.CancelledError):
                    await call
            elif call.result().outcome not in {"ok", "429", "RESOURCE_EXHAUSTED"}:
                raise AssertionError(call.result())
        closed = client.close()
        if closed is not None:
            await closed

    # Requests whose client leaves before the image has arrived, or after the response, do not count
    # as cancelled.
    while left < 1000 or _cancelled(service) - cancelled_before <= 100:
        target = left + 1000
        await asyncio.gather(*(cancel_requests(100 + number, target) for number in range(24)))
    await flood.wait_for_results(20)
    outcomes = await flood.stop()
    assert left >= 1000
    assert set(outcomes) <= {"ok", "429", "RESOURCE_EXHAUSTED"}, outcomes
    await asyncio.to_thread(service.until, lambda: service.metric_or_none("slots_in_use") == 0)
    assert 100 < _cancelled(service) - cancelled_before <= left


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_images_of_clients_that_leave_the_queue_do_not_reach_the_engine(
    service: WatchedService, protocol: str
) -> None:
    cancelled_before = _cancelled(service)
    images_before = service.metric_or_none("batch_size_sum") or 0.0
    colour = random_colours(8)
    stay = [HttpClient(service.url) for _ in range(2)]
    clients: list[HttpClient | GrpcClient] = [
        HttpClient(service.url) if protocol == "http" else GrpcClient(service.grpc_address)
        for _ in range(20)
    ]
    staying = [asyncio.create_task(client.detect(colour())) for client in stay]
    leaving = [asyncio.create_task(client.detect(colour())) for client in clients]
    await asyncio.sleep(0.03)
    for call in leaving:
        call.cancel()
    await asyncio.gather(*leaving, return_exceptions=True)
    assert {(await call).outcome for call in staying} == {"ok"}
    gone = [call for call in leaving if call.cancelled()]
    for client in (*clients, *stay):
        closed = client.close()
        if closed is not None:
            await closed
    await asyncio.to_thread(service.until, lambda: service.metric_or_none("slots_in_use") == 0)
    cancelled = _cancelled(service) - cancelled_before
    images = (service.metric_or_none("batch_size_sum") or 0.0) - images_before
    # Each image was completed, completed after its client left, or dropped before it ran.
    assert images <= 22
    assert cancelled <= len(gone)
    assert images + cancelled >= 2


@pytest.mark.slow
async def test_requests_that_would_miss_their_deadline_are_refused_at_once(
    slow_service: WatchedService,
) -> None:
    flood = Flood()
    flood.add_http(slow_service.url, 14)  # a new request waits for about five batches
    await flood.wait_for_results(30)
    http = HttpClient(slow_service.url)
    rpc = GrpcClient(slow_service.grpc_address)
    replies: list[Reply] = []
    number = 0
    while count(replies)["429"] < 5:
        number += 1
        reply = await http.detect((number, 1, 30), X_Request_Timeout_Ms="45")
        replies.append(reply)
        replies.append(await rpc.detect((number, 2, 30), timeout=0.045))
    outcomes = await flood.stop()
    assert set(outcomes) <= {"ok", "429"}
    refused = {"429", "RESOURCE_EXHAUSTED", "504", "DEADLINE_EXCEEDED"}
    assert set(count(replies)) <= refused, count(replies)
    refusal = next(reply for reply in replies if reply.outcome == "429")
    assert int(refusal.headers["retry-after"]) >= 1
    assert b"until the deadline" in refusal.body or b"slots are in use" in refusal.body
    http.close()
    await rpc.close()


async def test_an_image_whose_deadline_passes_in_the_queue_does_not_reach_the_engine(
    tmp_path: Path,
) -> None:
    gate = tmp_path / "batch"
    gated = WatchedService(fake_batch_gate=gate, max_batch_size=1, slots=8)
    gated.wait_until_ready()
    try:
        gate.touch()
        clients = [HttpClient(gated.url) for _ in range(5)]
        first = [asyncio.create_task(c.detect((n, 1, 30))) for n, c in enumerate(clients[:2])]
        await asyncio.to_thread(gated.until, lambda: _batches(gated) == 2)  # one is staged
        # No wait for the engine is predicted before the first batch has completed. Requests with a
        # deadline that is too short for receiving and decoding the image do not reach the queue.
        milliseconds = 100
        while (gated.metric_or_none("expired_total") or 0) < 3:
            headers = {"X_Request_Timeout_Ms": str(milliseconds)}
            late = [client.detect((9, 1, 30), **headers) for client in clients[2:]]
            assert {reply.outcome for reply in await asyncio.gather(*late)} <= {"504", "429"}
            milliseconds *= 2
        gate.unlink()
        assert {(await call).outcome for call in first} == {"ok"}
        assert gated.metric_or_none("slots_in_use") == 0
        assert _batches(gated) == 2
        for client in clients:
            client.close()
    finally:
        await asyncio.to_thread(gated.kill)


def _overtakes(one: Reply, other: Reply) -> bool:
    """Whether a request was sent after another one and completed before it."""
    completed_first = one.sent_at + one.seconds < other.sent_at + other.seconds
    return other.outcome == "ok" and one.sent_at > other.sent_at and completed_first


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_high_priority_has_slots_of_its_own_and_overtakes_normal_priority(
    slow_service: WatchedService, protocol: str
) -> None:
    flood = Flood()
    flood.add_http(slow_service.url, 20)  # more than there are slots
    await flood.wait_for_results(30)
    known = len(flood.replies)
    replies = []
    http, rpc = HttpClient(slow_service.url), GrpcClient(slow_service.grpc_address)
    for number in range(12):
        colour = (number, 7, 40)
        if protocol == "http":
            replies.append(await http.detect(colour, X_Request_Priority="high"))
        else:
            replies.append(await rpc.detect(colour, metadata=(("x-request-priority", "high"),)))
    await flood.wait_for_results(20)
    usual = flood.replies[known:]
    outcomes = await flood.stop()
    assert {reply.outcome for reply in replies} == {"ok"}
    assert set(outcomes) == {"ok", "429"}, outcomes
    # Several normal requests wait in the queue whenever a request of high priority arrives.
    assert sum(_overtakes(high, normal) for high in replies for normal in usual) >= len(replies)
    http.close()
    await rpc.close()


async def test_an_unknown_priority_is_refused(service: WatchedService) -> None:
    client, rpc = HttpClient(service.url), GrpcClient(service.grpc_address)
    assert (await client.detect((1, 1, 30), X_Request_Priority="urgent")).outcome == "422"
    reply = await rpc.detect((1, 1, 30), metadata=(("x-request-priority", "urgent"),))
    assert reply.outcome == "INVALID_ARGUMENT"
    client.close()
    await rpc.close()


@pytest.mark.slow
async def test_overload_with_deadlines_is_completed_or_refused_without_growing_memory(
    service: WatchedService,
) -> None:
    """Outcomes only; benchmarks/serving/overload.py measures throughput and latency."""

    def resident() -> int:
        return int(Path(f"/proc/{service.process.pid}/statm").read_text().split()[1]) * 4096

    flood = Flood()
    flood.add_http(service.url, 100, X_Request_Timeout_Ms="1000")
    await flood.wait_for_results(300)
    before = resident()
    await flood.wait_for_results(900)
    grown = resident() - before
    outcomes = await flood.stop()
    assert set(outcomes) <= {"ok", "429", "504"}, outcomes
    assert outcomes["429"] > 0
    assert grown < 48 * 1024 * 1024
