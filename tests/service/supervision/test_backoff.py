from __future__ import annotations

from service.supervision.backoff import RestartPolicy


def test_the_first_restart_has_no_delay() -> None:
    assert RestartPolicy(5, 60).record_exit(0.0) == 0.0


def test_delays_double_without_a_finished_batch_and_are_bounded() -> None:
    policy = RestartPolicy(5, 60)
    delays = [policy.record_exit(float(number)) for number in range(2000)]
    assert delays[:5] == [0.0, 0.1, 0.2, 0.4, 0.8]
    assert max(delays) == delays[-1] == 10.0


def test_a_finished_batch_resets_the_delay() -> None:
    policy = RestartPolicy(5, 60)
    for number in range(4):
        policy.record_exit(float(number))
    policy.record_success()
    assert policy.record_exit(5.0) == 0.0


def test_many_restarts_in_the_window_are_a_storm_until_the_window_has_passed() -> None:
    policy = RestartPolicy(3, 60)
    for number in range(3):
        assert not policy.is_storm(float(number))
        policy.record_exit(float(number))
        policy.record_success()
    assert policy.is_storm(10.0)
    assert not policy.is_storm(61.0)


def test_infrequent_restarts_are_no_storm() -> None:
    policy = RestartPolicy(3, 60)
    for number in range(10):
        policy.record_exit(number * 40.0)
        policy.record_success()
    assert not policy.is_storm(9 * 40.0)


def test_exits_without_a_finished_batch_are_a_storm_at_any_rate() -> None:
    policy = RestartPolicy(3, 60)
    for number in range(3):
        policy.record_exit(number * 1000.0)
    assert policy.is_storm(1e6)
