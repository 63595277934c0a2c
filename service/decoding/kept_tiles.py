"""The resized tiles of one image in memory of their own, until slots are free for them.

So an image with more tiles than there are free slots is decoded once. The memory counts as that of
a large image (`service.decoding.grants`), which gets it if it needs it: the tiles are closed then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from service.decoding.tasks import Tile, TilesInSlots
from service.ipc.slot_pool import SlotLease, SlotPool
from service.ipc.slots import SlotImage, SlotLayout, SlotMemory

Region = tuple[int, int, int, int]  # left, top, right, bottom; pixels after EXIF rotation


class KeptTiles:
    """Decoded tiles, which are moved into slots in their order. Event loop thread only.

    Attributes:
        decode_seconds: how long decoding all of them took.
        num_tiles: how many there were at first.
    """

    def __init__(
        self,
        layout: SlotLayout,
        regions: Sequence[Region],
        on_closed: Callable[[SlotMemory], None],
    ) -> None:
        """Creates the memory.

        Args:
            layout: with a slot for each tile.
            regions: of the tiles.
            on_closed: called with the memory once no process writes to it any more.

        Raises:
            OSError: if the memory cannot be created.
        """
        slots = _TileSlots(SlotMemory.create(layout), on_closed)
        self.tiles = [Tile(slots.acquire(), region) for region in regions]
        self.num_tiles = len(regions)
        self.decode_seconds = 0.0
        self._images: tuple[SlotImage, ...] = ()
        self._num_moved = 0
        self._closed = False

    @property
    def num_left(self) -> int:
        """Number of tiles that can be moved yet; 0 after `close`."""
        return 0 if self._closed else self.num_tiles - self._num_moved

    def finish(self, decoded: TilesInSlots) -> None:
        """The tiles are decoded."""
        self._images = decoded.images
        self.decode_seconds = decoded.ended - decoded.started

    def move(self, leases: Sequence[SlotLease]) -> tuple[SlotImage, ...]:
        """Copies the next tiles into slots, at most as many as are left; describes them there."""
        first = self._num_moved
        self._num_moved += len(leases)
        images = self._images[first : self._num_moved]
        for lease, tile, image in zip(leases, self.tiles[first:], images, strict=False):
            np.copyto(lease.pixels(image.size), tile.lease.pixels(image.size))
            lease.describe(image)
        return images

    def close(self) -> None:
        """Frees the memory, after the worker that may still write to it; can be called again."""
        if self._closed:
            return
        self._closed = True
        for tile in self.tiles:
            tile.lease.release()


class _TileSlots(SlotPool):
    """Slots that are leased once; the memory is freed with the last of them."""

    def __init__(self, memory: SlotMemory, on_closed: Callable[[SlotMemory], None]) -> None:
        super().__init__(memory)
        self._on_closed = on_closed

    def _free(self, slot: int) -> None:
        super()._free(slot)
        if not self.in_use:
            self.close()
            self._on_closed(self.memory)
