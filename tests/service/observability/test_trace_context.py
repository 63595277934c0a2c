from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.observability.trace_context import new_request_id, open_trace, valid_request_id

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"


def test_the_services_span_is_a_child_of_the_clients_span() -> None:
    trace = open_trace([TRACEPARENT], ["a=1", "b=2"])
    assert (trace.trace_id, trace.parent_id, trace.sampled) == (TRACE_ID, PARENT_ID, True)
    assert re.fullmatch(f"00-{TRACE_ID}-[0-9a-f]{{16}}-01", trace.traceparent)
    assert trace.span_id != PARENT_ID
    assert trace.headers == (("traceparent", trace.traceparent), ("tracestate", "a=1,b=2"))


def test_an_unsampled_trace_stays_unsampled() -> None:
    trace = open_trace([TRACEPARENT.removesuffix("01") + "00"])
    assert not trace.sampled
    assert trace.traceparent.endswith("-00")


def test_unknown_flags_are_not_forwarded() -> None:
    assert open_trace([TRACEPARENT.removesuffix("01") + "ff"]).traceparent.endswith("-03")


@pytest.mark.parametrize(
    "newer", [f"01-{TRACE_ID}-{PARENT_ID}-01", f"cc-{TRACE_ID}-{PARENT_ID}-01-what-comes-later"]
)
def test_the_known_fields_of_a_newer_version_are_read(newer: str) -> None:
    trace = open_trace([newer])
    assert (trace.trace_id, trace.parent_id) == (TRACE_ID, PARENT_ID)
    assert trace.traceparent.startswith("00-")


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "00-0-0-00",
        f"00-{'0' * 32}-{PARENT_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID.upper()}-{PARENT_ID}-01",
        f"ff-{TRACE_ID}-{PARENT_ID}-01",
        f"{TRACEPARENT}-more",  # version 00 has no more
        f"01-{TRACE_ID}-{PARENT_ID}-01more",
        f"{TRACEPARENT}\n",
        b"00",
        None,
    ],
)
def test_an_invalid_context_begins_a_new_trace(bad: object) -> None:
    trace = open_trace([bad], ["a=1"])
    assert trace.parent_id is None
    assert trace.trace_id != TRACE_ID
    assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-02", trace.traceparent)
    assert trace.tracestate == ""


def test_two_parents_begin_a_new_trace() -> None:
    assert open_trace([TRACEPARENT, TRACEPARENT]).parent_id is None


@pytest.mark.parametrize("state", ["a=" + "x" * 600, "a=1\nb: 2", "ä=1", b"a=1"])
def test_an_invalid_state_is_dropped(state: object) -> None:
    headers = dict(open_trace([TRACEPARENT], [state]).headers)
    assert headers.keys() == {"traceparent"}


@given(st.text())
def test_the_response_context_is_valid_for_any_input(text: str) -> None:
    trace = open_trace([text], [text])
    assert open_trace([trace.traceparent]).trace_id == trace.trace_id
    assert all(value.isascii() and value.isprintable() for _, value in trace.headers)


@pytest.mark.parametrize("name", ["", "a b", "a,b", "x" * 129, "line\n", "ä", 7, None])
def test_invalid_request_ids_are_rejected(name: object) -> None:
    assert valid_request_id(name) is None


def test_generated_request_ids_are_valid_and_unique() -> None:
    names = {new_request_id() for _ in range(100)}
    assert len(names) == 100
    assert all(valid_request_id(name) == name and len(name) == 32 for name in names)
