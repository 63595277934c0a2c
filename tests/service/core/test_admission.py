from __future__ import annotations

import asyncio

import pytest

from service.core.admission import Admission
from service.errors import DeadlineExceeded, NotReady, Overloaded
from service.types import Priority
from tests.support.simulated_service import Device, SimulatedService, with_service
from tests.support.virtual_time import run_in_virtual_time

DEVICE = Device(0.0, 0.1, max_batch_size=1)  # ten images a second, one at a time


async def _busy(service: SimulatedService, waiting: int) -> list[asyncio.Task[None]]:
    """Lets it learn its engine's times and then queues so many images."""
    for _ in range(3):
        await service.detect(10)
    tasks = [asyncio.create_task(service.detect(60)) for _ in range(waiting)]
    await asyncio.sleep(0.05)
    return tasks


def test_where_nothing_is_known_everybody_is_let_in() -> None:
    async def story(service: SimulatedService) -> None:
        lease = service.admission.admit(service.served, 0.001, Priority.NORMAL)
        lease.release()
        assert service.admission.predicted_wait_seconds(service.served) == 0.0

    run_in_virtual_time(with_service(DEVICE, story))


def test_an_idle_engine_is_tried_whatever_was_predicted() -> None:
    async def story(service: SimulatedService) -> None:
        await _busy(service, 0)
        service.admission.admit(service.served, 0.01, Priority.NORMAL).release()

    run_in_virtual_time(with_service(DEVICE, story))


def test_what_would_be_late_is_told_when_to_come_back() -> None:
    async def story(service: SimulatedService) -> None:
        tasks = await _busy(service, 20)
        admission, served = service.admission, service.served
        assert admission.predicted_wait_seconds(served) == pytest.approx(1.95, abs=0.1)
        with pytest.raises(Overloaded, match="after the deadline") as refusal:
            admission.admit(served, 1.0, Priority.NORMAL)
        assert refusal.value.retry_after_seconds == 2
        admission.admit(served, 4.0, Priority.NORMAL).release()
        # The queue is no obstacle for high priority: only what runs and is staged is before it.
        admission.admit(served, 1.0, Priority.HIGH).release()
        await asyncio.gather(*tasks)

    run_in_virtual_time(with_service(DEVICE, story))


def test_a_deadline_that_has_passed_is_told_so() -> None:
    async def story(service: SimulatedService) -> None:
        with pytest.raises(DeadlineExceeded):
            service.admission.admit(service.served, 0.0, Priority.NORMAL)

    run_in_virtual_time(with_service(DEVICE, story))


def test_without_an_engine_nobody_is_let_in() -> None:
    async def story(service: SimulatedService) -> None:
        service.engines[0].ready = False
        with pytest.raises(NotReady) as refusal:
            service.admission.admit(service.served, 10.0, Priority.HIGH)
        assert refusal.value.retry_after_seconds

    run_in_virtual_time(with_service(DEVICE, story))


def test_the_last_places_are_for_high_priority() -> None:
    async def story(service: SimulatedService) -> None:
        admission, served = service.admission, service.served
        leases = [admission.admit(served, 60, Priority.NORMAL) for _ in range(4)]
        with pytest.raises(Overloaded, match="all 4 places"):
            admission.admit(served, 60, Priority.NORMAL)
        leases += [admission.admit(served, 60, Priority.HIGH) for _ in range(2)]
        with pytest.raises(Overloaded):
            admission.admit(served, 60, Priority.HIGH)
        for lease in leases:
            lease.release()

    run_in_virtual_time(with_service(DEVICE, story, slots=4, kept=2))


def test_images_that_wait_for_a_thread_count_too() -> None:
    async def story(service: SimulatedService) -> None:
        admission = Admission(decode_threads=2)
        admission.learn_decode(0.5)
        batcher = service.served.batcher
        with (
            batcher.track_decoding(),
            batcher.track_decoding(),
            batcher.track_decoding(),
            batcher.track_decoding(),
        ):
            assert admission.predicted_wait_seconds(service.served) == pytest.approx(1.0)

    run_in_virtual_time(with_service(DEVICE, story))
