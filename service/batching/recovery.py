"""What becomes of a batch that has no answer: run again, split, or give up. Pure rules.

The engine runs its batches in order, so of those it held when it died only the first is suspect.

- An engine died on it once: the batch runs once more, as it was (the death may be no fault of it).
- It died on it again: each image runs alone, so that the culprit convicts itself with one more
  death and the others are answered.
- It died on a lone image twice, or on one that was split off: that image is given up.
- An exception, the engine being well: halves, down to the one image that fails alone. Memory that
  ran out halves the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

from service.batching.scheduler import Batch, Job

_DEATHS_ALLOWED = 2  # of engines on the same batch; the next step is to split it


@dataclass(frozen=True)
class Recovery:
    """What to do with a batch that has no answer."""

    retries: tuple[Batch, ...] = ()  # to run, each alone
    failed: tuple[Job, ...] = ()


def after_engine_death(batch: Batch) -> Recovery:
    """The engine died (or hung and was killed) while it ran the batch."""
    if not batch.jobs:
        return Recovery()
    engine_deaths = batch.engine_deaths + 1
    if engine_deaths < _DEATHS_ALLOWED:
        return Recovery(retries=(Batch(batch.bucket, batch.jobs, engine_deaths),))
    if len(batch.jobs) == 1:
        return Recovery(failed=batch.jobs)
    return Recovery(retries=tuple(Batch(batch.bucket, (job,), engine_deaths) for job in batch.jobs))


def after_batch_failure(batch: Batch) -> Recovery:
    """The engine reported an exception or a lack of memory, and is well."""
    if len(batch.jobs) <= 1:
        return Recovery(failed=batch.jobs)
    middle = len(batch.jobs) // 2
    halves = (batch.jobs[:middle], batch.jobs[middle:])
    return Recovery(
        retries=tuple(Batch(batch.bucket, half, batch.engine_deaths) for half in halves)
    )
