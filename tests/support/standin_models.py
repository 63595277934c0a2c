"""Models with stand-in engines, in a real `Detector` and `ModelSwitch`.

The test decides when an engine is ready, cannot start, or has ended.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from model.images.decode import ImageLimits
from service.batching.batcher import Batcher
from service.batching.engine_protocol import EngineListener
from service.batching.scheduler import Batch, BatchPolicy, EngineState, Scheduler
from service.core.detector import Detector, DetectorLimits
from service.core.model_switch import ModelSwitch
from service.core.served_model import ServedModel
from service.decoding.pool import DecoderPool
from service.observability.metrics import Metrics
from service.supervision.plan import EngineStartError
from service.supervision.supervisor import Supervisor
from service.supervision.weights_file import OpenWeightsFile
from service.types import EngineFacts
from tests.support.fake_device import FAKE_MODEL
from tests.support.jobs import small_pool

SETTING = "/models/latest.safetensors"
_LIMITS = DetectorLimits(ImageLimits(10**6, 10**6), 1000.0, 1, float("inf"))


class StandInEngine:
    """A `Supervisor` without a process."""

    live, kernel, last_success = True, "none", 0.0
    pid: int | None = None
    facts: EngineFacts | None = None
    state = EngineState(0, 0.0, float("-inf"))

    def __init__(self, note: Callable[[str], None]) -> None:
        self.ready = False
        self.ended = False
        self.may_end = asyncio.Event()
        self._note = note
        self._stopping = False
        self._first_ready: asyncio.Future[None] | None = None

    def begin(self, _listener: EngineListener) -> asyncio.Future[None]:
        self._note("begins")
        self._first_ready = asyncio.get_running_loop().create_future()
        return self._first_ready

    @property
    def begun(self) -> bool:
        return self._first_ready is not None

    def start(self) -> None:
        assert self._first_ready is not None
        self.ready = True
        self._first_ready.set_result(None)

    def refuse(self, reason: str) -> None:
        assert self._first_ready is not None
        self._first_ready.set_exception(EngineStartError(reason))

    async def stop(self) -> None:
        """Like the real one, a second call does not wait."""
        if self._stopping:
            return
        self._stopping = True
        await self.may_end.wait()
        self.ready, self.ended = False, True
        self._note("ended")
        if self._first_ready is not None:
            self._first_ready.cancel()

    def send(self, batch: Batch) -> None:
        raise AssertionError("no test sends batches")

    def predicted_seconds(self, padded_pixels: int) -> float:
        return 0.0


class Models:
    """Builds models of versions "1", "2" and so on, and records their events."""

    def __init__(self, path: Path | None = None) -> None:
        self.events: list[str] = []  # such as "2 begins", "1 ended"
        self.served: list[ServedModel] = []
        self.engines: list[StandInEngine] = []
        self.failure: Exception | None = None  # of the next builds
        self.may_build = threading.Event()
        self.may_build.set()
        self.ends_at_once = True  # the engines of the next builds
        self.starting = 0  # number of builds that were started
        self.path = path  # of the weights file; its text is the version
        self._metrics = Metrics()

    def build(self) -> ServedModel:
        """Called in a thread."""
        self.starting += 1
        assert self.may_build.wait(10)
        if self.failure is not None:
            raise self.failure
        version = str(len(self.served) + 1) if self.path is None else self.path.read_text()
        engine = StandInEngine(lambda event: self.events.append(f"{version} {event}"))
        if self.ends_at_once:
            engine.may_end.set()
        batcher = Batcher(Scheduler(BatchPolicy(max_batch_size=4)), [engine], self._metrics)
        info = replace(FAKE_MODEL, version=version)
        engines = [cast(Supervisor, engine)]
        served = ServedModel(info, small_pool(2), batcher, engines, OpenWeightsFile(self.path))
        self.engines.append(engine)
        self.served.append(served)
        return served

    def everything_has_ended(self) -> bool:
        """Whether every engine that was started has ended, and all slots are freed."""
        engines = all(engine.ended for engine in self.engines if engine.begun)
        return engines and all(served.pool.memory.fd < 0 for served in self.served)


class SwitchHarness:
    """A `ModelSwitch` whose first model serves already."""

    def __init__(self, models: Models, start_timeout_seconds: float) -> None:
        self.models = models
        self.memory_left: int | None = None  # bytes
        first = models.build()
        self.detector = Detector(first, Metrics(), _LIMITS, DecoderPool(1, 10**6, 10**6))
        self.first_ready = first.begin()
        self.control = ModelSwitch(
            self.detector,
            SETTING,
            models.build,
            first_ready=self.first_ready,
            start_timeout_seconds=start_timeout_seconds,
            find_weights=lambda: models.path,
            memory_left=lambda: self.memory_left,
        )

    @property
    def version(self) -> str:
        return self.detector.model.version

    @property
    def state(self) -> str:
        [entry] = self.control.index()
        return entry.state

    async def close(self) -> None:
        """What `service.build.open_core` does on exit."""
        self.first_ready.cancel()
        await self.control.stop()
        self.detector.close()
        self.control.free()


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(120):
        while not holds():
            await asyncio.sleep(0.001)


async def settle() -> None:
    """Runs all tasks that are ready."""
    for _ in range(20):
        await asyncio.sleep(0)


async def engine_of(models: Models, version: int) -> StandInEngine:
    """Waits for the engine of a model to be started, and returns it."""
    await until(lambda: len(models.engines) >= version and models.engines[version - 1].begun)
    return models.engines[version - 1]


@asynccontextmanager
async def switching(
    *,
    start_timeout_seconds: float = 10.0,
    ready: bool = True,
    path: Path | None = None,
    **models: Any,
) -> AsyncIterator[SwitchHarness]:
    """Yields a harness and closes it, also with changes in progress."""
    harness = SwitchHarness(Models(path), start_timeout_seconds)
    if ready:
        harness.models.engines[0].start()
        await harness.first_ready
    for name, value in models.items():
        setattr(harness.models, name, value)
    try:
        yield harness
    finally:
        harness.models.may_build.set()
        for engine in harness.models.engines:
            engine.may_end.set()
        await harness.close()
        assert harness.models.everything_has_ended()
