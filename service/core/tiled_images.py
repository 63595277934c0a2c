"""Images that are cut into tiles: one request, one deadline, all results or none.

    the whole image, decoded --------------------> batcher (as any image) ---.
    its tiles, decoded (`TileGroups`)                                         |
        tiles 1..8  in slots that are free ------> batcher (tiles run last) --+-> merge -> result
        tiles 9..16 likewise, after these -------> batcher -------------------'

The whole image takes the place of an ordinary image. Its tiles add to the predicted time, take at
most a quarter of the slots, a few at a time, and run after ordinary images, so that these wait at
most for one small batch of tiles.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from model.images.decode import ImageLimits
from service.batching.batcher import EngineResult
from service.batching.estimates import RunningMean
from service.core.admission import MAX_PREDICTED_SHARE, late_detail
from service.core.request import ImageRequest, job_of
from service.core.tile_groups import (
    MAX_REQUESTS,
    TileDecoder,
    TileGroup,
    TileGroups,
    release_all,
)
from service.core.tiling.grid import Region
from service.core.tiling.options import plan_tiles
from service.core.tiling.selected import merge_selected
from service.decoding.tasks import ImageInSlot
from service.errors import Overloaded
from service.ipc.slot_pool import SlotLease
from service.observability.metrics import Metrics

_IMAGE_SHARE = 2  # whole images take at most one slot in so many while their tiles wait or run
_FEW_DETECTIONS = 64  # are merged in a millisecond


class TiledResult(NamedTuple):
    """The merged result of the whole image and its tiles."""

    found: EngineResult  # its times are sums over the batches
    decode_ms: float  # of all decodings


class _TileResult(NamedTuple):
    region: Region  # of the image
    found: EngineResult


class TiledImages:
    """Runs tiles; the detector has one. Event loop thread only."""

    def __init__(
        self,
        decoder: TileDecoder,
        metrics: Metrics,
        images: ImageLimits,
        max_tiles: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts without measured times.

        Args:
            decoder: decodes tiles into slots.
            metrics: counts tiles.
            images: limits of an image file.
            max_tiles: of one image.
            clock: monotonic seconds.
        """
        self._decoder = decoder
        self._metrics = metrics
        self._images = images
        self._max_tiles = max_tiles
        self._clock = clock
        self._turns = asyncio.Semaphore(MAX_REQUESTS)
        self._decoding = asyncio.Lock()  # so that tiles take one decoder at most
        self._num_images = 0  # with tiles, admitted and without a result
        self._pending = 0  # tiles of these
        self._tile_seconds = RunningMean()  # of the time between two results

    def plan(self, request: ImageRequest, size: tuple[int, int]) -> tuple[Region, ...]:
        """The tiles of an image of `size` (height, width); none if it is only run whole.

        Raises:
            InvalidOptions: for too many tiles.
            Overloaded: if their results are predicted to come after the deadline, or if images
                with tiles hold their share of the slots.
        """
        if request.tiles is None:
            return ()
        regions = plan_tiles(request.tiles, size, request.served.info.config, self._max_tiles)
        self._metrics.tile_grid_size.observe(len(regions))
        self._admit(request, len(regions))
        return regions

    async def run(
        self,
        request: ImageRequest,
        lease: SlotLease,
        whole: ImageInSlot,
        regions: Sequence[Region],
        run_whole: Coroutine[Any, Any, EngineResult],
    ) -> TiledResult:
        """Runs the whole image and its tiles.

        Args:
            request: of the image.
            lease: of the slot of the whole image.
            whole: the whole image, decoded.
            regions: from `plan`.
            run_whole: returns the result of the whole image, and is not awaited elsewhere.

        Raises:
            DetectionError: the first failure of any part; the other parts are cancelled.
        """
        with self._count(len(regions)) as pending, _first_failure():
            async with asyncio.TaskGroup() as group:
                first = group.create_task(run_whole)
                tiles = group.create_task(self._run_tiles(request, lease, regions, first, pending))
        results, decode_seconds = tiles.result()
        decode_ms = whole.decode_ms + decode_seconds * 1000
        batches = [first.result(), *(result.found for result in results)]
        times = _sum_of_batches(batches, self._clock(), request.started + decode_ms / 1000)
        merge_started = self._clock()
        found_in_tiles = [(region, found.detections) for region, found in results]
        merge = partial(
            merge_selected,
            request.selection,
            request.served.info.config.max_detections,
            first.result().detections,
            found_in_tiles,
            whole.image.original_size,
        )
        # Hundreds of detections take tens of milliseconds, in which no other request may wait.
        few = sum(len(found) for _, found in found_in_tiles) <= _FEW_DETECTIONS
        merged = merge() if few else await asyncio.to_thread(merge)
        merge_ms = (self._clock() - merge_started) * 1000
        postprocess_ms = times.postprocess_ms + merge_ms
        found = times._replace(detections=merged, postprocess_ms=postprocess_ms)
        return TiledResult(found, decode_ms)

    def _admit(self, request: ImageRequest, tiles: int) -> None:
        """Refuses tiles that would be late, or whose image would take a slot of ordinary images.

        Tiles that would not wait for others are always accepted: otherwise a prediction that was
        once too high would refuse all and never be corrected.
        """
        if not tiles or not self._pending:
            return
        wait = self._pending * self._tile_seconds.value
        retry_after_s = max(1, math.ceil(wait))
        most = max(MAX_REQUESTS, request.served.pool.normal_count // _IMAGE_SHARE)
        if self._num_images >= most:
            raise Overloaded(
                f"{self._num_images} images with tiles are in flight; try again later",
                retry_after_seconds=retry_after_s,
            )
        left = request.deadline - self._clock()
        needed = wait + tiles * self._tile_seconds.value
        if needed > left * MAX_PREDICTED_SHARE:
            raise Overloaded(
                late_detail(f"the results of {tiles} tiles", needed, left),
                retry_after_seconds=retry_after_s,
            )

    @contextmanager
    def _count(self, tiles: int) -> Iterator[Callable[[int], None]]:
        """Counts an image, and its tiles as pending; yields a function that counts results."""
        left = tiles
        self._num_images += 1
        self._pending += tiles

        def done(count: int) -> None:
            nonlocal left
            left -= count
            self._pending -= count

        try:
            yield done
        finally:
            self._num_images -= 1
            self._pending -= left

    async def _run_tiles(
        self,
        request: ImageRequest,
        own: SlotLease,
        regions: Sequence[Region],
        whole: asyncio.Task[EngineResult],
        done: Callable[[int], None],
    ) -> tuple[list[_TileResult], float]:
        """Returns the results of all tiles, and the seconds that decoding took."""
        results: list[_TileResult] = []
        groups = TileGroups(self._decoder, self._images, request, regions, self._clock)
        async with self._turns:
            with groups:
                while groups:
                    group = await groups.take(own, whole, self._decoding)
                    try:
                        results += await self._run_group(request, group)
                    finally:
                        release_all(group.leases)
                    done(len(group.regions))
        return results, groups.decode_seconds

    async def _run_group(self, request: ImageRequest, group: TileGroup) -> list[_TileResult]:
        """Runs tiles that are in slots."""
        now = self._clock()
        jobs = [
            replace(job_of(request, lease, image, now), is_tile=True)
            for lease, image in zip(group.leases, group.images, strict=True)
        ]
        batcher = request.served.batcher
        with _first_failure():
            async with asyncio.TaskGroup() as tasks:
                with batcher.track_decoding():  # until all are queued, so that they share batches
                    runs = [tasks.create_task(batcher.run(job)) for job in jobs]
                    await asyncio.sleep(0)
        sharing = min(MAX_REQUESTS, self._num_images)  # the decoder and the engine meanwhile
        self._tile_seconds.learn((self._clock() - group.started) / (len(runs) * sharing))
        return [
            _TileResult(region, run.result())
            for region, run in zip(group.regions, runs, strict=True)
        ]


def _sum_of_batches(
    results: Sequence[EngineResult], until: float, busy_since: float
) -> EngineResult:
    """The times of all batches, each once; shortened where batches ran at the same time.

    Args:
        results: of the parts of one image.
        until: the end of the last batch, monotonic seconds.
        busy_since: the sum of all stages before the engine reaches to this time, likewise.

    Returns:
        The first result with these times and the start of the first batch.
    """
    batches = list({(each.started, each.forward_ms): each for each in results}.values())
    first = min(each.started for each in batches)
    sums = [
        sum(column)
        for column in zip(
            *((b.assemble_ms, b.copy_ms, b.forward_ms, b.postprocess_ms) for b in batches),
            strict=True,
        )
    ]
    available_ms = max(0.0, until - max(first, busy_since)) * 1000
    share = min(1.0, available_ms / total) if (total := sum(sums)) else 1.0
    assemble, copy, forward, postprocess = (each * share for each in sums)
    return results[0]._replace(
        assemble_ms=assemble,
        copy_ms=copy,
        forward_ms=forward,
        postprocess_ms=postprocess,
        started=first,
    )


@contextmanager
def _first_failure() -> Iterator[None]:
    """Context manager around a task group that raises the first error of its tasks itself."""
    try:
        yield
    except BaseExceptionGroup as errors:
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
