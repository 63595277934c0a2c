"""One model that serves, with its slots, queues and engines.

A load builds a second one and swaps them in `service.core.detector`. A request stays with the model
that it was admitted to, whose engines stop after the last such request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from model.weights.info import ModelInfo
from service.batching.batcher import Batcher
from service.ipc.slot_pool import SlotPool
from service.supervision.supervisor import Supervisor
from service.supervision.weights_file import OpenWeightsFile
from service.types import EngineFacts
from service.usage import UseCounter


class ServedModel:
    """A model, its slots and its engines; `begin` starts the engines, `close` stops them."""

    def __init__(
        self,
        info: ModelInfo,
        pool: SlotPool,
        batcher: Batcher,
        engines: Sequence[Supervisor],
        file: OpenWeightsFile,
    ) -> None:
        """Takes over the parts of the model.

        Args:
            info: from the weights file.
            pool: slots in the layout of the model.
            batcher: sends batches to `engines`.
            engines: one per device.
            file: the weights, kept open for replaced engines.
        """
        self.info = info
        self.pool = pool
        self.batcher = batcher
        self.engines = tuple(engines)
        self.file = file
        self._users = UseCounter()

    def begin(self) -> asyncio.Future[None]:
        """Starts the engines.

        Returns:
            A future that is done when all of them are ready. It fails with `EngineStartError` if
            one reports that it cannot start.
        """
        ready = [engine.begin(self.batcher) for engine in self.engines]
        return asyncio.ensure_future(_all_of(ready))

    @property
    def engine_pids(self) -> tuple[int | None, ...]:
        """Process ids in the order of the devices; None for an engine that is being replaced."""
        return tuple(engine.pid for engine in self.engines)

    @property
    def engine_facts(self) -> tuple[EngineFacts, ...]:
        """Facts about the engines that are ready, in the order of the devices."""
        return tuple(facts for engine in self.engines if (facts := engine.facts) is not None)

    @property
    def engines_busy_share(self) -> float | None:
        """Mean busy share of the engines that are ready, 0 to 1; None while there is none."""
        shares = [share for engine in self.engines if (share := engine.busy_share) is not None]
        return sum(shares) / len(shares) if shares else None

    def canary_age_seconds(self, clock: Callable[[], float] = time.monotonic) -> float:
        """Seconds since an engine last completed a batch; infinite if none ever did."""
        return clock() - max(engine.last_success for engine in self.engines)

    def in_use(self) -> UseCounter:
        """Counts a request, in a `with` statement; the engines run until the count is zero."""
        return self._users

    async def wait_until_unused(self) -> None:
        """Waits until no request uses the model."""
        await self._users.wait_for_zero()

    async def close(self) -> None:
        """Stops the engines and frees the memory; no request may use the model any more."""
        await self.stop()
        self.free()

    async def stop(self) -> None:
        """Stops the engines; requests in flight fail with `ShuttingDown`."""
        try:
            await asyncio.gather(*(engine.stop() for engine in self.engines))
        finally:
            self.batcher.close()
        await asyncio.sleep(0)  # finished callers release their slots first

    def free(self) -> None:
        """Frees the slots and the file; no thread may decode into a slot any more."""
        self.pool.close()
        self.file.close()


async def _all_of(futures: Sequence[asyncio.Future[None]]) -> None:
    """Waits for all futures; raises the first failure at once."""
    await asyncio.gather(*futures)
