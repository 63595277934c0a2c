"""The tiles of one image in slots, a few at a time.

The file is decoded once if the decoders have memory to keep the tiles until slots are free for
them, and otherwise once for each group of tiles.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NamedTuple, Protocol

from model.config import ModelConfig
from model.images.decode import ImageLimits
from service.batching.batcher import EngineResult
from service.core.request import ImageRequest, turn_of
from service.core.tiling.grid import Region
from service.decoding.kept_tiles import KeptTiles
from service.decoding.tasks import Tile, TilesInSlots, Turn
from service.ipc.slot_pool import SlotLease
from service.ipc.slots import SlotImage
from service.types import Priority

MAX_REQUESTS = 2  # whose tiles are in flight: those of one are decoded while those of the other run
_MOST_SLOTS = 8  # for the tiles of one request
_SLOT_SHARE = 4  # all tiles take at most one slot in so many


class TileDecoder(Protocol):
    """Decodes tiles; `service.decoding.pool.DecoderPool`."""

    async def decode_tiles(
        self,
        data: bytes | memoryview,
        config: ModelConfig,
        limits: ImageLimits,
        tiles: Sequence[Tile],
        turn: Turn,
    ) -> TilesInSlots:
        """See `DecoderPool.decode_tiles`."""

    async def keep_tiles(
        self,
        data: bytes | memoryview,
        config: ModelConfig,
        limits: ImageLimits,
        regions: Sequence[Region],
        turn: Turn,
    ) -> KeptTiles | None:
        """See `DecoderPool.keep_tiles`."""


class TileGroup(NamedTuple):
    """Some tiles in their slots, which the holder of the group releases."""

    regions: Sequence[Region]
    leases: Sequence[SlotLease]
    images: Sequence[SlotImage]
    started: float  # when decoding them began, as if kept tiles were decoded just now


class TileGroups:
    """A context in which the groups of one image are requested, one after the other."""

    def __init__(
        self,
        decoder: TileDecoder,
        limits: ImageLimits,
        request: ImageRequest,
        regions: Sequence[Region],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Decodes nothing yet.

        Args:
            decoder: decodes tiles into slots.
            limits: of an image file.
            request: of the image.
            regions: of the tiles, of one size.
            clock: monotonic seconds.
        """
        self.decode_seconds = 0.0  # of all decodings so far
        self._decoder = decoder
        self._limits = limits
        self._request = request
        self._regions = regions
        self._clock = clock
        self._kept: KeptTiles | None = None

    def __enter__(self) -> TileGroups:
        """Does nothing."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Frees the memory of tiles that are kept."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def __bool__(self) -> bool:
        """Whether tiles are left."""
        return bool(self._regions)

    async def take(
        self, own: SlotLease, whole: asyncio.Task[EngineResult], decoding: asyncio.Lock
    ) -> TileGroup:
        """Returns the next tiles, in slots.

        Args:
            own: the slot of the whole image, which is used if no other slot is free.
            whole: the result of the whole image.
            decoding: held while a decoder has tiles, so that they take one decoder at most.
        """
        await self._keep_if_needed(decoding)
        left = len(self._regions) if self._kept is None else self._kept.num_left
        pool = self._request.served.pool
        leases = [pool.acquire() for _ in range(self._num_free_slots(left))]
        try:
            if not leases:  # the request's own slot is free after the whole image
                await asyncio.wait([whole])
                pool.renew(own)
                own.retain()
                leases = [own]
            regions, self._regions = self._regions[: len(leases)], self._regions[len(leases) :]
            started, kept = self._clock(), self._kept
            if kept is None or not kept.num_left:  # closed, perhaps while the whole image ran
                images = await self._decode(leases, regions, decoding)
            else:
                started -= kept.decode_seconds * len(leases) / kept.num_tiles
                images = kept.move(leases)
        except BaseException:
            release_all(leases)
            raise
        return TileGroup(regions, leases, images, started)

    async def _keep_if_needed(self, decoding: asyncio.Lock) -> None:
        """Decodes the tiles that are left, if slots are free for some of them only."""
        if self._kept is not None and not self._kept.num_left:
            self._kept.close()
            self._kept = None
        left = len(self._regions)
        if self._kept is None and self._num_free_slots(left) < left:
            async with decoding:
                self._kept = await self._decoder.keep_tiles(
                    *self._source(), self._regions, self._turn()
                )
            if self._kept is not None:
                self.decode_seconds += self._kept.decode_seconds

    async def _decode(
        self, leases: Sequence[SlotLease], regions: Sequence[Region], decoding: asyncio.Lock
    ) -> tuple[SlotImage, ...]:
        """Decodes the image for as many tiles as there are slots."""
        tiles = [Tile(lease, region) for lease, region in zip(leases, regions, strict=True)]
        async with decoding:
            decoded = await self._decoder.decode_tiles(*self._source(), tiles, self._turn())
        self.decode_seconds += decoded.ended - decoded.started
        return decoded.images

    def _num_free_slots(self, tiles: int) -> int:
        """How many slots that many tiles may take; none while images take most of the slots."""
        pool = self._request.served.pool
        most = min(_MOST_SLOTS, pool.normal_count // _SLOT_SHARE // MAX_REQUESTS, tiles)
        free = pool.normal_count - pool.normal_count // _SLOT_SHARE - pool.in_use
        return max(0, min(most, free))

    def _source(self) -> tuple[bytes | memoryview, ModelConfig, ImageLimits]:
        return self._request.data, self._request.served.info.config, self._limits

    def _turn(self) -> Turn:
        return turn_of(Priority.NORMAL, self._clock(), self._request.deadline)


def release_all(leases: Sequence[SlotLease]) -> None:
    """Releases slots."""
    for lease in leases:
        lease.release()
