"""Admission of tiles: the times that it learns and the slots that it leaves, without processes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from model.detections import Detections
from model.images.decode import ImageLimits
from service.batching.batcher import EngineResult
from service.batching.queues import Job
from service.core.request import ImageRequest
from service.core.selection import Selection
from service.core.tile_groups import TileGroups
from service.core.tiled_images import TiledImages
from service.core.tiling.grid import Region
from service.decoding.tasks import ImageInSlot, Tile, TilesInSlots
from service.errors import Overloaded
from service.ipc.slots import SlotImage
from service.observability.metrics import Metrics
from service.types import Priority, TileOptions
from tests.support.fake_device import FAKE_MODEL

SIZE = (300, 700)  # 4 x 2 tiles
IMAGE = SlotImage((100, 200), (128, 256), SIZE)
NONE = Detections(np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros((0, 4), np.float32))
RESULT = EngineResult(NONE, 0.0, 0.0, 0.0)
SLOTS = 16
DECODE_SECONDS = 1.0  # of a tile


class Batcher:
    """Returns results at once, or after `may_run`."""

    def __init__(self) -> None:
        self.may_run = asyncio.Event()

    async def run(self, _job: Job) -> EngineResult:
        await self.may_run.wait()
        return RESULT

    @contextlib.contextmanager
    def track_decoding(self) -> Iterator[None]:
        yield


class Service:
    """`TiledImages` on a clock that decoding advances."""

    def __init__(self) -> None:
        self.now = 0.0
        self.kept: Any = None  # no memory for tiles
        self.batcher = Batcher()
        limits = ImageLimits(10**9, 10**9)
        self.tiled = TiledImages(self, Metrics(), limits, 64, clock=lambda: self.now)
        lease = SimpleNamespace(release=lambda: None, retain=lambda: None)
        self.pool = SimpleNamespace(
            normal_count=SLOTS, in_use=0, acquire=lambda: lease, renew=lambda _: None
        )
        served = SimpleNamespace(info=FAKE_MODEL, pool=self.pool, batcher=self.batcher)
        self.request = ImageRequest(
            served=cast(Any, served),
            data=b"",
            selection=Selection(0.5, 10, None),
            request_id="tiled",
            started=0.0,
            deadline=1000.0,
            priority=Priority.NORMAL,
            read_ms=0.0,
            tiles=TileOptions((200, 200), 0.0),
        )
        self.lease = cast(Any, lease)

    async def decode_tiles(
        self, _data: Any, _config: Any, _limits: Any, tiles: Sequence[Tile], _turn: Any
    ) -> TilesInSlots:
        started = self.now
        await asyncio.sleep(0)
        self.now += DECODE_SECONDS * len(tiles)
        return TilesInSlots((IMAGE,) * len(tiles), started, self.now)

    async def keep_tiles(self, *_arguments: Any) -> Any:
        return self.kept

    async def detect(self) -> None:
        """One image, from its plan to its result."""
        regions: Sequence[Region] = self.tiled.plan(self.request, SIZE)
        whole = ImageInSlot(IMAGE, 0.0, 0.0)
        run_whole = self.batcher.run(cast(Any, None))
        await self.tiled.run(self.request, self.lease, whole, regions, run_whole)


async def test_the_time_of_a_tile_is_that_between_results_of_all_images() -> None:
    service = Service()
    service.batcher.may_run.set()
    await asyncio.gather(*(service.detect() for _ in range(6)))
    service.batcher.may_run.clear()
    waiting = asyncio.ensure_future(service.detect())
    await asyncio.sleep(0)
    # 16 tiles would be late if each took two seconds, as each does for two images that share.
    service.request = service.request._replace(deadline=service.now + 16 / 0.8 * 1.4)
    assert len(service.tiled.plan(service.request, SIZE)) == 8
    service.request = service.request._replace(deadline=service.now + 16 / 0.8 * 0.9)
    with pytest.raises(Overloaded, match="until the deadline"):
        service.tiled.plan(service.request, SIZE)
    service.batcher.may_run.set()
    await waiting


async def test_images_with_tiles_leave_half_of_the_slots_to_others() -> None:
    service = Service()
    tasks = [asyncio.ensure_future(service.detect()) for _ in range(SLOTS)]
    await asyncio.sleep(0)
    refused = [task.exception() for task in tasks if task.done()]
    assert len(refused) == SLOTS // 2
    assert all(isinstance(error, Overloaded) for error in refused)
    service.batcher.may_run.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert outcomes.count(None) == SLOTS // 2
    await service.detect()


async def test_tiles_that_are_closed_while_the_whole_image_runs_are_decoded() -> None:
    service, limits = Service(), ImageLimits(10**9, 10**9)
    service.kept = SimpleNamespace(num_left=8, decode_seconds=0.0)
    service.pool.in_use = SLOTS
    regions = service.tiled.plan(service.request, SIZE)
    groups = TileGroups(service, limits, service.request, regions)
    whole = asyncio.ensure_future(service.batcher.run(cast(Any, None)))
    taking = asyncio.ensure_future(groups.take(service.lease, whole, asyncio.Lock()))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not taking.done()
    service.kept.num_left = 0
    service.batcher.may_run.set()
    group = await taking
    assert len(group.images) == len(group.leases) == 1
    assert groups.decode_seconds == DECODE_SECONDS
