from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batching.estimates import ArrivalRate, BusyShare, ServiceTime

MEGA = 1_000_000


def test_the_prediction_is_zero_before_the_first_batch() -> None:
    assert ServiceTime().predict(MEGA) == 0.0
    assert not ServiceTime().known


def test_equal_batches_predict_a_proportional_cost() -> None:
    time = ServiceTime()
    for _ in range(5):
        time.learn(MEGA, 0.1)
    assert time.predict(MEGA) == pytest.approx(0.1)
    assert time.predict(3 * MEGA) == pytest.approx(0.3)


def test_a_fixed_cost_and_a_slope_are_separated() -> None:
    time = ServiceTime()
    for pixels in (1, 4, 2, 8, 3, 6, 1, 8):
        time.learn(pixels * MEGA, 0.05 + 0.01 * pixels)
    assert time.predict(5 * MEGA) == pytest.approx(0.10, rel=1e-6)
    assert time.predict(0) == pytest.approx(0.05, rel=1e-6)


def test_the_past_is_forgotten() -> None:
    time = ServiceTime()
    for seconds in [0.1] * 50 + [0.4] * 100:
        time.learn(MEGA, seconds)
    assert time.predict(MEGA) == pytest.approx(0.4, rel=0.02)


def test_a_prediction_is_never_negative() -> None:
    time = ServiceTime()
    for pixels, seconds in [(1, 0.5), (2, 0.4), (3, 0.01), (8, 0.3)]:
        time.learn(pixels * MEGA, seconds)
    assert min(time.predict(pixels * MEGA) for pixels in range(20)) >= 0


SIZES = st.lists(st.integers(1, 50), min_size=2, max_size=60)


@given(SIZES, st.lists(st.floats(0.95, 1.05), min_size=60, max_size=60))
def test_a_constant_cost_predicts_that_cost(sizes: list[int], noise: list[float]) -> None:
    """Within the sizes that ran, also if larger batches happened to be faster."""
    time = ServiceTime()
    sizes = [1, 50, *sizes]
    for size, factor in zip(sizes, noise, strict=False):
        time.learn(size * MEGA, 0.1 * factor)
    for size in (1, 10, 50):
        assert time.predict(size * MEGA) == pytest.approx(0.1, rel=0.3)


def test_a_constant_cost_is_not_forgotten_while_all_batches_have_one_size() -> None:
    time = ServiceTime()
    for pixels in (1, 8, 1, 8, *[1] * 500):
        time.learn(pixels * MEGA, 0.1)
    assert time.predict(8 * MEGA) == pytest.approx(0.1)


def test_faster_large_batches_predict_a_constant_cost() -> None:
    time = ServiceTime()
    for pixels, seconds in [(1, 0.11), (8, 0.1), (1, 0.11), (8, 0.09)]:
        time.learn(pixels * MEGA, seconds)
    assert time.predict(MEGA) == time.predict(100 * MEGA) == pytest.approx(0.1, rel=0.1)


@given(
    st.lists(st.tuples(st.integers(1, 1000), st.floats(1e-6, 100)), min_size=1, max_size=40),
    st.integers(0, 2000),
)
def test_a_prediction_lies_between_a_constant_and_a_proportional_cost(
    batches: list[tuple[int, float]], pixels: int
) -> None:
    time = ServiceTime()
    for size, seconds in batches:
        time.learn(size * MEGA, seconds)
    fastest, slowest = (pick(seconds for _, seconds in batches) for pick in (min, max))
    smallest, largest = (pick(size for size, _ in batches) for pick in (min, max))
    found = time.predict(pixels * MEGA)
    assert time.predict(0) >= 0
    assert found <= slowest * max(1, pixels / smallest) * (1 + 1e-9)
    assert found >= fastest * min(1, pixels / largest) * (1 - 1e-9)
    assert time.predict((pixels + 1) * MEGA) >= found  # larger batches never take less time


def test_the_arrival_rate_follows_recent_arrivals() -> None:
    rate = ArrivalRate()
    assert rate.per_second(0.0) == 0.0
    for number in range(1000):
        rate.record(number * 0.02)
    assert rate.per_second(20.0) == pytest.approx(50, rel=0.05)
    assert rate.per_second(25.0) < 1


def test_the_busy_share_follows_the_load_up_and_down() -> None:
    share, now = BusyShare(100.0), 100.0
    assert share.value(now) == 0.0
    for load in (0.25, 0.75, 1.0, 0.0):
        for _ in range(2000):  # 200 s in periods of 0.1 s
            if load > 0:
                share.change(True, now)
            share.change(False, now + 0.1 * load)
            now += 0.1
        assert share.value(now) == pytest.approx(load, abs=0.01)


@given(st.lists(st.floats(0, 5), max_size=30))
def test_reading_the_busy_share_does_not_change_it(reads: list[float]) -> None:
    read, unread = BusyShare(0.0), BusyShare(0.0)
    read.change(True, 1.0)
    unread.change(True, 1.0)
    assert all(0 <= read.value(1.0 + at) <= 1 for at in reads)
    read.change(False, 6.0)
    unread.change(False, 6.0)
    assert read.value(40.0) == unread.value(40.0)


def test_the_busy_share_of_a_time_before_the_last_change_is_that_of_the_change() -> None:
    share = BusyShare(0.0)
    share.change(True, 10.0)
    share.change(False, 40.0)
    assert share.value(1.0) == share.value(40.0) == pytest.approx(1 - 0.3679, abs=1e-4)
