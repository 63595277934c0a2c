"""Rules for a batch without a result: retry it, split it, or fail its image. No I/O, no clock.

An engine runs its batches in order, so only the first of those it held can have ended it.

- The engine ended once while it ran the batch: retry the batch unchanged, since the batch may not
  be the cause.
- The engine ended again: retry each image alone. An image that ends the engine once more is the
  cause; the others get their results.
- The engine ended twice on a batch of one image, or on an image that was split off: fail the image.
- The engine reported an exception or ran out of memory: halve the batch and retry, until an image
  fails alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from service.batching.scheduler import Batch, Job

_MAX_ENGINE_DEATHS = 2  # for the same batch; then it is split


@dataclass(frozen=True)
class Recovery:
    """What to do with the images of a batch that has no result."""

    retries: tuple[Batch, ...] = ()  # to run unchanged
    failed: tuple[Job, ...] = ()  # not to be retried


def after_engine_death(batch: Batch) -> Recovery:
    """For a batch during which the engine ended, or hung and was killed."""
    if not batch.jobs:
        return Recovery()
    deaths = batch.engine_deaths + 1
    if deaths < _MAX_ENGINE_DEATHS:
        return Recovery(retries=(Batch(batch.bucket, batch.jobs, deaths),))
    if len(batch.jobs) == 1:
        return Recovery(failed=batch.jobs)
    return Recovery(retries=tuple(Batch(batch.bucket, (job,), deaths) for job in batch.jobs))


def after_batch_failure(batch: Batch) -> Recovery:
    """For a batch for which a running engine reported an exception or out of memory."""
    if len(batch.jobs) <= 1:
        return Recovery(failed=batch.jobs)
    middle = len(batch.jobs) // 2
    halves = (batch.jobs[:middle], batch.jobs[middle:])
    return Recovery(
        retries=tuple(Batch(batch.bucket, half, batch.engine_deaths) for half in halves)
    )
