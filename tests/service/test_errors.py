from __future__ import annotations

import pickle

import pytest

from service.errors import DetectionError, Overloaded, all_error_types


def test_every_error_has_its_own_code() -> None:
    codes = [error.code for error in all_error_types()]
    assert len(set(codes)) == len(codes) == 9
    assert DetectionError.code not in codes


@pytest.mark.parametrize("error_type", all_error_types(), ids=lambda error: error.code)
def test_an_error_carries_its_detail(error_type: type[DetectionError]) -> None:
    error = error_type("a reason", retry_after_seconds=3)
    assert (error.detail, str(error), error.retry_after_seconds) == (
        "a reason",
        "a reason",
        3,
    )


def test_an_error_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(Overloaded("busy", retry_after_seconds=2)))
    assert (error.detail, error.retry_after_seconds) == ("busy", 2)
