"""The real admission, queues and scheduling in front of a simulated engine, in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from model.config import ModelConfig
from model.images.decode import ImageLimits
from service.batching.batcher import Batcher
from service.batching.scheduler import Batch, BatchPolicy, Job, Scheduler
from service.core.admission import Admission
from service.core.explanations import Explanations
from service.core.request import ImageRequest
from service.core.selection import Selection
from service.core.served_model import ServedModel
from service.core.tiled_images import TiledImages
from service.decoding.tasks import ImageInSlot, Tile, TilesInSlots, Turn
from service.errors import DetectionError
from service.ipc.slots import SlotImage
from service.observability.metrics import Metrics
from service.supervision.weights_file import OpenWeightsFile
from service.types import Priority, TileOptions
from tests.support.fake_device import FAKE_MODEL
from tests.support.jobs import BUCKET, EXPLAIN, NO_DETECTIONS, small_pool
from tests.support.simulated_engine import RunTime, SimulatedEngine

SELECTION = Selection(0.0, 100, None)
DECODE_SECONDS = 0.03  # of a large image


@dataclass(frozen=True)
class Device:
    """Takes base + per_image x n seconds for n images, times a random factor (jitter)."""

    base: float
    per_image: float
    max_batch_size: int = 8
    jitter: float = 0.0  # relative, uniform
    explain: float = 0.0  # to explain a detection, in addition to its batch

    def seconds(self, images: int) -> float:
        return self.base + self.per_image * images

    @property
    def capacity(self) -> float:
        """Images per second in full batches."""
        return self.max_batch_size / self.seconds(self.max_batch_size)


@dataclass
class Tally:
    """Outcomes of requests, as their clients see them."""

    outcomes: Counter[str] = field(default_factory=Counter)  # "ok", "late" or an error's code
    latencies: list[float] = field(default_factory=list)  # of all that were accepted, seconds

    @property
    def accepted(self) -> int:
        return len(self.latencies)


class SimulatedService:
    """The stages of `service.core.detector`: admit, decode, batch."""

    def __init__(self, device: Device, *, engines: int = 1, slots: int = 64, kept: int = 0) -> None:
        self.device = device
        self._loop = asyncio.get_running_loop()
        pool = small_pool(slots + kept)
        pool._kept_for_high = kept
        self.engines = [self._engine(number) for number in range(engines)]
        policy = BatchPolicy(max_batch_size=device.max_batch_size)
        batcher = Batcher(Scheduler(policy), self.engines, Metrics(), self._loop.time)
        for engine in self.engines:
            engine.listener = batcher
        self.served = ServedModel(FAKE_MODEL, pool, batcher, [], OpenWeightsFile(None))
        self.admission = Admission(decode_threads=2)
        self.tile_groups: list[int] = []  # tiles of each decoding
        self.explanations = Explanations(batcher._metrics, offered=True)
        self._threads = asyncio.Semaphore(2)
        limits = ImageLimits(10**9, 10**9)
        self.tiled = TiledImages(self, batcher._metrics, limits, 64, self._loop.time)

    @property
    def now(self) -> float:
        return self._loop.time()

    async def explain(self, timeout: float) -> None:
        """A request with format=explain; its figure takes no time."""
        with self.explanations.turn():
            await self.detect(timeout, explain=True)

    async def detect(
        self, timeout: float, priority: Priority = Priority.NORMAL, *, explain: bool = False
    ) -> None:
        deadline = self.now + timeout
        additional = self.explanations.predicted_seconds if explain else 0.0
        lease = self.admission.admit(self.served, timeout, priority, additional)
        job = Job(lease, BUCKET, self.now, deadline, 1, priority, EXPLAIN if explain else None)
        try:
            async with asyncio.timeout_at(deadline):
                with self.served.batcher.track_decoding(priority):
                    async with self._threads:
                        await asyncio.sleep(0.001)
                self.admission.learn_decode(0.001)
                lease.write_image(np.zeros((1, 1, 3), np.uint8), SlotImage((1, 1), BUCKET, (1, 1)))
                job.enqueued_at = self.now
                found = await self.served.batcher.run(job)
                if explain:
                    self.explanations.record_engine(found.explain_ms / 1000)
        finally:
            lease.release()

    async def detect_tiled(self, timeout: float, size: tuple[int, int]) -> int:
        """A request with tile=640x480 and an image of `size`; returns the number of tiles."""
        deadline = self.now + timeout
        lease = self.admission.admit(self.served, timeout, Priority.NORMAL)
        request = ImageRequest(
            self.served, b"", SELECTION, "tiled", self.now, deadline, Priority.NORMAL, 0.0
        )._replace(tiles=TileOptions((640, 480)))
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.sleep(DECODE_SECONDS)
                image = SlotImage((1, 1), BUCKET, size)
                lease.write_image(np.zeros((1, 1, 3), np.uint8), image)
                regions = self.tiled.plan(request, size)
                run = self.served.batcher.run(Job(lease, BUCKET, self.now, deadline, 1))
                whole = ImageInSlot(image, self.now, self.now)
                await self.tiled.run(request, lease, whole, regions, run)
                return len(regions)
        finally:
            lease.release()

    async def decode_tiles(
        self,
        data: bytes | memoryview,
        config: ModelConfig,
        limits: ImageLimits,
        tiles: Sequence[Tile],
        turn: Turn,
    ) -> TilesInSlots:
        """Takes the place of `DecoderPool.decode_tiles`."""
        began = self.now
        self.tile_groups.append(len(tiles))
        async with self._threads:
            await asyncio.sleep(DECODE_SECONDS)
        image = SlotImage((1, 1), BUCKET, (480, 640))
        for tile in tiles:
            tile.lease.write_image(np.zeros((1, 1, 3), np.uint8), image)
        return TilesInSlots((image,) * len(tiles), began, self.now)

    async def keep_tiles(self, *_arguments: object) -> None:
        """Takes the place of `DecoderPool.keep_tiles`, without memory for tiles."""
        return

    async def call(
        self,
        tally: Tally,
        timeout: float,
        priority: Priority = Priority.NORMAL,
        *,
        explain: bool = False,
    ) -> None:
        """One request of a client; counts its outcome."""
        began, accepted = self.now, True
        try:
            await (self.explain(timeout) if explain else self.detect(timeout, priority))
            outcome = "ok"
        except DetectionError as error:
            outcome, accepted = error.code, error.code not in {"overloaded", "not_ready"}
        except TimeoutError:
            outcome = "late"
        tally.outcomes[outcome] += 1
        if accepted:
            tally.latencies.append(self.now - began)

    async def flood(
        self,
        rate: float,
        seconds: float,
        timeout: float,
        priority: Priority = Priority.NORMAL,
        *,
        explain: bool = False,
    ) -> Tally:
        """Sends requests at random times, independent of their results (open loop)."""
        tally, rng = Tally(), random.Random(7)
        tasks, end = [], self.now + seconds
        while self.now < end:
            call = self.call(tally, timeout, priority, explain=explain)
            tasks.append(asyncio.create_task(call))
            await asyncio.sleep(rng.expovariate(rate))
        await asyncio.gather(*tasks)
        return tally

    async def close(self) -> None:
        for engine in self.engines:
            engine.cancel()
        await self.served.close()

    def _engine(self, number: int) -> SimulatedEngine:
        rng, device = random.Random(number), self.device

        def run_time(batch: Batch) -> RunTime:
            noise = 1 + device.jitter * rng.uniform(-1, 1)
            explaining = device.explain if batch.explains else 0.0
            return RunTime(device.seconds(len(batch.jobs)) * noise, explaining)

        return SimulatedEngine(run_time, self._write_results)

    def _write_results(self, batch: Batch) -> None:
        memory = self.served.pool.memory
        for job in batch.jobs:
            memory.write_result(job.lease.slot, job.lease.generation, NO_DETECTIONS)


async def with_service(
    device: Device, scenario: Callable[[SimulatedService], Awaitable[None]], **options: int
) -> None:
    service = SimulatedService(device, **options)
    try:
        await scenario(service)
    finally:
        await service.close()
