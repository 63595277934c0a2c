"""float16, emulated on the CPU, changes little: why it is the default on GPUs."""

from __future__ import annotations

import pytest
import torch

from benchmarks.model import precision
from model.network.precision import resolve_precision
from tests.support.reference_cases import parametrize_cases

MAX_MEMORY_RMS = 2.5e-3  # of the encoder's output, whose standard deviation is about 1


def test_float16_is_the_default_on_gpus() -> None:
    assert resolve_precision("auto", "cuda:1") == ("fp16", torch.float16)
    assert resolve_precision("auto", "cpu") == ("fp32", torch.float32)


def test_float16_changes_the_detections_of_the_samples_within_its_limits() -> None:
    with torch.inference_mode():
        changes = precision.changes(("fp16",), precision.samples())
    assert sum(change.detections for change in changes) >= 10
    assert max(change.score for change in changes) <= precision.MAX_SCORE_CHANGE == 0.01
    assert max(change.box_pixels for change in changes) <= precision.MAX_BOX_CHANGE == 1.0


@pytest.mark.slow
def test_float16_changes_most_detections_of_other_photos_within_its_limits() -> None:
    with torch.inference_mode():
        changes = precision.changes(("fp16",), precision.copies(precision.samples()))
    detections = sum(change.detections for change in changes)
    assert detections >= 40
    assert sum(change.within for change in changes) >= 0.6 * detections


@parametrize_cases(only_one_is_fast=True)
def test_float16_is_close_to_the_reference_cases(name: str) -> None:
    with torch.inference_mode(), precision.emulated():
        row = precision.measure(name, "fp16")
    assert row.memory_rms <= MAX_MEMORY_RMS
    assert row.memory_largest <= 10 * MAX_MEMORY_RMS
