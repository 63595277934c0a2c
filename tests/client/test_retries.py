from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from lite_detr_client.errors import (
    ConnectionFailed,
    DeadlineExceeded,
    Failure,
    InvalidImage,
    Overloaded,
    ServiceError,
    TooManyConnections,
    service_error,
)
from lite_detr_client.retries import Attempts, RetryPolicy, retry, retry_async
from service.errors import all_error_types


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def overloaded(retry_after_s: float | None = None) -> ServiceError:
    return Overloaded(Failure("overloaded", "busy", retry_after_s=retry_after_s))


def test_client_has_a_class_for_every_error_of_the_service() -> None:
    for error_type in all_error_types():
        error = service_error(Failure(error_type.code, "details"))
        assert type(error).__name__ == error_type.__name__
        assert str(error) == f"{error_type.code}: details"


def test_too_many_connections_are_retried() -> None:
    error = service_error(Failure("too_many_connections", "the service is full", "503"))
    assert type(error) is TooManyConnections
    assert Attempts(RetryPolicy(), None).pause_after(error) > 0


def test_unknown_code_becomes_the_base_class() -> None:
    error = service_error(Failure("new_code", "details"))
    assert type(error) is ServiceError
    assert (error.code, error.retryable) == ("new_code", False)


def test_pauses_grow_up_to_the_longest() -> None:
    policy = RetryPolicy(first_pause_s=0.1, growth=2, longest_pause_s=0.5)
    assert [policy.pause_s(n, None, chance=1) for n in (1, 2, 3, 4, 9)] == [0.1, 0.2, 0.4, 0.5, 0.5]


def test_jitter_shortens_a_pause_by_up_to_half() -> None:
    policy = RetryPolicy(first_pause_s=0.2)
    assert policy.pause_s(1, None, chance=0) == 0.1


def test_jitter_only_lengthens_a_requested_pause() -> None:
    policy = RetryPolicy(first_pause_s=0.2, longest_pause_s=1)
    assert policy.pause_s(1, 30.0, chance=0) == 30
    assert policy.pause_s(1, 30.0, chance=1) == 30.1


def test_attempts_are_bounded() -> None:
    attempts = Attempts(RetryPolicy(attempts=3), None, chance=lambda: 0)
    error = overloaded()
    assert attempts.pause_after(error) == 0.05
    assert attempts.pause_after(error) == 0.1
    with pytest.raises(Overloaded) as caught:
        attempts.pause_after(error)
    assert caught.value is error


@pytest.mark.parametrize("kind", [InvalidImage, DeadlineExceeded])
def test_permanent_errors_are_not_retried(kind: type[ServiceError]) -> None:
    with pytest.raises(kind):
        Attempts(RetryPolicy(), None).pause_after(kind(Failure(kind.code_of_class, "no")))


def test_pause_beyond_the_deadline_raises_at_once() -> None:
    clock = Clock()
    attempts = Attempts(RetryPolicy(), 5.0, clock=clock, chance=lambda: 0)
    assert attempts.remaining_s() == 5
    clock.now += 3
    assert attempts.remaining_s() == 2
    assert attempts.pause_after(overloaded(1)) == 1
    with pytest.raises(Overloaded):
        attempts.pause_after(overloaded(2))


def test_passed_deadline_raises() -> None:
    clock = Clock()
    attempts = Attempts(RetryPolicy(), 0.5, clock=clock)
    clock.now += 1
    with pytest.raises(DeadlineExceeded, match=r"within 0\.5 s"):
        attempts.remaining_s()


def _failing(times: int) -> Callable[[float | None], int]:
    numbers = itertools.count(1)

    def attempt(remaining_s: float | None) -> int:
        number = next(numbers)
        if number <= times:
            raise ConnectionFailed(Failure("connection_failed", "connection refused"))
        return number

    return attempt


SOON = RetryPolicy(attempts=3, first_pause_s=0)


def test_call_is_retried_until_it_succeeds() -> None:
    assert retry(Attempts(SOON, None), _failing(2)) == 3
    with pytest.raises(ConnectionFailed):
        retry(Attempts(SOON, None), _failing(3))


async def test_asynchronous_call_is_retried_until_it_succeeds() -> None:
    for times, expected in ((2, 3), (3, None)):
        failing = _failing(times)

        async def attempt(
            remaining_s: float | None, failing: Callable[[float | None], int] = failing
        ) -> int:
            return failing(remaining_s)

        if expected is None:
            with pytest.raises(ConnectionFailed):
                await retry_async(Attempts(SOON, None), attempt)
        else:
            assert await retry_async(Attempts(SOON, None), attempt) == expected
