"""How often and when a call is tried again, within the time that it has."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from lite_detr_client.errors import DeadlineExceeded, Failure, ServiceError

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class RetryPolicy:
    """Growing pauses between attempts, with jitter so that clients do not come back as one."""

    attempts: int = 4  # the first one included; 1 never tries again
    first_pause_s: float = 0.1
    growth: float = 2.0  # from pause to pause
    longest_pause_s: float = 5.0  # unless the service asks for more

    def pause_s(self, failures: int, asked_s: float | None, chance: float) -> float:
        """How long to wait before the next attempt.

        Args:
            failures: attempts so far, from 1.
            asked_s: what the service asked for.
            chance: 0..1, for the jitter.

        Returns:
            Half to the whole of a pause that grows; or what was asked for and up to half a
            pause more.
        """
        pause = min(self.longest_pause_s, self.first_pause_s * self.growth ** (failures - 1))
        least = pause / 2 if asked_s is None else asked_s
        return least + chance * pause / 2


class Attempts:
    """The attempts of one call."""

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
            policy: how often and when.
            timeout_s: for all attempts and pauses together; None: no bound.
            clock: seconds that only grow.
            chance: 0..1 at random.
        """
        self._policy = policy
        self._clock = clock
        self._chance = chance
        self._timeout_s = timeout_s
        self._deadline = None if timeout_s is None else clock() + timeout_s
        self._failures = 0

    def remaining_s(self) -> float | None:
        """What is left of the call's time; None without a bound.

        Raises:
            DeadlineExceeded: where nothing is left.
        """
        if self._deadline is None:
            return None
        remaining = self._deadline - self._clock()
        if remaining <= 0:
            detail = f"no answer within {self._timeout_s:g} s"
            raise DeadlineExceeded(Failure(DeadlineExceeded.code_of_class, detail))
        return remaining

    def pause_after(self, error: ServiceError) -> float:
        """How long to wait before the next attempt, seconds.

        Raises:
            ServiceError: `error` itself, where a further attempt would be of no use or too late.
        """
        self._failures += 1
        if not error.retryable or self._failures >= self._policy.attempts:
            raise error
        pause = self._policy.pause_s(self._failures, error.retry_after_s, self._chance())
        if self._deadline is not None and self._clock() + pause >= self._deadline:
            raise error
        return pause


def retry(attempts: Attempts, attempt: Callable[[float | None], _Answer]) -> _Answer:
    """Tries until an attempt succeeds.

    Args:
        attempts: of this call.
        attempt: one try; gets the seconds that are left.

    Raises:
        ServiceError: of the last attempt.
    """
    while True:
        try:
            return attempt(attempts.remaining_s())
        except ServiceError as error:
            time.sleep(attempts.pause_after(error))


async def retry_async(
    attempts: Attempts, attempt: Callable[[float | None], Awaitable[_Answer]]
) -> _Answer:
    """The same in an event loop.

    Raises:
        ServiceError: of the last attempt.
    """
    while True:
        try:
            return await attempt(attempts.remaining_s())
        except ServiceError as error:
            await asyncio.sleep(attempts.pause_after(error))
