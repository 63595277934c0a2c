"""What float16 and a GPU's float32, emulated on the CPU, change: why `auto` is float32 on GPUs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from benchmarks.model import drift, precision
from benchmarks.model.drift import Change
from model.network.precision import resolve_precision
from tests.support.reference_cases import parametrize_cases

MAX_MEMORY_RMS = 2.5e-3  # of the encoder's output, whose standard deviation is about 1


def test_float32_is_the_default_everywhere() -> None:
    assert resolve_precision("auto", "cuda:1") == ("fp32", torch.float32)
    assert resolve_precision("auto", "cpu") == ("fp32", torch.float32)


def _assert_within_limits(changes: Sequence[Change], detections: int) -> None:
    assert sum(change.detections for change in changes) >= detections
    assert max(change.score for change in changes) <= drift.MAX_SCORE_CHANGE == 0.01
    assert max(change.box_pixels for change in changes) <= drift.MAX_BOX_CHANGE == 1.0


def _of(changes: Sequence[Change], name: str, *, same_queries: bool) -> list[Change]:
    return [
        change
        for change in changes
        if (change.precision, change.same_queries) == (name, same_queries)
    ]


@pytest.mark.slow
def test_numbers_of_gpus_change_the_samples_within_the_limits() -> None:
    with torch.inference_mode():
        changes = drift.changes(("fp32", "fp16"), drift.samples())
    float32 = _of(changes, "fp32", same_queries=False)
    _assert_within_limits(float32, 10)
    assert sum(change.ranks_changed for change in float32) == 0
    _assert_within_limits(_of(changes, "fp16", same_queries=True), 10)


@pytest.mark.slow
@pytest.mark.family
def test_with_the_same_queries_float16_is_within_the_limits_on_many_images(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    photos = drift.samples()
    cache = tmp_path_factory.mktemp("scenes")
    images = {**photos, **drift.copies(photos), **drift.scenes(cache)}
    assert len(images) >= 50
    with torch.inference_mode():
        changes = drift.changes(("fp32", "fp16"), images)
    for same_queries in (False, True):
        _assert_within_limits(_of(changes, "fp32", same_queries=same_queries), 100)
    _assert_within_limits(_of(changes, "fp16", same_queries=True), 100)
    alone = _of(changes, "fp16", same_queries=False)
    assert sum(change.within for change in alone) >= 0.6 * sum(one.detections for one in alone)


def test_numbers_are_rounded_to_tf32() -> None:
    step = 2.0**-10
    given = torch.tensor([1.0, 1 + step, 1 + step / 4, 1 + step / 2, 1 + 1.5 * step, -1 - step / 4])
    rounded = torch.tensor([1.0, 1 + step, 1.0, 1.0, 1 + 2 * step, -1.0])
    assert torch.equal(drift._to_tf32(given), rounded)


def test_noise_is_one_grey_level_of_few_pixels() -> None:
    image = drift.samples()["codes"]
    changed = np.asarray(image, np.int16) - np.asarray(drift.with_noise(image), np.int16)
    assert np.abs(changed).max() == 1
    assert 0.005 < (changed != 0).mean() < 0.02


@parametrize_cases(only_one_is_fast=True, family=True)
def test_float16_is_close_to_the_reference_cases(name: str) -> None:
    with torch.inference_mode(), drift.emulated():
        row = precision.measure(name, "fp16")
    assert row.memory_rms <= MAX_MEMORY_RMS
    assert row.memory_largest <= 10 * MAX_MEMORY_RMS
