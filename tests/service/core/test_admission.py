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
    """Lets the service measure its engine, then queues `waiting` images."""
    for _ in range(3):
        await service.detect(10)
    tasks = [asyncio.create_task(service.detect(60)) for _ in range(waiting)]
    await asyncio.sleep(0.05)
    return tasks


def test_everything_is_accepted_before_the_first_measurement() -> None:
    async def scenario(service: SimulatedService) -> None:
        lease = service.admission.admit(service.served, 0.001, Priority.NORMAL)
        lease.release()
        assert service.admission.predicted_wait_seconds(service.served) == 0.0

    run_in_virtual_time(with_service(DEVICE, scenario))


def test_an_image_for_an_idle_engine_is_accepted_despite_the_prediction() -> None:
    async def scenario(service: SimulatedService) -> None:
        await _busy(service, 0)
        service.admission.admit(service.served, 0.01, Priority.NORMAL).release()

    run_in_virtual_time(with_service(DEVICE, scenario))


def test_an_image_that_would_be_late_is_refused_with_a_retry_time() -> None:
    async def scenario(service: SimulatedService) -> None:
        tasks = await _busy(service, 20)
        admission, served = service.admission, service.served
        assert admission.predicted_wait_seconds(served) == pytest.approx(1.95, abs=0.1)
        with pytest.raises(Overloaded, match="until the deadline") as refusal:
            admission.admit(served, 1.0, Priority.NORMAL)
        assert refusal.value.retry_after_seconds == 2
        with pytest.raises(Overloaded, match="more than 80% of the 2300 ms until the deadline"):
            admission.admit(served, 2.3, Priority.NORMAL)  # it would be just in time
        admission.admit(served, 4.0, Priority.NORMAL).release()
        # High priority waits only for the batches that run or are staged.
        admission.admit(served, 1.0, Priority.HIGH).release()
        await asyncio.gather(*tasks)

    run_in_virtual_time(with_service(DEVICE, scenario))


def test_a_deadline_that_has_passed_is_refused() -> None:
    async def scenario(service: SimulatedService) -> None:
        with pytest.raises(DeadlineExceeded):
            service.admission.admit(service.served, 0.0, Priority.NORMAL)

    run_in_virtual_time(with_service(DEVICE, scenario))


def test_nothing_is_accepted_without_an_engine() -> None:
    async def scenario(service: SimulatedService) -> None:
        service.engines[0].ready = False
        with pytest.raises(NotReady) as refusal:
            service.admission.admit(service.served, 10.0, Priority.HIGH)
        assert refusal.value.retry_after_seconds

    run_in_virtual_time(with_service(DEVICE, scenario))


def test_the_last_slots_are_for_high_priority() -> None:
    async def scenario(service: SimulatedService) -> None:
        admission, served = service.admission, service.served
        leases = [admission.admit(served, 60, Priority.NORMAL) for _ in range(4)]
        with pytest.raises(Overloaded, match="all 4 slots"):
            admission.admit(served, 60, Priority.NORMAL)
        leases += [admission.admit(served, 60, Priority.HIGH) for _ in range(2)]
        with pytest.raises(Overloaded):
            admission.admit(served, 60, Priority.HIGH)
        for lease in leases:
            lease.release()

    run_in_virtual_time(with_service(DEVICE, scenario, slots=4, kept=2))


def test_images_that_wait_for_a_decode_thread_count_too() -> None:
    async def scenario(service: SimulatedService) -> None:
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

    run_in_virtual_time(with_service(DEVICE, scenario))
