from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from service.batching.scheduler import Batch, BatchPolicy, EngineState, Job, Scheduler
from service.types import Priority
from tests.support.jobs import BUCKET, EXPLAIN, OTHER_BUCKET, JobMaker

POLICY = BatchPolicy(
    max_batch_size=4,
    max_batch_pixels=1_000_000,
    max_wait_ms=10,
    patience_seconds=1,
    stage_lead_ms=2,
)
IDLE = EngineState(in_flight=0, idle_since=0.0, busy_until=-math.inf)
FULL = EngineState(in_flight=2, idle_since=0.0, busy_until=-math.inf)


def _busy(until: float) -> EngineState:
    return EngineState(in_flight=1, idle_since=0.0, busy_until=until)


@pytest.fixture
def job() -> JobMaker:
    return JobMaker()


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler(POLICY)


def _fill(scheduler: Scheduler, jobs: list[Job]) -> None:
    for item in jobs:
        scheduler.add(item)


def _jobs(batch: Batch | None) -> list[Job]:
    assert batch is not None
    return list(batch.jobs)


def test_an_idle_engine_gets_a_single_image_at_once(scheduler: Scheduler, job: JobMaker) -> None:
    only = job()
    scheduler.add(only)
    assert _jobs(scheduler.plan(0.0, IDLE).batch) == [only]
    assert len(scheduler) == 0


def test_the_plan_for_empty_queues_is_empty(scheduler: Scheduler) -> None:
    plan = scheduler.plan(0.0, IDLE)
    assert (plan.batch, plan.wake_at) == (None, math.inf)


def test_an_idle_engine_waits_for_images_being_decoded(scheduler: Scheduler, job: JobMaker) -> None:
    scheduler.add(job(at=5.0))
    plan = scheduler.plan(5.0, IDLE, num_decoding=1)
    assert plan.batch is None
    assert plan.wake_at == pytest.approx(5.010)
    scheduler.add(job(at=5.005))
    assert len(_jobs(scheduler.plan(5.011, IDLE, num_decoding=1).batch)) == 2


def test_the_wait_counts_only_while_the_engine_is_idle(scheduler: Scheduler, job: JobMaker) -> None:
    scheduler.add(job(at=1.0))
    engine = IDLE._replace(idle_since=3.0)
    assert scheduler.plan(3.005, engine, num_decoding=1).wake_at == pytest.approx(3.010)


def test_a_full_batch_does_not_wait(scheduler: Scheduler, job: JobMaker) -> None:
    _fill(scheduler, job.many(4))
    assert len(_jobs(scheduler.plan(0.0, IDLE, num_decoding=9).batch)) == 4


def test_a_batch_holds_at_most_max_batch_size(scheduler: Scheduler, job: JobMaker) -> None:
    jobs = job.many(6)
    _fill(scheduler, jobs)
    assert _jobs(scheduler.plan(0.0, IDLE).batch) == jobs[:4]
    assert _jobs(scheduler.plan(0.0, IDLE).batch) == jobs[4:]


@pytest.mark.parametrize(("max_pixels", "images"), [(3 * 64 * 64, 3), (64 * 64, 1), (1, 1)])
def test_a_batch_holds_at_most_max_batch_pixels(
    job: JobMaker, max_pixels: int, images: int
) -> None:
    scheduler = Scheduler(replace(POLICY, max_batch_pixels=max_pixels))
    _fill(scheduler, job.many(6))
    batch = scheduler.plan(0.0, IDLE).batch
    assert batch is not None
    assert len(batch.jobs) == images
    assert batch.padded_pixels == images * 64 * 64


def test_a_batch_holds_images_of_one_bucket(scheduler: Scheduler, job: JobMaker) -> None:
    for index in range(6):
        scheduler.add(job(at=index / 100, bucket=(BUCKET, OTHER_BUCKET)[index % 2]))
    for expected in (BUCKET, OTHER_BUCKET):
        batch = scheduler.plan(0.1, IDLE).batch
        assert batch is not None
        assert batch.bucket == expected
        assert {item.bucket for item in batch.jobs} == {expected}


