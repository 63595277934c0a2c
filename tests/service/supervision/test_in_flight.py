from __future__ import annotations

import math

import pytest

from service.batching.scheduler import Batch
from service.supervision.in_flight import BatchesInFlight, UnexpectedBatch
from tests.support.jobs import BUCKET, EXPLAIN, JobMaker


@pytest.fixture
def job() -> JobMaker:
    return JobMaker()


def test_the_run_time_of_a_staged_batch_begins_when_the_one_before_ends(job: JobMaker) -> None:
    in_flight = BatchesInFlight(now=0.0)
    first, second = job.batch(1), job.batch(2)
    ids = [in_flight.add(first, 1.0), in_flight.add(second, 1.1)]
    assert in_flight.state().in_flight == 2
    assert in_flight.complete(ids[0], 3.0) == (first, 2.0)
    assert in_flight.complete(ids[1], 4.0) == (second, 1.0)
    assert (len(in_flight), in_flight.state().idle_since) == (0, 4.0)


def test_a_reply_to_another_than_the_running_batch_is_an_error(job: JobMaker) -> None:
    in_flight = BatchesInFlight(now=0.0)
    in_flight.add(job.batch(1), 0.0)
    second = in_flight.add(job.batch(1), 0.0)
    with pytest.raises(UnexpectedBatch):
        in_flight.complete(second, 1.0)
    with pytest.raises(UnexpectedBatch):
        BatchesInFlight(now=0.0).complete(1, 1.0)


def test_take_all_returns_the_batches_in_order(job: JobMaker) -> None:
    in_flight = BatchesInFlight(now=0.0)
    batches = [job.batch(1), job.batch(2)]
    for batch in batches:
        in_flight.add(batch, 0.0)
    assert in_flight.take_all(2.0) == tuple(batches)
    assert in_flight.take_all(3.0) == ()


def test_the_end_is_predicted_from_earlier_batches(job: JobMaker) -> None:
    in_flight = BatchesInFlight(now=0.0)
    batch = job.batch(2)
    in_flight.add(batch, 10.0)
    assert in_flight.state().busy_until == -math.inf
    in_flight.learn(batch, 0.5)
    in_flight.add(job.batch(2), 10.1)
    assert in_flight.state().busy_until == pytest.approx(11.0)
    assert in_flight.predicted_seconds(batch.padded_pixels) == pytest.approx(0.5)


def test_explanations_are_predicted_apart_from_batches(job: JobMaker) -> None:
    in_flight = BatchesInFlight(now=0.0)
    explained = Batch(BUCKET, (job(explain=EXPLAIN),))
    pixels = explained.padded_pixels
    in_flight.learn(job.batch(1), 0.5)
    in_flight.add(explained, 10.0)
    assert in_flight.state().busy_until == pytest.approx(11.0)  # as another run, until measured
    in_flight.learn(explained, 2.5, 2.0)
    assert in_flight.predicted_seconds(pixels) == pytest.approx(0.5)
    assert in_flight.state().busy_until == pytest.approx(12.5)


def test_the_prediction_for_no_pixels_is_zero(job: JobMaker) -> None:
    in_flight = BatchesInFlight(now=0.0)
    in_flight.learn(job.batch(1), 0.5)
    assert in_flight.predicted_seconds(0) == 0.0
