"""Leases of shared-memory slots; their number limits the images in flight (`Overloaded`)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from model.detections import Detections
from service.errors import Overloaded
from service.ipc.slots import SlotImage, SlotMemory
from service.types import Priority


class SlotLease:
    """The use of one slot by one request.

    Counts its holders: the request itself, a thread that decodes into the slot, and the batcher
    while an engine may use it. The last release frees the slot. Event loop thread only.
    """

    __slots__ = ("_holders", "_pool", "generation", "slot")

    def __init__(self, pool: SlotPool, slot: int, generation: int) -> None:
        """Creates a lease with one holder, the request; called by `SlotPool`."""
        self.slot = slot
        self.generation = generation
        self._pool = pool
        self._holders = 1

    @property
    def memory(self) -> SlotMemory:
        """The memory that the slot lies in."""
        return self._pool.memory

    def retain(self) -> None:
        """Adds a holder."""
        assert self._holders > 0, "a freed slot cannot be held"
        self._holders += 1

    def release(self) -> None:
        """Removes a holder; frees the slot with the last one."""
        assert self._holders > 0, "a slot was freed twice"
        self._holders -= 1
        if self._holders == 0:
            self._pool._free(self.slot)

    def write_image(self, pixels: npt.NDArray[np.uint8], image: SlotImage) -> None:
        """Copies resized pixels [h, w, 3] into the slot and writes its header (any thread)."""
        np.copyto(self.pixels(image.size), pixels)
        self.describe(image)

    def pixels(self, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """Returns the array for the resized pixels (any thread); see `SlotMemory.pixels`."""
        return self._pool.memory.pixels(self.slot, size)

    def describe(self, image: SlotImage) -> None:
        """Writes the header of the slot, after its pixels (any thread)."""
        self._pool.memory.write_header(self.slot, self.generation, image)

    def read_result(self) -> Detections:
        """Copies the detections of the engine out of the slot."""
        return self._pool.memory.read_result(self.slot, self.generation)


class SlotPool:
    """Leases slots (edge, event loop thread only)."""

    def __init__(self, memory: SlotMemory, kept_for_high: int = 0) -> None:
        """Creates a pool with every slot free.

        Args:
            memory: the slots.
            kept_for_high: how many of them only requests of high priority can lease.
        """
        self.memory = memory
        self._kept_for_high = kept_for_high
        self._reserved = 0
        # Last in, first out: under light load the same few slots are used, and the pages of the
        # others are never touched and take no memory.
        self._free_slots = list(range(memory.layout.count - 1, -1, -1))
        self._generation = 0

    @property
    def in_use(self) -> int:
        """Number of leased slots."""
        return self.count - len(self._free_slots)

    @property
    def count(self) -> int:
        """Number of slots for requests, of both priorities."""
        return self.memory.layout.count - self._reserved

    @property
    def normal_count(self) -> int:
        """Number of leased slots at which requests of normal priority are refused."""
        return self.count - self._kept_for_high

    @property
    def priority_count(self) -> int:
        """Number of further slots, for requests of high priority."""
        return self._kept_for_high

    @property
    def priority_in_use(self) -> int:
        """Number of those that are leased."""
        return max(0, self.in_use - self.normal_count)

    def acquire(
        self, priority: Priority = Priority.NORMAL, retry_after_seconds: int = 1
    ) -> SlotLease:
        """Leases a slot.

        Args:
            priority: of the request.
            retry_after_seconds: for the client if no slot is free.

        Raises:
            Overloaded: if every slot that the request may use is leased.
        """
        kept = 0 if priority is Priority.HIGH else self._kept_for_high
        if len(self._free_slots) <= kept:
            raise Overloaded(
                f"all {self.count - kept} slots are in use; try again later",
                retry_after_seconds=retry_after_seconds,
            )
        lease = SlotLease(self, self._free_slots.pop(), 0)
        self.renew(lease)
        return lease

    def reserve(self) -> SlotLease:
        """Leases a slot permanently, for the service's own images; `count` leaves it out."""
        lease = SlotLease(self, self._free_slots.pop(0), 0)
        self._reserved += 1
        self.renew(lease)
        return lease

    def renew(self, lease: SlotLease) -> None:
        """Gives a lease a new generation; what was written under the old one is stale."""
        self._generation += 1
        lease.generation = self._generation
        self.memory.clear_header(lease.slot, self._generation)

    def close(self) -> None:
        """Frees the memory; no lease may be used afterwards."""
        self.memory.close()

    def _free(self, slot: int) -> None:
        if self.memory.fd >= 0:
            self.memory.clear_header(slot, 0)
            self._free_slots.append(slot)
