from __future__ import annotations

import pytest

from service.observability.metrics import STAGES
from service.types import DetectOptions, DetectResult, StageTimings


@pytest.mark.parametrize("record", [DetectOptions, DetectResult])
def test_what_crosses_rooms_is_frozen(record: type) -> None:
    assert record.__dataclass_params__.frozen  # type: ignore[attr-defined]


def test_options_default_to_the_models_own() -> None:
    assert DetectOptions() == DetectOptions(threshold=None, max_detections=None, labels=None)


def test_every_timed_stage_has_a_histogram() -> None:
    assert set(StageTimings._fields) == set(STAGES) - {
        "encode"
    }  # the adapter alone knows how long encoding took
