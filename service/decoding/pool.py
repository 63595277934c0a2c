"""The pool of decoder processes; used by the Detector.

A worker returns an image that costs much (`service.decoding.grants`) before decoding it; the image
then waits for a grant. `service.decoding.dispatch` chooses the workers.

    task --> free worker --> result                      the usual case
                |--> costs much --> grant --> free worker --> result
                |--> crash --> once more in a new worker --> crash: InvalidImage
                `--> the caller gave up --> killed after a second, or if others wait
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from model.config import ModelConfig
from model.geometry import padded_size, resized_size
from model.images.decode import ImageLimits, JpegDecoding
from model.images.limits import Cost
from service.decoding import messages
from service.decoding.dispatch import Dispatcher
from service.decoding.grants import Grants, KeptMemory
from service.decoding.kept_tiles import KeptTiles, Region
from service.decoding.messages import Decoded, DecodeTask
from service.decoding.tasks import (
    FIRST_COME,
    ImageInSlot,
    Task,
    Tile,
    TilesInSlots,
    Turn,
    payload_of,
)
from service.ipc.slot_pool import SlotLease
from service.ipc.slots import SlotImage, SlotLayout, SlotMemory

DEFAULT_DECODE = "model.images.decode:decode_image"
_CALL_BYTES = 16 << 20  # in an inbox, for the pickled arguments of a call
_KEPT_SHARE = 8  # the kept tiles of an image take at most one byte in so many of large images
_CHANNELS = 3
_MOST_GRANTS = 2  # for an image: to decode it, and to decode it again for comparison


class _MemoryNeededForDecoding(Exception):
    """There is less memory than decoding the image and keeping its tiles need together."""


class DecoderPool:
    """Decodes images in processes, each image into its slot."""

    def __init__(  # noqa: PLR0913, PLR0917 - of a deployment
        self,
        workers: int,
        memory_bytes: int,
        max_file_bytes: int,
        decode: str = DEFAULT_DECODE,
        on_restart: Callable[[str], None] = lambda _: None,
        jpeg_decoding: JpegDecoding = "exact",
    ) -> None:
        """Creates a pool; `start` starts the processes.

        Args:
            workers: how many images are decoded at once.
            memory_bytes: maximum memory of all decoding; see `Grants`.
            max_file_bytes: the largest file.
            decode: "module:function" that the workers call; tests name another one.
            on_restart: called with the reason ("crash" or "killed") for each worker that ended.
            jpeg_decoding: of whole images; tiles are cut from images decoded exactly.
        """
        self._grants = Grants(memory_bytes, workers)
        self._inbox_bytes = max_file_bytes + _CALL_BYTES
        self._scales_jpegs = jpeg_decoding == "scaled"
        self._dispatcher = Dispatcher(workers, memory_bytes, decode, on_restart)

    @property
    def worker_count(self) -> int:
        """How many workers there are at the moment, with the one in reserve."""
        return self._dispatcher.worker_count

    def start(self) -> None:
        """Starts the template and the workers (event loop only).

        Raises:
            OSError: if a process cannot be started.
        """
        self._dispatcher.start(self._inbox_bytes)

    async def decode(
        self,
        data: bytes | memoryview,
        config: ModelConfig,
        limits: ImageLimits,
        lease: SlotLease,
        turn: Turn = FIRST_COME,
    ) -> ImageInSlot:
        """Decodes and resizes an image into a slot, and describes it there.

        If the caller is cancelled while a worker has the image, the slot stays leased until the
        worker has finished or was killed.

        Args:
            data: the encoded image.
            config: whose input rule and bucket grid apply.
            limits: of the image.
            lease: of the slot.
            turn: its place among the images that wait.

        Raises:
            InvalidImage, UnsupportedImage, ImageTooLarge: as `decode_image`; InvalidImage also if
                decoders crash on the image, ImageTooLarge if decoding takes more memory than
                there is.
            DecoderBug: for an unexpected exception in the decoder.
        """
        work = self._decode_task(data, config, limits, lease)
        decoded = await self._decode_once_granted(
            data, messages.DECODE, DecodeTask.pack, work, (lease,), turn
        )
        size = decoded.height, decoded.width
        padded = padded_size(*size, config.bucket_stride)
        image = SlotImage(size, padded, (decoded.original_height, decoded.original_width))
        lease.describe(image)
        return ImageInSlot(image, decoded.started, decoded.ended)

    async def decode_tiles(  # noqa: PLR0913 - of a task
        self,
        data: bytes | memoryview,
        config: ModelConfig,
        limits: ImageLimits,
        tiles: Sequence[Tile],
        turn: Turn = FIRST_COME,
        *,
        kept: KeptMemory | None = None,
    ) -> TilesInSlots:
        """Decodes an image once and resizes regions of it, each into its slot, as `decode` does.

        Args:
            data: the encoded image.
            config: whose input rule and bucket grid apply to each tile.
            limits: of the image.
            tiles: of one size, at least one.
            turn: their place among the images that wait.
            kept: the memory that the slots take, if it is of that for large images.

        Raises:
            DetectionError, DecoderBug: as `decode`.
        """
        leases = tuple(tile.lease for tile in tiles)
        work = self._decode_task(data, config, limits, leases[0])
        wanted = [messages.TileTask(tile.lease.slot, *tile.region) for tile in tiles]
        pack = partial(messages.pack_tiles, tiles=wanted)
        decoded = await self._decode_once_granted(
            data, messages.DECODE_TILES, pack, work, leases, turn, kept
        )
        size = decoded.height, decoded.width
        padded = padded_size(*size, config.bucket_stride)
        images = []
        for lease, (left, top, right, bottom) in tiles:
            images.append(SlotImage(size, padded, (bottom - top, right - left)))
            lease.describe(images[-1])
        return TilesInSlots(tuple(images), decoded.started, decoded.ended)

    async def keep_tiles(
        self,
        data: bytes | memoryview,
        config: ModelConfig,
        limits: ImageLimits,
        regions: Sequence[Region],
        turn: Turn = FIRST_COME,
    ) -> KeptTiles | None:
        """Decodes an image once and keeps regions of it, resized, in memory of their own.

        Args:
            data: the encoded image.
            config: whose input rule and bucket grid apply to each tile.
            limits: of the image.
            regions: the tiles, of one size, at least one.
            turn: their place among the images that wait.

        Returns:
            As many of the first tiles as the memory for large images allows, to be closed by the
            caller; None if that is not more than one, or is in use. They are closed earlier if a
            large image needs their memory.

        Raises:
            DetectionError, DecoderBug: as `decode`.
        """
        left, top, right, bottom = regions[0]
        size = resized_size(bottom - top, right - left, config.shortest_side, config.longest_side)
        one = SlotLayout(1, size[0] * size[1] * _CHANNELS, max_detections=0)
        most = self._grants.for_large_images // _KEPT_SHARE // one.total_bytes
        layout = replace(one, count=min(len(regions), most))
        memory = self._grants.try_keep(layout.total_bytes) if layout.count > 1 else None
        if memory is None:
            return None

        def closed(slots: SlotMemory) -> None:
            self._dispatcher.detach(slots)
            memory.give_back()

        try:
            kept = KeptTiles(layout, regions[: layout.count], closed)
        except OSError:
            memory.give_back()
            return None
        try:
            decoded = await self.decode_tiles(data, config, limits, kept.tiles, turn, kept=memory)
        except _MemoryNeededForDecoding:
            kept.close()
            return None
        except BaseException:
            kept.close()
            raise
        if memory.is_needed:
            kept.close()
            return None
        kept.finish(decoded)
        memory.on_needed = kept.close
        return kept

    async def call(
        self,
        function: Callable[[bytes], tuple[bytes, str]],
        data: bytes,
        cost: Cost,
        turn: Turn = FIRST_COME,
    ) -> tuple[bytes, str]:
        """Calls a function that decodes an image in a worker.

        Args:
            function: returns bytes and their media type; it is pickled.
            data: its argument, an encoded image.
            cost: of the call.
            turn: its place among the images that wait.

        Raises:
            DetectionError, DecoderBug: as for `decode`.
        """
        pickled = pickle.dumps(function)
        payload = messages.pack_call(len(data), len(pickled))
        task = self._new_task((data, pickled), messages.CALL, payload, turn)
        await self._grant(task, cost)
        message = await self._dispatcher.run(task)
        media_type, _, encoded = payload_of(message, messages.ENCODED).partition(b"\n")
        return encoded, media_type.decode()

    def close(self) -> None:
        """Ends all processes at once; whatever still waits is cancelled."""
        self._dispatcher.close()

    def _decode_task(
        self,
        data: bytes | memoryview,
        config: ModelConfig,
        limits: ImageLimits,
        lease: SlotLease,
    ) -> DecodeTask:
        return DecodeTask(
            len(data),
            config.shortest_side,
            config.longest_side,
            limits.max_bytes,
            limits.max_pixels,
            limits.max_jpeg_scans,
            lease.slot,
            lease.generation,
            self._scales_jpegs,
            granted=self._grants.without_asking,
        )

    async def _decode_once_granted(  # noqa: PLR0913, PLR0917 - of a task
        self,
        data: bytes | memoryview,
        kind: int,
        pack: Callable[[DecodeTask], bytes],
        work: DecodeTask,
        leases: tuple[SlotLease, ...],
        turn: Turn,
        kept: KeptMemory | None = None,
    ) -> Decoded:
        """Decodes at once if that costs little, otherwise with a grant.

        A file that must be decoded again, to compare the results, asks for a second grant.
        """
        task = self._new_task((data,), kind, pack(work), turn, leases)
        message = await self._dispatcher.run(task)
        for _ in range(_MOST_GRANTS):
            if message.kind != messages.COSTS_MORE:
                break
            cost = messages.unpack_cost(message.payload)
            kept_bytes = 0 if kept is None else kept.num_bytes
            if kept_bytes and cost.memory_bytes + kept_bytes > self._grants.for_large_images:
                raise _MemoryNeededForDecoding
            payload = pack(work._replace(granted=cost))
            task = self._new_task((data,), kind, payload, turn, leases)
            await self._grant(task, cost, kept)
            message = await self._dispatcher.run(task)
        return Decoded.unpack(payload_of(message, messages.DECODED))

    def _new_task(
        self,
        content: tuple[bytes | memoryview, ...],
        kind: int,
        payload: bytes,
        turn: Turn,
        leases: tuple[SlotLease, ...] = (),
    ) -> Task:
        done = asyncio.get_running_loop().create_future()
        return Task(content, kind, payload, done, leases, turn)

    async def _grant(self, task: Task, cost: Cost, kept: KeptMemory | None = None) -> None:
        task.is_long = self._grants.is_long(cost)
        task.release += await self._grants.take(cost, task.turn.urgency, kept)
