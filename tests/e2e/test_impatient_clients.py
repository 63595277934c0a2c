"""A running service whose clients leave, hurry, or are more important than others."""

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

BASE_MS = 40  # of a batch, with eight images or with one


@pytest.fixture(scope="module")
def service() -> Iterator[WatchedService]:
    yield from _running(fake_base_ms=BASE_MS, slots=48, priority_slots=8)


@pytest.fixture(scope="module")
def slow_service() -> Iterator[WatchedService]:
    """Twenty images a second: a queue that a busy machine's clients still keep full."""
    yield from _running(fake_base_ms=100, max_batch_size=2, slots=16, priority_slots=4)


def _running(**settings: object) -> Iterator[WatchedService]:
    service = WatchedService(grpc_port=0, fake_per_image_ms=0, **settings)
    service.wait_until_ready()
    yield service
    service.kill()


@pytest.fixture(autouse=True)
def _everything_is_free_afterwards(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in {"service", "slow_service"} & set(request.fixturenames):
        _is_free(request.getfixturevalue(name))


def _is_free(service: WatchedService) -> None:
    service.until(lambda: service.metric_or_none("slots_in_use") == 0)
    assert service.metric_or_none("queue_depth") == 0
    assert service.health("/readyz") == 200


def _batches(service: WatchedService) -> float:
    return service.metric_or_none("batch_size_count") or 0.0


async def test_a_thousand_clients_that_leave_cost_nobody_else_an_answer(
    service: WatchedService,
) -> None:
    cancelled_before = service.metric_or_none("cancelled_total") or 0.0
    flood, rng = Flood(), random.Random(5)
    flood.add_http(service.url, 4)
    flood.add_grpc(service.grpc_address, 2)
    left = 0

    async def leave_again_and_again(seed: int) -> None:
        nonlocal left
        colour = random_colours(seed)
        if seed % 2:
            client: HttpClient | GrpcClient = HttpClient(service.url)
        else:
            client = GrpcClient(service.grpc_address)
        while left < 1000:
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

    await asyncio.gather(*(leave_again_and_again(100 + number) for number in range(24)))
    await flood.wait_for_results(20)
    outcomes = await flood.stop()
    assert left >= 1000
    assert set(outcomes) <= {"ok", "429", "RESOURCE_EXHAUSTED"}, outcomes
    await asyncio.to_thread(service.until, lambda: service.metric_or_none("slots_in_use") == 0)
    cancelled = (service.metric_or_none("cancelled_total") or 0.0) - cancelled_before
    assert 100 < cancelled <= left  # some left before their image was there, or after the answer


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_who_leaves_while_queued_never_reaches_the_engine(
    service: WatchedService, protocol: str
) -> None:
    cancelled_before = service.metric_or_none("cancelled_total") or 0.0
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
    cancelled = (service.metric_or_none("cancelled_total") or 0.0) - cancelled_before
    images = (service.metric_or_none("batch_size_sum") or 0.0) - images_before
    # Each was answered, ran for nobody, or was dropped; what was dropped did not run.
    assert images <= 22
    assert cancelled <= len(gone)
    assert images + cancelled >= 2


async def test_what_would_be_late_is_refused_at_once_and_never_runs(
    slow_service: WatchedService,
) -> None:
    flood = Flood()
    flood.add_http(slow_service.url, 14)  # some five batches are always before a newcomer
    await flood.wait_for_results(30)
    hasty_http = HttpClient(slow_service.url)
    hasty_grpc = GrpcClient(slow_service.grpc_address)
    replies: list[Reply] = []
    for number in range(10):
        reply = await hasty_http.detect((number, 1, 30), X_Request_Timeout_Ms="45")
        replies.append(reply)
        replies.append(await hasty_grpc.detect((number, 2, 30), timeout=0.045))
    outcomes = await flood.stop()
    assert set(outcomes) <= {"ok", "429"}
    hasty = count(replies)
    assert set(hasty) <= {"429", "RESOURCE_EXHAUSTED", "504", "DEADLINE_EXCEEDED"}, hasty
    assert hasty["429"] >= 5
    told = next(reply for reply in replies if reply.outcome == "429")
    assert int(told.headers["retry-after"]) >= 1
    assert b"after the deadline" in told.body or b"slots are in use" in told.body
    hasty_http.close()
    await hasty_grpc.close()


async def test_a_deadline_that_passed_while_queued_costs_the_engine_nothing(
    service: WatchedService,
) -> None:
    """Admitted before the queue was long, or where nobody could tell: it expires there."""
    lonely = WatchedService(fake_base_ms=600, fake_per_image_ms=0, max_batch_size=1, slots=8)
    lonely.wait_until_ready()
    try:
        clients = [HttpClient(lonely.url) for _ in range(5)]
        first = [asyncio.create_task(c.detect((n, 1, 30))) for n, c in enumerate(clients[:2])]
        await asyncio.to_thread(lonely.until, lambda: _batches(lonely) == 2)  # one is staged
        # Nothing has run yet, so that nothing can be predicted, and all are let in.
        late = [client.detect((9, 1, 30), X_Request_Timeout_Ms="100") for client in clients[2:]]
        assert {reply.outcome for reply in await asyncio.gather(*late)} == {"504"}
        assert {(await call).outcome for call in first} == {"ok"}
        assert lonely.metric_or_none("slots_in_use") == 0
        assert _batches(lonely) == 2
        assert lonely.metric_or_none("expired_total") == 3
        for client in clients:
            client.close()
    finally:
        await asyncio.to_thread(lonely.kill)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_high_priority_has_places_of_its_own_and_is_answered_sooner(
    slow_service: WatchedService, protocol: str
) -> None:
    flood = Flood()
    flood.add_http(slow_service.url, 20)  # more than there are places
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
    slow = sorted(reply.seconds for reply in usual if reply.outcome == "ok")
    fast = sorted(reply.seconds for reply in replies)
    assert fast[len(fast) // 2] < slow[len(slow) // 2]
    http.close()
    await rpc.close()


async def test_a_priority_that_there_is_not_is_refused(service: WatchedService) -> None:
    client, rpc = HttpClient(service.url), GrpcClient(service.grpc_address)
    assert (await client.detect((1, 1, 30), X_Request_Priority="urgent")).outcome == "422"
    reply = await rpc.detect((1, 1, 30), metadata=(("x-request-priority", "urgent"),))
    assert reply.outcome == "INVALID_ARGUMENT"
    client.close()
    await rpc.close()


async def test_overload_with_deadlines_is_answered_or_told_and_takes_no_memory(
    service: WatchedService,
) -> None:
    """The shape alone; the figures are measured by benchmarks/serving/overload.py."""

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
