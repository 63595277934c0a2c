from __future__ import annotations

from service.batching.scheduler import Batch
from service.ipc.messages import BatchFailed
from service.supervision.failed_batches import FailedBatches
from tests.support.jobs import BUCKET


def _batch(number: int) -> tuple[Batch, BatchFailed]:
    return Batch(BUCKET, ()), BatchFailed(number, "no")


def test_a_failed_batch_is_the_cause_if_the_device_succeeds_next() -> None:
    failed_batches, (batch, failed) = FailedBatches(), _batch(1)
    failed_batches.add(batch, failed)
    resolution = failed_batches.resolve()
    assert (resolution.failed, resolution.lost) == (((batch, failed),), ())
    assert failed_batches.resolve().failed == ()


def test_the_device_is_the_cause_if_a_canary_fails() -> None:
    failed_batches, first, second = FailedBatches(), _batch(1), _batch(2)
    failed_batches.add(*first)
    failed_batches.mark_device_failed()
    failed_batches.add(*second)
    resolution = failed_batches.resolve()
    assert (resolution.failed, resolution.lost) == ((), (first[0], second[0]))