def test_the_oldest_deadline_goes_first_across_buckets(scheduler: Scheduler, job: JobMaker) -> None:
    scheduler.add(job(at=0.0, deadline=0.9))
    urgent = job(at=0.1, bucket=OTHER_BUCKET, deadline=0.5)
    scheduler.add(urgent)
    assert _jobs(scheduler.plan(0.1, IDLE).batch) == [urgent]


def test_the_oldest_deadline_goes_first_within_a_bucket(
    scheduler: Scheduler, job: JobMaker
) -> None:
    _fill(scheduler, [job(deadline=0.9) for _ in range(4)])
    urgent = job(at=0.1, deadline=0.2)
    scheduler.add(urgent)
    assert _jobs(scheduler.plan(0.1, IDLE).batch)[0] is urgent


def test_equal_deadlines_go_first_come_first_served(scheduler: Scheduler, job: JobMaker) -> None:
    jobs = [job(deadline=0.5) for _ in range(4)]
    _fill(scheduler, jobs)
    assert _jobs(scheduler.plan(0.1, IDLE).batch) == jobs


def test_a_distant_deadline_does_not_starve_behind_urgent_arrivals(
    scheduler: Scheduler, job: JobMaker
) -> None:
    patient = job(at=0.0, deadline=100.0)
    scheduler.add(patient)
    now = 0.0
    for _ in range(200):
        _fill(scheduler, [job(at=now, bucket=OTHER_BUCKET, deadline=now + 0.5) for _ in range(4)])
        if patient in _jobs(scheduler.plan(now, IDLE).batch):
            break
        now += 0.01
    assert now <= POLICY.patience_seconds


def test_a_constantly_full_bucket_does_not_starve_a_single_image(
    scheduler: Scheduler, job: JobMaker
) -> None:
    lone = job(at=0.0, bucket=OTHER_BUCKET)
    scheduler.add(lone)
    now = 0.0
    while now < 1.0:
        _fill(scheduler, job.many(4, at=now))
        if lone in _jobs(scheduler.plan(now, IDLE, num_decoding=3).batch):
            break
        now += 0.004
    assert now <= 0.012  # max_wait and the batch that was formed before


def test_a_busy_engine_gets_a_full_batch_staged_at_once(
    scheduler: Scheduler, job: JobMaker
) -> None:
    _fill(scheduler, job.many(4))
    assert len(_jobs(scheduler.plan(0.0, _busy(until=5.0)).batch)) == 4


def test_a_partial_batch_is_staged_just_before_the_engine_ends(
    scheduler: Scheduler, job: JobMaker
) -> None:
    scheduler.add(job())
    early = scheduler.plan(0.0, _busy(until=5.0))
    assert early.batch is None
    assert early.wake_at == pytest.approx(4.998)
    scheduler.add(job(at=2.0))
    assert len(_jobs(scheduler.plan(4.999, _busy(until=5.0)).batch)) == 2


def test_without_a_prediction_a_batch_is_staged_at_once(
    scheduler: Scheduler, job: JobMaker
) -> None:
    scheduler.add(job())
    assert scheduler.plan(0.0, _busy(until=-math.inf)).batch is not None


def test_only_one_batch_is_staged(scheduler: Scheduler, job: JobMaker) -> None:
    _fill(scheduler, job.many(8))
    plan = scheduler.plan(0.0, FULL)
    assert (plan.batch, plan.wake_at, len(scheduler)) == (None, math.inf, 8)


def test_expired_images_are_dropped_and_not_sent(scheduler: Scheduler, job: JobMaker) -> None:
    late, in_time = job(deadline=1.0), job(deadline=3.0)
    _fill(scheduler, [late, in_time])
    plan = scheduler.plan(2.0, IDLE)
    assert plan.expired == (late,)
    assert _jobs(plan.batch) == [in_time]


def test_expired_images_are_dropped_while_the_engine_is_full(
    scheduler: Scheduler, job: JobMaker
) -> None:
    late = job(deadline=1.0)
    scheduler.add(late)
    assert scheduler.plan(2.0, FULL).expired == (late,)
    assert scheduler.plan(2.0, IDLE).batch is None


def test_a_removed_image_is_not_sent_and_others_are(scheduler: Scheduler, job: JobMaker) -> None:
    first, gone, last = job.many(3)
    _fill(scheduler, [first, gone, last])
    assert scheduler.remove(gone)
    assert not scheduler.remove(gone)
    assert _jobs(scheduler.plan(0.0, IDLE).batch) == [first, last]


