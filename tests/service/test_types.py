from __future__ import annotations

import pytest

from service.observability.metrics import STAGES
from service.types import DetectOptions, DetectResult, StageTimings


@pytest.mark.parametrize("record", [DetectOptions, DetectResult])
def test_shared_types_are_frozen(record: type) -> None:
    assert record.__dataclass_params__.frozen  # type: ignore[attr-defined]


def test_options_default_to_those_of_the_model() -> None:
    assert DetectOptions() == DetectOptions(threshold=None, max_detections=None, labels=None)


def test_every_timed_stage_has_a_histogram() -> None:
    measured_by_adapters = {"encode"}
    assert set(StageTimings._fields) == set(STAGES) - measured_by_adapters
