"""One model in service, with everything that is its own: slots, queues and engines.

A load makes a new one beside the old and swaps them in `service.core.detector`; requests stay with
the one that they were admitted to, whose engines end when the last of those is answered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from model.weights.info import ModelInfo
from service.batching.batcher import Batcher
from service.ipc.slots import SlotPool
from service.supervision.supervisor import Supervisor
from service.supervision.weights_file import OpenWeightsFile
from service.types import EngineFacts
from service.usage import UseCounter


class ServedModel:
    """A model, its slots and its engines; `begin` starts them, `close` ends them."""

    def __init__(
        self,
        info: ModelInfo,
        pool: SlotPool,
        batcher: Batcher,
        engines: Sequence[Supervisor],
        file: OpenWeightsFile,
    ) -> None:
        """Takes over what was built for the model.

        Args:
            info: what the weights file says of itself.
            pool: slots in the model's own layout.
            batcher: in front of `engines`.
            engines: one a device.
            file: the weights, held open for engines to come.
        """
        self.info = info
        self.pool = pool
        self.batcher = batcher
        self.engines = tuple(engines)
        self._file = file
        self._users = UseCounter()

    def begin(self) -> asyncio.Future[None]:
        """Starts the engines.

        Returns:
            A future that is done when all of them are ready; it fails with `EngineStartError`
            where one said that it cannot start.
        """
        ready = [engine.begin(self.batcher) for engine in self.engines]
        return asyncio.ensure_future(_all_of(ready))

    @property
    def engine_pids(self) -> tuple[int | None, ...]:
        """Process ids, in the order of the devices; None for one that is being replaced."""
        return tuple(engine.pid for engine in self.engines)

    @property
    def engine_facts(self) -> tuple[EngineFacts, ...]:
        """What the engines compute with, in the order of the devices; without unready ones."""
        return tuple(facts for engine in self.engines if (facts := engine.facts) is not None)

    def canary_age_seconds(self, clock: Callable[[], float] = time.monotonic) -> float:
        """Seconds since an engine last answered a batch; infinite where none ever did."""
        return clock() - max(engine.last_success for engine in self.engines)

    def in_use(self) -> UseCounter:
        """Keeps the engines for as long as a request needs them, in a `with` statement."""
        return self._users

    async def wait_until_unused(self) -> None:
        """Returns when no request needs it."""
        await self._users.wait_for_zero()

    async def close(self) -> None:
        """Ends it for good, when no request uses it any more."""
        await self.stop()
        self.free()

    async def stop(self) -> None:
        """Ends the engines; whoever still waits is answered with `ShuttingDown`."""
        await asyncio.gather(*(engine.stop() for engine in self.engines))
        self.batcher.close()
        await asyncio.sleep(0)  # callers that were just answered leave before their slots do

    def free(self) -> None:
        """Gives the slots and the file back; no thread may decode into a slot any more."""
        self.pool.close()
        self._file.close()


async def _all_of(futures: Sequence[asyncio.Future[None]]) -> None:
    """Waits for all; raises the first failure at once."""
    await asyncio.gather(*futures)
