from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from model.config import VARIANTS
from model.detections import Detections
from service.errors import Overloaded
from service.ipc.slot_pool import SlotLease, SlotPool
from service.ipc.slots import (
    _RESULT_HEADER,
    SlotImage,
    SlotLayout,
    SlotMemory,
    StaleSlot,
    slot_layout,
)

IMAGE = SlotImage(size=(4, 6), padded=(64, 64), original_size=(8, 12))
LAYOUT = SlotLayout(count=3, image_bytes=300, max_detections=5)


@pytest.fixture
def pool() -> Iterator[SlotPool]:
    pool = SlotPool(SlotMemory.create(LAYOUT))
    yield pool
    pool.close()


def _pixels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def _detections(count: int) -> Detections:
    return Detections(
        scores=np.linspace(0.9, 0.1, count, dtype=np.float32),
        labels=np.arange(count, dtype=np.int64) + 70,
        boxes_xyxy=np.arange(count * 4, dtype=np.float32).reshape(count, 4),
    )


def _open_elsewhere(pool: SlotPool) -> SlotMemory:
    """The same memory through another descriptor, as in an engine."""
    return SlotMemory(LAYOUT, os.dup(pool.memory.fd))


def test_an_image_is_read_as_it_was_written(pool: SlotPool) -> None:
    engine = _open_elsewhere(pool)
    lease = pool.acquire()
    lease.write_image(_pixels(), IMAGE)
    assert engine.read_header(lease.slot, lease.generation) == IMAGE
    np.testing.assert_array_equal(engine.pixels(lease.slot, IMAGE.size), _pixels())
    engine.close()


@pytest.mark.parametrize("count", [0, 1, 5])
def test_detections_are_read_as_they_were_written(pool: SlotPool, count: int) -> None:
    engine = _open_elsewhere(pool)
    lease = pool.acquire()
    lease.write_image(_pixels(), IMAGE)
    engine.write_result(lease.slot, lease.generation, _detections(count))
    found = lease.read_result()
    expected = _detections(count)
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.boxes_xyxy, expected.boxes_xyxy)
    assert [found.scores.dtype.name, found.labels.dtype.name] == ["float32", "int64"]
    engine.close()


def test_detections_beyond_the_maximum_are_cut(pool: SlotPool) -> None:
    lease = pool.acquire()
    pool.memory.write_result(lease.slot, lease.generation, _detections(9))
    assert len(lease.read_result()) == LAYOUT.max_detections


def test_slots_do_not_overlap(pool: SlotPool) -> None:
    leases = [pool.acquire() for _ in range(LAYOUT.count)]
    for seed, lease in enumerate(leases):
        lease.write_image(_pixels(seed), IMAGE)
        pool.memory.write_result(lease.slot, lease.generation, _detections(5))
    for seed, lease in enumerate(leases):
        np.testing.assert_array_equal(pool.memory.pixels(lease.slot, (4, 6)), _pixels(seed))
        np.testing.assert_array_equal(lease.read_result().scores, _detections(5).scores)


def test_acquire_without_a_free_slot_raises_overloaded(pool: SlotPool) -> None:
    leases = [pool.acquire() for _ in range(LAYOUT.count)]
    assert pool.in_use == LAYOUT.count
    with pytest.raises(Overloaded) as caught:
        pool.acquire(retry_after_seconds=7)
    assert caught.value.retry_after_seconds == 7
    leases[1].release()
    assert pool.acquire().slot == leases[1].slot


def test_a_slot_is_free_after_its_last_release(pool: SlotPool) -> None:
    lease = pool.acquire()
    lease.retain()
    lease.release()
    assert pool.in_use == 1
    lease.release()
    assert pool.in_use == 0


def test_a_slot_freed_twice_is_an_assertion_error(pool: SlotPool) -> None:
    lease = pool.acquire()
    lease.release()
    with pytest.raises(AssertionError):
        lease.release()
    with pytest.raises(AssertionError):
        lease.retain()


def _lease_again(pool: SlotPool, old: SlotLease) -> SlotLease:
    old.release()
    new = pool.acquire()
    assert new.slot == old.slot
    return new


def test_a_late_write_does_not_reach_the_next_lease(pool: SlotPool) -> None:
    engine = _open_elsewhere(pool)
    old = pool.acquire()
    old.write_image(_pixels(), IMAGE)
    new = _lease_again(pool, old)
    new.write_image(_pixels(1), IMAGE)
    with pytest.raises(StaleSlot):
        engine.write_result(old.slot, old.generation, _detections(5))
    with pytest.raises(StaleSlot):
        new.read_result()
    engine.close()


def test_an_engine_does_not_read_a_slot_of_another_lease(pool: SlotPool) -> None:
    old = pool.acquire()
    old.write_image(_pixels(), IMAGE)
    old.release()
    with pytest.raises(StaleSlot):
        pool.memory.read_header(old.slot, old.generation)


def test_a_result_of_an_earlier_lease_is_refused(pool: SlotPool) -> None:
    old = pool.acquire()
    pool.memory.write_result(old.slot, old.generation, _detections(2))
    new = _lease_again(pool, old)
    with pytest.raises(StaleSlot):
        new.read_result()


def test_an_impossible_count_is_refused(pool: SlotPool) -> None:
    lease = pool.acquire()
    pool.memory.write_result(lease.slot, lease.generation, _detections(2))
    memory = pool.memory
    start = memory._result_start(lease.slot)
    _RESULT_HEADER.pack_into(memory._map, start, lease.generation, 1_000_000)
    with pytest.raises(ValueError, match="claims"):
        lease.read_result()


def test_an_image_larger_than_a_slot_is_refused(pool: SlotPool) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        pool.memory.pixels(0, (100, 100))


@pytest.mark.parametrize("slot", [-1, 3])
def test_a_slot_that_does_not_exist_is_refused(pool: SlotPool, slot: int) -> None:
    with pytest.raises(ValueError, match="no slot"):
        pool.memory.read_header(slot, 1)


def test_the_largest_image_of_every_variant_fits() -> None:
    for config in VARIANTS.values():
        layout = slot_layout(config, 2)
        assert layout.image_bytes >= config.shortest_side * config.longest_side * 3
        assert layout.stride % 4096 == 0
        assert layout.max_detections == config.max_detections


def test_unused_slots_take_no_memory() -> None:
    memory = SlotMemory.create(SlotLayout(count=500, image_bytes=1_000_000, max_detections=5))
    blocks = os.fstat(memory.fd).st_blocks
    memory.close()
    assert blocks == 0


def test_no_file_is_left_behind(pool: SlotPool) -> None:
    links = os.readlink(f"/proc/self/fd/{pool.memory.fd}")
    assert not Path(links).exists()


def test_a_system_without_memfd_has_slots_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    memory = SlotMemory.create(LAYOUT)
    memory.write_header(0, 1, IMAGE)
    assert memory.read_header(0, 1) == IMAGE
    memory.close()


def test_memory_can_be_closed_twice_and_while_arrays_use_it(pool: SlotPool) -> None:
    view = pool.memory.pixels(0, (4, 6))
    pool.close()
    pool.close()
    assert view.shape == (4, 6, 3)
