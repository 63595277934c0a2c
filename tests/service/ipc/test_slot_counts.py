"""The numbers of slots that the metrics report are those at which requests are refused."""

from __future__ import annotations

import pytest

from service.errors import Overloaded
from service.ipc.slot_pool import SlotPool
from service.ipc.slots import SlotLayout, SlotMemory
from service.types import Priority


@pytest.mark.parametrize(("slots", "kept"), [(64, 8), (4, 8), (1, 0), (1, 1)])
@pytest.mark.parametrize("engines", [1, 3])
def test_requests_are_refused_when_the_reported_number_is_in_use(
    slots: int, kept: int, engines: int
) -> None:
    layout = SlotLayout(count=slots + kept + engines, image_bytes=3, max_detections=1)
    pool = SlotPool(SlotMemory.create(layout), kept)
    for _ in range(engines):
        pool.reserve()
    assert (pool.normal_count, pool.priority_count) == (slots, kept)
    for _ in range(slots):
        pool.acquire()
    assert pool.in_use == pool.normal_count
    with pytest.raises(Overloaded):
        pool.acquire()
    assert pool.priority_in_use == 0
    for _ in range(kept):
        pool.acquire(Priority.HIGH)
    assert pool.priority_in_use == pool.priority_count
    with pytest.raises(Overloaded):
        pool.acquire(Priority.HIGH)
    pool.close()
