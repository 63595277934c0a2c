from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, cast

import pytest

from service.grpc_call import Context, open_call, sane_request_id


@dataclass
class Transport:
    """Offers what `open_call` asks of gRPC's context."""

    remaining: float | None = None
    metadata: tuple[tuple[str, Any], ...] | None = ()

    def time_remaining(self) -> float | None:
        return self.remaining

    def invocation_metadata(self) -> tuple[tuple[str, Any], ...] | None:
        return self.metadata

    def as_context(self) -> Context:
        return cast(Context, self)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    return 1000.0


@pytest.mark.parametrize("remaining", [None, math.inf])
def test_a_call_without_a_deadline_has_none(remaining: float | None) -> None:
    assert open_call(Transport(remaining).as_context()).deadline is None


@pytest.mark.parametrize(("remaining", "left"), [(10.0, 9.995), (0.01, 0.009), (0.0, 0.0)])
def test_work_ends_a_little_before_the_transport_gives_up(
    now: float, remaining: float, left: float
) -> None:
    deadline = open_call(Transport(remaining).as_context()).deadline
    assert deadline == pytest.approx(now + left)


@pytest.mark.parametrize("metadata", [None, (), (("x-request-id", b"bytes"),)])
def test_a_call_without_a_name_gets_one(metadata: tuple[tuple[str, Any], ...] | None) -> None:
    first = open_call(Transport(metadata=metadata).as_context())
    second = open_call(Transport(metadata=metadata).as_context())
    assert len(first.request_id) == 32
    assert first.request_id != second.request_id
    assert dict(first.metadata) == {"x-request-id": first.request_id}


@pytest.mark.parametrize(
    "traceparent",
    [
        "00-" + "0" * 32 + "-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01",
        "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
    ],
)
def test_a_trace_context_that_is_not_valid_is_dropped(traceparent: str) -> None:
    call = open_call(Transport(metadata=(("traceparent", traceparent),)).as_context())
    assert call.traceparent is None


@pytest.mark.parametrize("name", ["", "a b", "a,b", "x" * 129, "line\n", "ä", 7, None])
def test_names_that_would_spoil_a_log_are_not_used(name: object) -> None:
    assert sane_request_id(name) is None
