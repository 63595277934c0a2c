from __future__ import annotations

from service.ipc.slot_pool import SlotPool
from service.ipc.slots import SlotMemory, slot_layout
from service.supervision.canary import Canary
from tests.support.fake_device import FAKE_MODEL
from tests.support.jobs import NO_DETECTIONS


def _pool(count: int = 16) -> SlotPool:
    return SlotPool(SlotMemory.create(slot_layout(FAKE_MODEL.config, count)))


def test_a_canary_is_small_and_has_a_slot_of_its_own() -> None:
    pool = _pool(2)
    canary = Canary(pool, FAKE_MODEL.config)
    assert (pool.count, pool.in_use) == (1, 0)
    batch = canary.make_batch(3.0)
    lease = batch.jobs[0].lease
    image = pool.memory.read_header(lease.slot, lease.generation)
    assert image.size[0] < FAKE_MODEL.config.bucket_stride
    assert image.padded == batch.bucket
    assert canary.owns(batch)
    assert canary.in_flight
    assert not canary.owns(None)


def test_the_result_of_an_earlier_canary_does_not_count() -> None:
    pool = _pool()
    canary = Canary(pool, FAKE_MODEL.config)
    old = canary.make_batch(0.0).jobs[0].lease
    pool.memory.write_result(old.slot, old.generation, NO_DETECTIONS)
    new = canary.make_batch(1.0).jobs[0].lease
    assert not canary.complete()
    pool.memory.write_result(new.slot, new.generation, NO_DETECTIONS)
    assert canary.complete()
    assert not canary.in_flight


def test_only_consecutive_failures_count() -> None:
    canary = Canary(_pool(), FAKE_MODEL.config)
    assert [canary.record_failure() for _ in range(3)] == [False] * 3
    canary.record_success(1.0)
    assert canary.last_success == 1.0
    assert [canary.record_failure() for _ in range(4)] == [False, False, False, True]
    canary.reset()
    assert not canary.record_failure()
