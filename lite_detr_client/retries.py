"""Retries: how often and when a failed call is retried within its timeout."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from lite_detr_client.errors import DeadlineExceeded, Failure, ServiceError

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with jitter."""

    attempts: int = 4  # the first one included; 1: no retries
    first_pause_s: float = 0.1
    growth: float = 2.0  # factor from pause to pause
    longest_pause_s: float = 5.0  # unless the service requests a longer one

    def pause_s(self, failures: int, requested_s: float | None, chance: float) -> float:
        """Returns the seconds to wait before the next attempt.

        Args:
            failures: failed attempts so far, at least 1.
            requested_s: the pause that the service requested (`Retry-After`).
            chance: random number in 0..1, for the jitter.

        Returns:
            Between half of the pause and all of it; with `requested_s`, that plus up to half of
            the pause.
        """
        pause = min(self.longest_pause_s, self.first_pause_s * self.growth ** (failures - 1))
        least = pause / 2 if requested_s is None else requested_s
        return least + chance * pause / 2


class Attempts:
    """The attempts of one call: counts them and keeps the deadline."""

    def __init__(
        self,
        policy: RetryPolicy,
        timeout_s: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Starts the clock.

        Args:
            policy: number of attempts and pauses between them.
            timeout_s: for all attempts and pauses together; None: no limit.
            clock: monotonic time in seconds.
            chance: returns a random number in 0..1.
        """
        self._policy = policy
        self._clock = clock
        self._chance = chance
        self._timeout_s = timeout_s
        self._deadline = None if timeout_s is None else clock() + timeout_s
        self._failures = 0

    def remaining_s(self) -> float | None:
        """Returns the seconds until the deadline; None: no deadline.

        Raises:
            DeadlineExceeded: if the deadline has passed.
        """
        if self._deadline is None:
            return None
        remaining = self._deadline - self._clock()
        if remaining <= 0:
            detail = f"no response within {self._timeout_s:g} s"
            raise DeadlineExceeded(Failure(DeadlineExceeded.code_of_class, detail))
        return remaining

    def pause_after(self, error: ServiceError) -> float:
        """Counts a failed attempt and returns the seconds to wait before the next one.

        Raises:
            ServiceError: `error`, if it is not retryable, no attempt is left, or the deadline would
                pass first.
        """
        self._failures += 1
        if not error.retryable or self._failures >= self._policy.attempts:
            raise error
        pause = self._policy.pause_s(self._failures, error.retry_after_s, self._chance())
        if self._deadline is not None and self._clock() + pause >= self._deadline:
            raise error
        return pause


def retry(attempts: Attempts, attempt: Callable[[float | None], _Result]) -> _Result:
    """Runs `attempt` until it succeeds or must not be retried.

    Args:
        attempts: the attempts of this call.
        attempt: makes one attempt; receives the seconds until the deadline.

    Raises:
        ServiceError: the error of the last attempt.
    """
    while True:
        try:
            return attempt(attempts.remaining_s())
        except ServiceError as error:
            time.sleep(attempts.pause_after(error))


async def retry_async(
    attempts: Attempts, attempt: Callable[[float | None], Awaitable[_Result]]
) -> _Result:
    """Same as `retry`, for asyncio.

    Raises:
        ServiceError: the error of the last attempt.
    """
    while True:
        try:
            return await attempt(attempts.remaining_s())
        except ServiceError as error:
            await asyncio.sleep(attempts.pause_after(error))
