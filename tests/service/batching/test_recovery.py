from __future__ import annotations

import pytest

from service.batching.recovery import after_batch_failure, after_engine_death
from service.batching.scheduler import Batch, Job
from tests.support.jobs import BUCKET, JobMaker


@pytest.fixture
def job() -> JobMaker:
    return JobMaker()


def test_a_batch_is_retried_unchanged_after_the_first_engine_death(job: JobMaker) -> None:
    batch = job.batch(3)
    recovery = after_engine_death(batch)
    assert recovery.retries == (Batch(BUCKET, batch.jobs, engine_deaths=1),)
    assert recovery.failed == ()


def test_a_batch_is_split_into_single_images_after_the_second_engine_death(job: JobMaker) -> None:
    batch = job.batch(3, engine_deaths=1)
    assert [part.jobs for part in after_engine_death(batch).retries] == [
        (each,) for each in batch.jobs
    ]


def test_a_single_image_fails_after_the_second_engine_death(job: JobMaker) -> None:
    batch = job.batch(1, engine_deaths=1)
    assert after_engine_death(batch).failed == batch.jobs
    assert after_engine_death(batch).retries == ()


def test_a_failed_batch_is_halved(job: JobMaker) -> None:
    batch = job.batch(5)
    assert [len(part.jobs) for part in after_batch_failure(batch).retries] == [2, 3]


def test_an_image_that_fails_alone_is_not_retried(job: JobMaker) -> None:
    batch = job.batch(1)
    assert after_batch_failure(batch).failed == batch.jobs


@pytest.mark.parametrize("rule", [after_engine_death, after_batch_failure])
def test_an_empty_batch_needs_no_recovery(rule: object) -> None:
    assert callable(rule)
    recovery = rule(Batch(BUCKET, ()))
    assert (recovery.retries, recovery.failed) == ((), ())


@pytest.mark.parametrize("rule", [after_engine_death, after_batch_failure])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("num_poison", [1, 2])
def test_exactly_the_images_that_cause_failures_fail(
    job: JobMaker, rule: object, size: int, num_poison: int
) -> None:
    assert callable(rule)
    batch = job.batch(size)
    poison = set(batch.jobs[-num_poison:])
    waiting, completed, failed, runs = [batch], set[Job](), set[Job](), 0
    while waiting:
        runs += 1
        current = waiting.pop(0)
        if poison & set(current.jobs):
            recovery = rule(current)
            waiting.extend(recovery.retries)
            failed |= set(recovery.failed)
        else:
            completed |= set(current.jobs)
    assert failed == poison & set(batch.jobs)
    assert completed == set(batch.jobs) - poison
    assert runs <= 2 * size + 2
