from __future__ import annotations

import pytest

from service.batching.estimates import ArrivalRate, ServiceTime

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


def test_the_arrival_rate_follows_recent_arrivals() -> None:
    rate = ArrivalRate()
    assert rate.per_second(0.0) == 0.0
    for number in range(1000):
        rate.record(number * 0.02)
    assert rate.per_second(20.0) == pytest.approx(50, rel=0.05)
    assert rate.per_second(25.0) < 1
