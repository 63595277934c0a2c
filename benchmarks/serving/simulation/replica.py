"""One replica: an edge process, decoders and engines; its queues and decisions are the service's.

    arrive -> edge (FIFO) -> admit -> decoders (FIFO) -> batcher -> engine -> edge (FIFO) -> outcome

`Admission`, `SlotPool`, `Batcher`, `Scheduler`, `BatchesInFlight` and the recovery of lost batches
are those of `service`. Edge, decoders and engines only take time; slots hold no pixels.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from benchmarks.serving.simulation.times import EdgeTimes, EngineTimes, Shape
from model.detections import Detections
from service.batching.batcher import Batcher
from service.batching.scheduler import Batch, BatchPolicy, Job, Scheduler
from service.core.admission import Admission
from service.core.served_model import ServedModel
from service.core.sizing import default_slots
from service.errors import DetectionError
from service.ipc.slot_pool import SlotLease, SlotPool
from service.ipc.slots import SlotLayout, SlotMemory
from service.observability.metrics import Metrics
from service.supervision.weights_file import OpenWeightsFile
from service.types import Priority
from tests.support.fake_device import FAKE_MODEL
from tests.support.jobs import NO_DETECTIONS
from tests.support.simulated_engine import RunTime, SimulatedEngine

OK, LATE, LOST, SHUTTING_DOWN = "ok", "deadline_exceeded", "lost", "shutting_down"


@dataclass(slots=True, eq=False)
class Request:
    """One request; times are seconds of the simulation."""

    arrived: float  # at the balancer
    shape: Shape
    outcome: str = ""
    done: float = 0.0


@dataclass(frozen=True)
class ReplicaOptions:
    """How each replica is built."""

    times: EngineTimes
    edge: EdgeTimes
    engines: int = 1
    decoders: int = 2
    policy: BatchPolicy = field(default_factory=BatchPolicy)
    timeout_seconds: float = 30.0
    jitter: float = 0.0  # of an engine's time, relative, uniform
    slots: int | None = None  # None: as the service computes it


class _EmptySlots(SlotMemory):
    """Slots without memory; every result has no detections."""

    def __init__(self, count: int) -> None:
        self.layout = SlotLayout(count, image_bytes=0, max_detections=0)
        self.fd = 0

    def close(self) -> None:
        """Frees nothing."""

    def clear_header(self, slot: int, generation: int) -> None:
        """Writes nothing."""

    def read_result(self, slot: int, generation: int) -> Detections:
        """Returns no detections."""
        return NO_DETECTIONS


class Replica:
    """One instance of the service, on the clock of the event loop."""

    def __init__(
        self,
        number: int,
        options: ReplicaOptions,
        metrics: Metrics,
        seed: int,
        on_done: Callable[[Replica, Request], None],
    ) -> None:
        """Creates a replica that is ready.

        Args:
            number: in the fleet.
            options: shared by all replicas.
            metrics: that the batcher counts in.
            seed: of the engines' jitter.
            on_done: called once per request, with its outcome.
        """
        self.number, self.options = number, options
        self.open_requests = 0
        self.version = 0  # changes with `open_requests`, for the balancer
        self.draining = self.lost = self.refusing = False
        self.refuses_connections = False  # once it is lost
        self.ended_at = math.inf
        self.edge_busy_seconds = self.decoders_busy_seconds = 0.0
        self.images = self.batches = self.image_pixels = self.padded_pixels = 0
        self._loop = asyncio.get_running_loop()
        self._random = random.Random(f"{seed}/{number}")
        self._on_done = on_done
        self.started_at = self._loop.time()
        self.engines = [
            SimulatedEngine(partial(self._run_time, number), self._count)
            for number in range(options.engines)
        ]
        self._slowdowns = [1.0] * options.engines
        batcher = Batcher(Scheduler(options.policy), self.engines, metrics, self._loop.time)
        for engine in self.engines:
            engine.listener = batcher
        batch_size = options.policy.max_batch_size
        slots = options.slots or default_slots(options.engines, batch_size, options.decoders)
        pool = SlotPool(_EmptySlots(slots))
        self.served = ServedModel(FAKE_MODEL, pool, batcher, [], OpenWeightsFile(None))
        self._admission = Admission(options.decoders)
        self._edge_free = 0.0
        self._decoders_free = [0.0] * options.decoders  # a heap
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> bool:
        """What /readyz reports."""
        return not (self.draining or self.lost) and self.served.batcher.ready

    @property
    def busy_share(self) -> float | None:
        """The gauge `lite_detr_engine_busy_ratio`; None while no engine is ready."""
        shares = [engine.busy_share for engine in self.engines if engine.ready]
        return sum(shares) / len(shares) if shares else None

    def accept(self, request: Request) -> None:
        """Receives a request at the edge, behind those that the edge is busy with."""
        self.open_requests += 1
        self.version += 1
        if self.lost:  # the connection stays open until the client gives up
            self._loop.call_later(self.options.timeout_seconds, self._finish, request, LOST)
        else:
            self._loop.call_at(self._edge(self.options.edge.receive), self._admit, request)

    def lose(self) -> None:
        """The replica ends at once; so do its requests."""
        self.lost = True
        for engine in self.engines:
            engine.ready = False
            engine.cancel()
        for task in list(self._tasks):
            task.cancel()

    def restart_engine(self, engine: SimulatedEngine) -> None:
        """The replacement of an ended engine is ready."""
        if not self.lost:
            engine.begin()

    def slow_engine(self, factor: float) -> None:
        """The first engine takes `factor` times its usual time from now on."""
        self._slowdowns[0] = factor

    async def close(self) -> None:
        """Ends what is left."""
        for engine in self.engines:
            engine.cancel()
        await self.served.close()

    def _edge(self, seconds: float) -> float:
        """Uses the edge process; returns when it has done that, after all before."""
        self.edge_busy_seconds += seconds
        self._edge_free = max(self._edge_free, self._loop.time()) + seconds
        return self._edge_free

    def _admit(self, request: Request) -> None:
        """Accepts or refuses a request, as `service.core.detector` does."""
        if self.lost or self.refusing:
            self._finish(request, LOST if self.lost else SHUTTING_DOWN)
            return
        timeout = self.options.timeout_seconds
        try:
            lease = self._admission.admit(self.served, timeout, Priority.NORMAL)
        except DetectionError as error:
            self._finish(request, error.code)
            return
        task = self._loop.create_task(self._run(request, lease))
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, request))

    def _ended(self, request: Request, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            self._finish(request, LOST)
        else:
            task.result()

    async def _run(self, request: Request, lease: SlotLease) -> None:
        deadline = self._loop.time() + self.options.timeout_seconds
        batcher, shape, outcome = self.served.batcher, request.shape, OK
        try:
            async with asyncio.timeout_at(deadline):
                with batcher.track_decoding():
                    await self._decode()
                self._admission.learn_decode(self.options.edge.decode)
                now = self._loop.time()
                await batcher.run(Job(lease, shape.bucket, now, deadline, shape.image_pixels))
        except DetectionError as error:
            outcome = error.code
        except TimeoutError:
            outcome = LATE
        finally:
            lease.release()
        self._loop.call_at(self._edge(self.options.edge.respond), self._finish, request, outcome)

    async def _decode(self) -> None:
        """Waits for a decoder, and for the decoding."""
        seconds = self.options.edge.decode
        if not seconds:
            return
        self.decoders_busy_seconds += seconds
        end = max(self._decoders_free[0], self._loop.time()) + seconds
        heapq.heapreplace(self._decoders_free, end)
        decoded = self._loop.create_future()
        timer = self._loop.call_at(end, decoded.set_result, None)
        try:
            await decoded
        finally:
            timer.cancel()

    def _finish(self, request: Request, outcome: str) -> None:
        assert not request.outcome, "a request has one outcome"
        request.outcome = LOST if self.lost else outcome
        request.done = self._loop.time()
        self.open_requests -= 1
        self.version += 1
        self._on_done(self, request)

    def _run_time(self, engine: int, batch: Batch) -> RunTime:
        seconds = self.options.times.seconds(batch.bucket, len(batch.jobs))
        seconds *= self._slowdowns[engine]
        if self.options.jitter:
            seconds *= 1 + self.options.jitter * self._random.uniform(-1, 1)
        return RunTime(seconds)

    def _count(self, batch: Batch) -> None:
        self.batches += 1
        self.images += len(batch.jobs)
        self.image_pixels += sum(job.image_pixels for job in batch.jobs)
        self.padded_pixels += batch.padded_pixels
