from __future__ import annotations

from service.supervision.backoff import RestartPolicy


def test_the_first_death_is_answered_at_once() -> None:
    assert RestartPolicy(5, 60).died(0.0) == 0.0


def test_delays_double_while_nothing_works_and_are_bounded() -> None:
    policy = RestartPolicy(5, 60)
    delays = [policy.died(float(number)) for number in range(2000)]
    assert delays[:5] == [0.0, 0.1, 0.2, 0.4, 0.8]
    assert max(delays) == delays[-1] == 10.0


def test_a_finished_batch_resets_the_delay() -> None:
    policy = RestartPolicy(5, 60)
    for number in range(4):
        policy.died(float(number))
    policy.worked()
    assert policy.died(5.0) == 0.0


def test_many_restarts_in_the_window_are_a_storm_that_passes() -> None:
    policy = RestartPolicy(3, 60)
    for number in range(3):
        assert not policy.storming(float(number))
        policy.died(float(number))
        policy.worked()
    assert policy.storming(10.0)
    assert not policy.storming(61.0)


def test_restarts_far_apart_are_no_storm() -> None:
    policy = RestartPolicy(3, 60)
    for number in range(10):
        policy.died(number * 40.0)
        policy.worked()
    assert not policy.storming(9 * 40.0)


def test_an_engine_that_never_works_storms_however_slowly() -> None:
    policy = RestartPolicy(3, 60)
    for number in range(3):
        policy.died(number * 1000.0)
    assert policy.storming(1e6)
