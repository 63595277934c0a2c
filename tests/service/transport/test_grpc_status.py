from __future__ import annotations

import grpc
import pytest

from service.errors import DetectionError, InvalidImage, Overloaded, all_error_types
from service.transport.grpc_status import ERROR_STATUSES, MalformedMessage, refusal_of


def test_every_error_has_a_status() -> None:
    assert set(ERROR_STATUSES) == set(all_error_types())


@pytest.mark.parametrize("error_type", all_error_types(), ids=lambda error: error.code)
def test_an_error_keeps_its_code_and_detail(error_type: type[DetectionError]) -> None:
    refusal = refusal_of(error_type("a reason"))
    assert (refusal.code, refusal.detail) == (error_type.code, "a reason")
    assert dict(refusal.metadata)["lite-detr-code"] == error_type.code


def test_only_temporary_errors_have_a_retry_time() -> None:
    retried = {
        error_type.code
        for error_type in all_error_types()
        if "retry-delay-ms" in dict(refusal_of(error_type("x")).metadata)
    }
    assert retried == {"overloaded", "not_ready", "shutting_down"}


def test_an_errors_own_retry_time_takes_precedence() -> None:
    assert refusal_of(Overloaded("busy", retry_after_seconds=7)).retry_delay_ms == 7000


def test_a_subclass_has_the_status_of_its_base_class() -> None:
    class Blurred(InvalidImage):
        pass

    assert refusal_of(Blurred("too blurred")).status is grpc.StatusCode.INVALID_ARGUMENT


def test_an_unlisted_error_is_internal_and_keeps_its_detail() -> None:
    refusal = refusal_of(DetectionError("odd"))
    assert (refusal.status, refusal.detail) == (grpc.StatusCode.INTERNAL, "odd")


def test_an_unexpected_exception_gives_no_details_away() -> None:
    refusal = refusal_of(ValueError("secret"))
    assert (refusal.status, refusal.code) == (grpc.StatusCode.INTERNAL, "internal")
    assert "secret" not in refusal.detail


def test_a_malformed_message_is_an_invalid_argument() -> None:
    assert refusal_of(MalformedMessage("x")).status is grpc.StatusCode.INVALID_ARGUMENT
