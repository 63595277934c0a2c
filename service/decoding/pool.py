"""The pool of decoder processes; used by the Detector.

A task waits for a free worker, the most urgent first. A worker returns an image that costs much
(`service.decoding.grants`) before decoding it; the image then waits for a grant. One worker more
than are used at once is kept in reserve: it serves when all others have long tasks, by their cost
or by the time they have run for, so that images that take seconds do not delay others.

    task --> free worker --> result                      the usual case
                |--> costs much --> grant --> free worker --> result
                |--> crash --> once more in a new worker --> crash: InvalidImage
                `--> the caller gave up --> killed after _GRACE_SECONDS, or if others wait
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Sequence
from functools import partial

import structlog

from model.config import ModelConfig
from model.geometry import padded_size
from model.images.decode import ImageLimits, JpegDecoding
from model.images.errors import InvalidImage
from model.images.limits import Cost
from service.decoding import messages
from service.decoding.grants import Grants
from service.decoding.messages import Decoded, DecodeTask, Message
from service.decoding.processes import WorkerProcess
from service.decoding.task_queue import TaskQueue
from service.decoding.tasks import (
    FIRST_COME,
    ImageInSlot,
    Task,
    Tile,
    TilesInSlots,
    Turn,
    payload_of,
)
from service.decoding.workers import Workers
from service.ipc.slot_pool import SlotLease
from service.ipc.slots import SlotImage

DEFAULT_DECODE = "model.images.decode:decode_image"
# An abandoned task may still finish for this long: most do at once, and a fork costs more.
_GRACE_SECONDS = 1.0
_GRACE_STEP_SECONDS = 0.1  # after each, it is killed if other tasks wait for a worker
_RESERVE_SECONDS = 0.1  # after all tasks have run for this long, the reserve serves too
_CALL_BYTES = 16 << 20  # in an inbox, for the pickled arguments of a call
_MAX_CRASHES = 2  # of workers in a row on one file

_log = structlog.get_logger(__name__)


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
        self._count = workers
        self._grants = Grants(memory_bytes, workers)
        self._inbox_bytes = max_file_bytes + _CALL_BYTES
        self._on_restart = on_restart
        self._scales_jpegs = jpeg_decoding == "scaled"
        self._workers = Workers(memory_bytes, decode, self._started, self._take, self._ended)
        self._idle: list[WorkerProcess] = []
        self._busy: dict[WorkerProcess, Task] = {}
        self._queue = TaskQueue()
        self._reserve_check: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def worker_count(self) -> int:
        """How many workers there are at the moment, with the one in reserve."""
        return len(self._idle) + len(self._busy)

    def start(self) -> None:
        """Starts the template and the workers (event loop only).

        Raises:
            OSError: if a process cannot be started.
        """
        with_reserve = self._count + 1
        self._workers.start(with_reserve, self._inbox_bytes, is_busy=lambda: bool(self._busy))

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

    async def decode_tiles(
        self,
        data: bytes | memoryview,
        config: ModelConfig,
        limits: ImageLimits,
        tiles: Sequence[Tile],
        turn: Turn = FIRST_COME,
    ) -> TilesInSlots:
        """Decodes an image once and resizes regions of it, each into its slot, as `decode` does.

        Args:
            data: the encoded image.
            config: whose input rule and bucket grid apply to each tile.
            limits: of the image.
            tiles: of one size, at least one.
            turn: their place among the images that wait.

        Raises:
            DetectionError, DecoderBug: as `decode`.
        """
        leases = tuple(tile.lease for tile in tiles)
        work = self._decode_task(data, config, limits, leases[0])
        wanted = [messages.TileTask(tile.lease.slot, *tile.region) for tile in tiles]
        pack = partial(messages.pack_tiles, tiles=wanted)
        decoded = await self._decode_once_granted(
            data, messages.DECODE_TILES, pack, work, leases, turn
        )
        size = decoded.height, decoded.width
        padded = padded_size(*size, config.bucket_stride)
        images = []
        for lease, (left, top, right, bottom) in tiles:
            images.append(SlotImage(size, padded, (bottom - top, right - left)))
            lease.describe(images[-1])
        return TilesInSlots(tuple(images), decoded.started, decoded.ended)

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
        message = await self._run(task)
        media_type, _, encoded = payload_of(message, messages.ENCODED).partition(b"\n")
        return encoded, media_type.decode()

    def close(self) -> None:
        """Ends all processes at once; whatever still waits is cancelled."""
        self._closed = True
        for task in (*self._queue.clear(), *self._busy.values()):
            task.done.cancel()
            task.finish()
        self._idle.clear()
        self._busy.clear()
        self._workers.close()

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
    ) -> Decoded:
        """Decodes at once if that costs little, otherwise with a grant."""
        message = await self._run(self._new_task((data,), kind, pack(work), turn, leases))
        if message.kind == messages.COSTS_MORE:
            payload = pack(work._replace(granted=None))
            task = self._new_task((data,), kind, payload, turn, leases)
            await self._grant(task, messages.unpack_cost(message.payload))
            message = await self._run(task)
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

    async def _grant(self, task: Task, cost: Cost) -> None:
        task.is_long = self._grants.is_long(cost)
        task.release += await self._grants.take(cost, task.turn.urgency)

    async def _run(self, task: Task) -> Message:
        if self._closed:
            task.finish()
            raise asyncio.CancelledError
        if self._queue or not self._idle or self._is_full():
            self._queue.add(task)
            self._check_reserve()
        else:
            self._give(self._idle.pop(), task)
        try:
            return await task.done
        except asyncio.CancelledError:
            self._abandon(task)
            raise

    def _abandon(self, task: Task) -> None:
        """The caller has gone: the task leaves the queue, or its worker gets a little time."""
        task.abandoned = True
        if self._queue.remove(task):
            task.finish()
            return
        for worker, current in self._busy.items():
            if current is task:
                for lease in task.leases:
                    lease.retain()
                    task.release.append(lease.release)
                self._allow(worker, task, _GRACE_SECONDS)
                return

    def _allow(self, worker: WorkerProcess, task: Task, seconds: float) -> None:
        """Lets an abandoned task go on for some time, or until other tasks wait for a worker."""

        def check() -> None:
            if self._busy.get(worker) is not task:
                return
            if self._queue or seconds <= _GRACE_STEP_SECONDS:
                worker.kill()
            else:
                self._allow(worker, task, seconds - _GRACE_STEP_SECONDS)

        asyncio.get_running_loop().call_later(min(seconds, _GRACE_STEP_SECONDS), check)

    def _give(self, worker: WorkerProcess, task: Task) -> None:
        self._busy[worker] = task
        task.started = asyncio.get_running_loop().time()
        try:
            if task.leases:
                worker.attach(task.leases[0].memory)
            worker.inbox.write(*task.content)
            worker.send(task.kind, task.payload)
        except Exception:
            _log.exception("unexpected error; killing the decoder")
            worker.kill()  # another one gets the task

    def _give_waiting(self) -> None:
        """Gives the tasks that wait to idle workers, as many as are used at once."""
        while self._queue and self._idle and not self._is_full():
            task = self._queue.take()
            self._give(self._idle.pop(), task)
        if self._queue:
            self._check_reserve()

    def _is_full(self) -> bool:
        """Whether idle workers are in reserve."""
        if len(self._busy) < self._count:
            return False
        long_since = asyncio.get_running_loop().time() - _RESERVE_SECONDS
        return not all(task.is_long or task.started <= long_since for task in self._busy.values())

    def _check_reserve(self) -> None:
        """Gives a waiting task to the reserve once all running tasks take long."""
        if self._reserve_check is not None or not self._idle:
            return

        def check() -> None:
            self._reserve_check = None
            if not self._closed:
                self._give_waiting()

        self._reserve_check = asyncio.get_running_loop().call_later(_RESERVE_SECONDS / 2, check)

    def _take(self, worker: WorkerProcess, message: Message) -> None:
        """A worker has finished its task."""
        task = self._busy.pop(worker)
        if not task.done.done():
            task.done.set_result(message)
        task.finish()
        self._idle.append(worker)
        self._give_waiting()

    def _started(self, worker: WorkerProcess) -> None:
        self._idle.append(worker)
        self._give_waiting()

    def _ended(self, worker: WorkerProcess) -> None:
        """A worker has died; another one takes its place."""
        task = self._busy.pop(worker, None)
        if worker in self._idle:
            self._idle.remove(worker)
        if task is None:
            self._on_restart("crash")
            _log.warning("decoder ended while idle")
            return
        if task.abandoned:
            self._on_restart("killed")
            task.finish()
            return
        self._on_restart("crash")
        # It is not the image's fault if the worker never ran, or ended with its template.
        task.crashes += worker.ready and worker.template_is_running
        num_bytes = len(task.content[0])
        context = task.log_context
        _log.warning("decoder crashed", num_bytes=num_bytes, crashes=task.crashes, **context)
        if task.crashes < _MAX_CRASHES:
            self._queue.add(task)
            # Later, so that the new worker gets it and not one that died at the same time.
            asyncio.get_running_loop().call_soon(self._give_waiting)
            return
        task.finish()
        if not task.done.done():
            task.done.set_exception(InvalidImage("the image crashes its decoder"))