def test_a_retried_batch_goes_first_and_unchanged(scheduler: Scheduler, job: JobMaker) -> None:
    _fill(scheduler, job.many(2))
    retried = job.batch(1, engine_deaths=1)
    scheduler.retry([retried])
    assert scheduler.plan(0.0, IDLE).batch is retried
    assert len(_jobs(scheduler.plan(0.0, IDLE).batch)) == 2


def test_an_image_is_removed_from_a_retried_batch(scheduler: Scheduler, job: JobMaker) -> None:
    retried = job.batch(2, engine_deaths=1)
    scheduler.retry([retried])
    assert scheduler.remove(retried.jobs[0])
    batch = scheduler.plan(0.0, IDLE).batch
    assert batch is not None
    assert (batch.jobs, batch.engine_deaths) == (retried.jobs[1:], 1)
    scheduler.retry([Batch(BUCKET, retried.jobs[:1])])
    assert scheduler.remove(retried.jobs[0])
    assert scheduler.plan(0.0, IDLE).batch is None


def test_an_expired_image_is_not_retried(scheduler: Scheduler, job: JobMaker) -> None:
    late = job(deadline=1.0)
    scheduler.retry([Batch(BUCKET, (late,), 1)])
    plan = scheduler.plan(2.0, IDLE)
    assert (plan.expired, plan.batch) == ((late,), None)


def test_high_priority_overtakes_images_that_waited_less_than_their_patience(
    scheduler: Scheduler, job: JobMaker
) -> None:
    _fill(scheduler, [job(at=0.5) for _ in range(5)])
    high = job(at=0.6, priority=Priority.HIGH)
    scheduler.add(high)
    assert _jobs(scheduler.plan(0.6, IDLE).batch)[0] is high


def test_high_priority_decides_across_buckets(scheduler: Scheduler, job: JobMaker) -> None:
    _fill(scheduler, job.many(4, at=0.5))
    high = job(at=0.6, bucket=OTHER_BUCKET, priority=Priority.HIGH)
    scheduler.add(high)
    assert _jobs(scheduler.plan(0.6, IDLE).batch) == [high]


def test_many_images_of_high_priority_do_not_starve_others(
    scheduler: Scheduler, job: JobMaker
) -> None:
    normal = job(at=0.0, bucket=OTHER_BUCKET)
    scheduler.add(normal)
    now = 0.0
    for _ in range(200):
        _fill(scheduler, [job(at=now, priority=Priority.HIGH) for _ in range(4)])
        ran = _jobs(scheduler.plan(now, IDLE).batch)
        if normal in ran:
            break
        for item in ran:
            item.lease.release()
        now += 0.01
    assert POLICY.patience_seconds <= now <= POLICY.patience_seconds + 0.02


def test_an_earlier_deadline_goes_before_high_priority(scheduler: Scheduler, job: JobMaker) -> None:
    scheduler.add(job(at=0.5, priority=Priority.HIGH))
    late = job(at=0.4, deadline=0.45, bucket=OTHER_BUCKET)
    scheduler.add(late)
    assert _jobs(scheduler.plan(0.44, IDLE).batch) == [late]


def test_count_before_counts_the_images_that_are_not_overtaken(
    scheduler: Scheduler, job: JobMaker
) -> None:
    _fill(scheduler, [*job.many(2), job(bucket=OTHER_BUCKET, priority=Priority.HIGH)])
    scheduler.retry([job.batch(2)])
    assert scheduler.count_before(Priority.NORMAL) == 5
    assert scheduler.count_before(Priority.HIGH) == 3


def test_an_image_to_explain_runs_alone_after_all_others(
    scheduler: Scheduler, job: JobMaker
) -> None:
    explained = job(at=0.0, priority=Priority.HIGH, explain=EXPLAIN)
    _fill(scheduler, [explained, *job.many(2, at=5.0)])
    assert (len(scheduler), scheduler.count_before(Priority.NORMAL)) == (3, 2)
    assert explained not in _jobs(scheduler.plan(6.0, IDLE).batch)
    assert scheduler.plan(6.0, _busy(until=6.0)).batch is None
    assert explained in scheduler
    plan = scheduler.plan(6.0, IDLE._replace(idle_since=6.0), num_decoding=1)
    assert plan.batch is None
    assert plan.wake_at == pytest.approx(6.010)
    assert _jobs(scheduler.plan(6.011, IDLE._replace(idle_since=6.0), 1).batch) == [explained]
    assert (len(scheduler), explained in scheduler) == (0, False)


