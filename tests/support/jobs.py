"""Jobs and batches for tests of batching and supervision."""

from __future__ import annotations

import math

import numpy as np

from model.detections import Detections
from service.batching.scheduler import Batch, Bucket, Job
from service.ipc.messages import ExplainRequest
from service.ipc.slot_pool import SlotPool
from service.ipc.slots import SlotLayout, SlotMemory
from service.types import Priority

NO_DETECTIONS = Detections(
    np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros((0, 4), np.float32)
)
BUCKET: Bucket = (64, 64)
OTHER_BUCKET: Bucket = (64, 128)
EXPLAIN = ExplainRequest(number=1, threshold=0.0, max_detections=4, class_ids=None)


def small_pool(count: int = 32) -> SlotPool:
    layout = SlotLayout(count=count, image_bytes=64 * 128 * 3, max_detections=4)
    return SlotPool(SlotMemory.create(layout))


class JobMaker:
    """Creates jobs, each with its own slot."""

    def __init__(self, pool: SlotPool | None = None) -> None:
        self.pool = pool or small_pool(256)

    def __call__(
        self,
        at: float = 0.0,
        bucket: Bucket = BUCKET,
        deadline: float = math.inf,
        priority: Priority = Priority.NORMAL,
        explain: ExplainRequest | None = None,
    ) -> Job:
        lease = self.pool.acquire()
        return Job(lease, bucket, at, deadline, priority=priority, explain=explain)

    def many(self, count: int, at: float = 0.0, bucket: Bucket = BUCKET) -> list[Job]:
        return [self(at, bucket) for _ in range(count)]

    def batch(self, count: int, engine_deaths: int = 0) -> Batch:
        return Batch(BUCKET, tuple(self.many(count)), engine_deaths)
