"""Long texts anywhere in a JSON request: no response contains what stands for them internally."""

from __future__ import annotations

import base64
import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.service.oip.running_service import Served
from tests.support.images import solid_png

IMAGE = base64.b64encode(solid_png((100, 100, 103))).decode()
INFER = {
    "id": "1",
    "inputs": [
        {
            "name": "IMAGE",
            "datatype": "BYTES",
            "shape": [1],
            "parameters": {"content_type": "base64", "other": "a"},
            "data": [IMAGE],
        }
    ],
    "outputs": [{"name": "scores", "parameters": {"binary_data": False, "other": "a"}}],
    "parameters": {
        "threshold": "0.5",
        "max_detections": "3",
        "labels": "qr_code",
        "timeout": "0",
        "priority": "1",
        "binary_data_output": False,
        "other": {"a": ["b"]},
    },
    "other": "a",
}
DETECT = {
    "inputs": IMAGE,
    "parameters": {"threshold": 0.5, "max_detections": 3, "labels": ["qr_code"], "format": "json"},
    "other": {"a": ["b"]},
}
INDEX = {"ready": False, "other": "a"}
LOAD = {"parameters": {"config": "{}", "other": "a"}}
REQUESTS: dict[str, dict[str, Any]] = {
    "/v2/models/fake/infer": INFER,
    "/detect": DETECT,
    "/": DETECT,
    "/v2/repository/index": INDEX,
    "/v2/repository/models/fake/load": LOAD,
}
INTERNAL = re.compile(rb"text of \d+ bytes, |object at 0x")


def _places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """All values below a node, and `None` behind the path of an object for a further name."""
    if path:
        yield path
    if isinstance(node, dict):
        yield (*path, None)
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items if isinstance(node, dict | list) else ():
        if isinstance(value, dict | list):
            yield from _places(value, (*path, key))
        else:
            yield (*path, key)


CASES = [(url, place) for url, document in REQUESTS.items() for place in _places(document)]


def _with(document: dict[str, Any], place: tuple[Any, ...], text: str) -> bytes:
    changed = node = copy.deepcopy(document)
    for key in place[:-1]:
        node = node[key]
    node[text if place[-1] is None else place[-1]] = text
    return json.dumps(changed).encode()


@settings(max_examples=40, deadline=None)
@given(
    case=st.sampled_from(CASES),
    unit=st.sampled_from(["x", "é", "a,", "\\", '"', "1", "\n"]),
    size=st.sampled_from([16_385, 20_000, 100_000, 160_000]),
)
def test_no_response_has_a_placeholder(
    service: Served, case: tuple[str, tuple[Any, ...]], unit: str, size: int
) -> None:
    url, place = case
    body = _with(REQUESTS[url], place, unit * size)
    headers = {"Content-Type": "application/json"}
    response = httpx.post(service.url + url, content=body, headers=headers, timeout=30)
    assert response.status_code != 500
    assert not INTERNAL.search(response.content)
    if response.status_code >= 400:
        assert len(response.content) < 2000


@pytest.mark.parametrize("size", [10, 20_000, 100_000])
def test_a_long_id_is_returned(service: Served, size: int) -> None:
    body = _with(INFER, ("id",), "xé\\" * size)
    response = httpx.post(f"{service.url}/v2/models/fake/infer", content=body)
    assert response.json()["id"] == "xé\\" * size


@pytest.mark.parametrize(
    ("written", "returned"),
    [
        ("18446744073709551615", "18446744073709551615"),
        ("-9223372036854775808", "-9223372036854775808"),
        ("1.5", "1.5"),
        ("18446744073709551616", None),
        ("123456789012345678901", None),
        ("-9223372036854775809", None),
        ("1e30", None),
    ],
)
def test_a_numeric_id_is_returned_as_written_or_refused(
    service: Served, written: str, returned: str | None
) -> None:
    body = json.dumps(INFER).replace('"id": "1"', f'"id": {written}').encode()
    response = httpx.post(f"{service.url}/v2/models/fake/infer", content=body)
    if returned is None:
        assert response.status_code == 422
        assert "64 bits" in response.json()["error"]
    else:
        assert response.json()["id"] == returned
