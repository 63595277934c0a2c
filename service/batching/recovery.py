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
class Verdict:
    """What to do with a batch that has no answer."""

    again: tuple[Batch, ...] = ()  # to run, each alone
    given_up: tuple[Job, ...] = ()


def after_death(batch: Batch) -> Verdict:
    """The engine died (or hung and was killed) while it ran the batch."""
    if not batch.jobs:
        return Verdict()
    deaths = batch.deaths + 1
    if deaths < _DEATHS_ALLOWED:
        return Verdict(again=(Batch(batch.bucket, batch.jobs, deaths),))
    if len(batch.jobs) == 1:
        return Verdict(given_up=batch.jobs)
    return Verdict(again=tuple(Batch(batch.bucket, (job,), deaths) for job in batch.jobs))


def after_failure(batch: Batch) -> Verdict:
    """The engine reported an exception or a lack of memory, and is well."""
    if len(batch.jobs) <= 1:
        return Verdict(given_up=batch.jobs)
    middle = len(batch.jobs) // 2
    halves = (batch.jobs[:middle], batch.jobs[middle:])
    return Verdict(again=tuple(Batch(batch.bucket, half, batch.deaths) for half in halves))