def test_an_image_to_explain_may_leave_expire_and_be_retried(
    scheduler: Scheduler, job: JobMaker
) -> None:
    first, second, third = (job(deadline=at, explain=EXPLAIN) for at in (3.0, 1.0, 9.0))
    _fill(scheduler, [first, second, third])
    assert scheduler.plan(1.0, FULL).expired == (second,)
    assert (scheduler.remove(first), scheduler.remove(first)) == (True, False)
    assert _jobs(scheduler.plan(2.0, IDLE).batch) == [third]
    scheduler.retry([Batch(BUCKET, (third,), 1)])
    assert _jobs(scheduler.plan(2.0, IDLE).batch) == [third]
    scheduler.requeue([third])
    scheduler.clear()
    assert not scheduler


@pytest.mark.parametrize("seed", range(5))
def test_every_image_leaves_the_queue_exactly_once(seed: int) -> None:
    rng = random.Random(seed)
    job, scheduler, now = JobMaker(), Scheduler(POLICY), 0.0
    waiting: set[Job] = set()
    added = left = 0
    for _ in range(600):
        now += rng.random() * 0.01
        if rng.random() < 0.5 and added < 200:
            item = job(now, rng.choice([BUCKET, OTHER_BUCKET]), now + rng.random() * 0.3)
            scheduler.add(item)
            waiting.add(item)
            added += 1
        if waiting and rng.random() < 0.1:
            gone = rng.choice(sorted(waiting, key=id))
            assert scheduler.remove(gone)
            waiting.discard(gone)
            left += 1
        plan = scheduler.plan(now, rng.choice([IDLE, FULL, _busy(now + 0.01)]), rng.randrange(3))
        for item in (*plan.expired, *(plan.batch.jobs if plan.batch else ())):
            waiting.remove(item)
            left += 1
        assert all(item.deadline > now for item in (plan.batch.jobs if plan.batch else ()))
        assert len(scheduler) == len(waiting)
    assert left + len(waiting) == added


def test_a_busy_engine_gets_no_image_that_it_would_complete_too_late(job: JobMaker) -> None:
    scheduler = Scheduler(BatchPolicy(max_batch_size=4))
    late, good = job(0.0, deadline=1.4), job(0.0, deadline=3.0)
    for each in (late, good):
        scheduler.add(each)
    busy = EngineState(1, 0.0, 1.0, lambda pixels: 0.5)
    plan = scheduler.plan(1.0, busy)
    assert plan.expired == (late,)
    assert plan.batch is not None
    assert plan.batch.jobs == (good,)


def test_an_idle_engine_gets_an_image_that_is_predicted_to_be_too_late(job: JobMaker) -> None:
    scheduler = Scheduler(BatchPolicy(max_batch_size=4))
    late = job(0.0, deadline=1.4)
    scheduler.add(late)
    plan = scheduler.plan(1.0, EngineState(0, 0.0, 0.0, lambda pixels: 0.5))
    assert plan.batch is not None
    assert plan.batch.jobs == (late,)


def test_if_all_images_would_be_too_late_no_batch_is_formed(job: JobMaker) -> None:
    scheduler = Scheduler(BatchPolicy(max_batch_size=4))
    jobs = tuple(job(0.0, deadline=1.4) for _ in range(6))
    for each in jobs:
        scheduler.add(each)
    plan = scheduler.plan(1.0, EngineState(1, 0.0, 1.0, lambda pixels: 0.5))
    assert (set(plan.expired), plan.batch, len(scheduler)) == (set(jobs), None, 0)


def test_an_empty_batch_is_not_retried() -> None:
    scheduler = Scheduler(BatchPolicy())
    scheduler.retry([Batch(BUCKET, (), 1)])
    assert scheduler.plan(0.0, EngineState(0, 0.0, 0.0)).batch is None
