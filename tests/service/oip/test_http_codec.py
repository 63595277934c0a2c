"""HTTP bodies as bytes: the binary extension, raw images, base64, and malformed ones."""

from __future__ import annotations

import base64
import gzip
import json
import struct
import zlib
from typing import Any

import httpx
import numpy as np
import pytest

from tests.service.oip.conftest import LIMIT
from tests.service.oip.running_service import Served
from tests.service.oip.triton_requests import MODEL, NAMES, expected_of
from tests.support.images import solid_png

IMAGE = solid_png((100, 100, 103))
ELEMENT = struct.pack("<I", len(IMAGE)) + IMAGE
LENGTH = "Inference-Header-Content-Length"


def post(service: Served, body: bytes, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    url = f"{service.url}/v2/models/{MODEL}/infer"
    return httpx.post(url, content=body, headers=named, timeout=60)


def tensor(**changes: Any) -> dict[str, Any]:
    entry = {
        "name": "IMAGE",
        "datatype": "BYTES",
        "shape": [1],
        "parameters": {"binary_data_size": len(ELEMENT)},
    }
    return {key: value for key, value in (entry | changes).items() if value is not None}


def binary(
    service: Served, entry: dict[str, Any], data: bytes, length: str | None = None, **more: Any
) -> httpx.Response:
    """Posts one tensor with its data after the JSON."""
    head = json.dumps({"inputs": [entry], "parameters": {"threshold": 0}} | more).encode()
    header = str(len(head)) if length is None else length
    return post(service, head + data, Inference_Header_Content_Length=header)


def error_of(response: httpx.Response) -> str:
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    return str(body["error"])


def test_an_image_may_be_sent_with_the_binary_extension(service: Served) -> None:
    response = binary(service, tensor(), ELEMENT)
    assert response.status_code == 200
    assert LENGTH not in response.headers  # no binary outputs were requested
    outputs = {output["name"]: output for output in response.json()["outputs"]}
    assert tuple(outputs) == NAMES
    assert outputs["num_detections"]["data"] == [len(expected_of(IMAGE))]


def test_binary_outputs_follow_the_json_in_order(service: Served) -> None:
    requested = [{"name": "scores", "parameters": {"binary_data": True}}, {"name": "class_ids"}]
    response = binary(service, tensor(), ELEMENT, outputs=requested)
    length = int(response.headers[LENGTH])
    scores, class_ids = json.loads(response.content[:length])["outputs"]
    assert scores["parameters"] == {"binary_data_size": len(response.content) - length}
    values = np.frombuffer(response.content[length:], dtype="<f4").reshape(scores["shape"])
    assert values[0, 0] == np.float32(0.95)
    assert class_ids["data"][0] == expected_of(IMAGE).labels[0]


def test_a_header_length_of_zero_makes_the_body_one_image(service: Served) -> None:
    response = post(service, IMAGE, Inference_Header_Content_Length="0")
    assert response.status_code == 200
    outputs = json.loads(response.content[: int(response.headers[LENGTH])])["outputs"]
    assert [output["name"] for output in outputs] == list(NAMES)
    assert all("binary_data_size" in output["parameters"] for output in outputs)


@pytest.mark.parametrize("parameters", [{}, {"content_type": "base64"}])
def test_images_in_json_are_base64(service: Served, parameters: dict[str, Any]) -> None:
    text = base64.b64encode(IMAGE).decode()
    entry = tensor(data=[text], parameters=parameters)
    response = post(service, json.dumps({"inputs": [entry]}).encode())
    assert response.status_code == 200
    rows = tensor(data=[[text], [text]], shape=[2, 1], parameters=parameters)
    assert post(service, json.dumps({"inputs": [rows]}).encode()).status_code == 200


def test_binary_data_may_be_base64_if_declared(service: Served) -> None:
    text = base64.b64encode(IMAGE)
    data = struct.pack("<I", len(text)) + text
    parameters = {"binary_data_size": len(data), "content_type": "base64"}
    assert binary(service, tensor(parameters=parameters), data).status_code == 200


@pytest.mark.parametrize("data", [["not base64!"], [7], [None], ["é"], [["a", "b"]]])
def test_json_data_that_is_not_base64_is_refused(service: Served, data: list[Any]) -> None:
    entry = tensor(data=data, parameters={})
    response = post(service, json.dumps({"inputs": [entry]}).encode())
    assert response.status_code == 400
    assert "element 0 of input IMAGE is not base64" in error_of(response)


@pytest.mark.parametrize("request_id", ["a", 42, 0, -7, 1.5])
def test_fields_and_parameters_of_other_servers_are_ignored(
    service: Served, request_id: str | float
) -> None:
    document = {
        "id": request_id,
        "model_name": "other",
        "model_version": None,
        "from_grpc": False,
        "inputs": [IN_JSON | {"format": "x", "parameters": {"other": [1], "content_type": None}}],
        "outputs": [{"name": "scores", "parameters": {"other": None}, "datatype": "FP32"}],
        "parameters": {"sequence_id": 7, "custom": {"a": None}, "threshold": None, "labels": None},
    }
    response = post(service, json.dumps(document).encode())
    assert response.status_code == 200, response.text
    assert response.json()["id"] == str(request_id)


@pytest.mark.parametrize("length", ["x", "-1", "1e3", "", "9" * 30, "99999"])
def test_an_invalid_header_length_is_refused(service: Served, length: str) -> None:
    response = binary(service, tensor(), ELEMENT, length)
    assert response.status_code == 400
    assert LENGTH in error_of(response)


@pytest.mark.parametrize("length", ["5", "40"])
def test_a_header_length_that_cuts_the_json_is_refused(service: Served, length: str) -> None:
    response = binary(service, tensor(), ELEMENT, length)
    assert response.status_code == 400
    assert "not JSON" in error_of(response)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (len(ELEMENT) - 1, "bytes follow the JSON"),
        (len(ELEMENT) + 1, "bytes follow the JSON"),
        (0, "bytes follow the JSON"),
        (-4, "is -4"),
        (2**62, "bytes follow the JSON"),
        ("12", "is '12'"),
        (True, "is True"),
        (1.5, "is 1.5"),
    ],
)
def test_a_wrong_binary_size_is_refused(service: Served, size: Any, words: str) -> None:
    response = binary(service, tensor(parameters={"binary_data_size": size}), ELEMENT)
    assert response.status_code == 400
    assert words in error_of(response)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (struct.pack("<I", len(IMAGE) + 1) + IMAGE, "only"),
        (struct.pack("<I", 2**32 - 1) + IMAGE, "only"),
        (struct.pack("<I", len(IMAGE) - 1) + IMAGE, "1 bytes beyond"),
        (b"\x01\x00", "ends after 0 of the 1"),
        (b"", "ends after 0 of the 1"),
    ],
)
def test_a_wrong_element_length_is_refused(service: Served, data: bytes, words: str) -> None:
    response = binary(service, tensor(parameters={"binary_data_size": len(data)}), data)
    assert response.status_code == 400
    assert words in error_of(response)


@pytest.mark.parametrize(
    "shape",
    [[-1], [0], [5], [2**63], [2**70], [1, 1, 1], [], [1.0], ["1"], [True], "1", None, {"a": 1}],
)
def test_an_invalid_shape_is_refused(service: Served, shape: Any) -> None:
    response = binary(service, tensor(shape=shape), ELEMENT)
    assert response.status_code == 400
    assert "shape" in error_of(response)


def test_a_shape_with_more_images_than_there_are_is_refused(service: Served) -> None:
    response = binary(service, tensor(shape=[2]), ELEMENT)
    assert "ends after 1 of the 2 elements" in error_of(response)
    entry = tensor(shape=[2], data=[base64.b64encode(IMAGE).decode()], parameters={})
    response = post(service, json.dumps({"inputs": [entry]}).encode())
    assert "1 elements; its shape says 2" in error_of(response)


IN_JSON = tensor(data=[base64.b64encode(IMAGE).decode()], parameters=None)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({}, "no list of inputs"),
        ({"inputs": {}}, "no list of inputs"),
        ({"inputs": [7]}, "no list of inputs"),
        ({"inputs": []}, "0 inputs"),
        ({"inputs": [{}]}, "unknown input None"),
        ({"inputs": [tensor(parameters=None)]}, "no data"),
        ({"inputs": [tensor(parameters=[])]}, "not a JSON object"),
        ({"inputs": [tensor(data=["eA=="])]}, "both data and binary_data_size"),
        ({"inputs": [tensor(parameters={"content_type": "str"})]}, "content_type is 'str'"),
        ({"inputs": [IN_JSON], "outputs": [7]}, "not a list of objects"),
        ({"inputs": [IN_JSON], "outputs": {"name": "boxes"}}, "not a list of objects"),
        ({"inputs": [IN_JSON], "outputs": [{}]}, "unknown output None"),
        ({"inputs": [tensor()], "parameters": 7}, "not a JSON object"),
    ],
)
def test_a_document_in_another_form_is_refused(
    service: Served, document: dict[str, Any], words: str
) -> None:
    response = post(service, json.dumps(document).encode())
    assert response.status_code == 400
    assert words in error_of(response)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b"\xff\xfe", b"[" * 5000])
def test_a_body_that_is_no_json_object_is_refused(service: Served, body: bytes) -> None:
    response = post(service, body)
    assert response.status_code == 400
    assert error_of(response)


@pytest.mark.parametrize("value", ["{},", "[],", "1,"])
def test_a_body_with_too_many_values_is_refused_before_parsing(service: Served, value: str) -> None:
    values = value * (LIMIT // len(value) - 10) + "1"
    response = post(service, f'{{"inputs": [{values}]}}'.encode())
    assert response.status_code == 400
    assert "more than 10000 values" in error_of(response)


def test_an_error_shows_a_short_part_of_a_large_value(service: Served) -> None:
    entry = tensor(name="x" * (LIMIT // 2), parameters=None)
    response = post(service, json.dumps({"inputs": [entry]}).encode())
    assert "unknown input" in error_of(response)
    assert len(response.content) < 500


def test_bytes_that_no_input_claims_are_refused(service: Served) -> None:
    entry = tensor(data=["eA=="], parameters={})
    response = binary(service, entry, b"stray")
    assert "5 bytes follow the JSON, and no input claims them" in error_of(response)


@pytest.mark.parametrize("request_id", [True, ["a"], {}])
def test_an_id_that_is_neither_text_nor_a_number_is_refused(
    service: Served, request_id: Any
) -> None:
    response = binary(service, tensor(), ELEMENT, id=request_id)
    assert response.status_code == 422
    assert "id is" in error_of(response)


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_a_flag_takes_true_or_false(service: Served, value: Any) -> None:
    requested = [{"name": "boxes", "parameters": {"binary_data": value}}]
    response = binary(service, tensor(), ELEMENT, outputs=requested)
    assert response.status_code == (200 if value is None else 422)


def _bomb() -> bytes:
    return bytes(64 * LIMIT)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [("gzip", gzip.compress(_bomb(), mtime=0)), ("deflate", zlib.compress(_bomb()))],
    ids=["gzip", "deflate"],
)
def test_a_body_that_decompresses_beyond_the_limit_is_refused(
    service: Served, encoding: str, body: bytes
) -> None:
    assert len(body) < LIMIT
    response = post(service, body, Content_Encoding=encoding)
    assert response.status_code == 413
    assert str(LIMIT) in error_of(response)


@pytest.mark.parametrize(
    ("encoding", "body", "status", "words"),
    [
        ("x-gzip", b"no gzip", 400, "not valid gzip"),
        ("gzip", b"no gzip", 400, "not valid gzip"),
        ("deflate", b"no deflate", 400, "not valid deflate"),
        ("gzip", gzip.compress(b"x" * 500, mtime=0)[:-12], 400, "ends before"),
        ("gzip", gzip.compress(b"{}", mtime=0) + gzip.compress(b"", mtime=0), 400, "goes on after"),
        ("gzip", b"", 400, "ends before"),
        ("br", b"x", 415, "gzip or deflate"),
        ("gzip, gzip", b"x", 415, "gzip or deflate"),
    ],
)
def test_a_body_that_cannot_be_decompressed_is_refused(
    service: Served, encoding: str, body: bytes, status: int, words: str
) -> None:
    response = post(service, body, Content_Encoding=encoding)
    assert response.status_code == status
    assert words in error_of(response)


def test_a_compressed_raw_image_is_an_image(service: Served) -> None:
    headers = {"Content_Encoding": "gzip", LENGTH.replace("-", "_"): "0"}
    assert post(service, gzip.compress(IMAGE, mtime=0), **headers).status_code == 200


def test_a_body_over_the_limit_is_refused(service: Served) -> None:
    assert post(service, bytes(LIMIT + 1)).status_code == 413


def test_the_timeout_header_of_the_service_applies_here_too(service: Served) -> None:
    response = post(service, b"{}", X_Request_Timeout_Ms="soon")
    assert response.status_code == 422
    assert "X-Request-Timeout-Ms" in error_of(response)


def test_every_response_has_the_request_id(service: Served) -> None:
    assert post(service, b"{}", X_Request_Id="mine").headers["x-request-id"] == "mine"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/systemsharedmemory/status", 404),
        ("POST", "/v2/logging", 404),
        ("DELETE", "/v2/models/fake", 405),
        ("GET", "/v2/models/fake/infer", 405),
        ("POST", "/v2/health/ready", 405),
        ("GET", "/v2/models/other/config", 404),
        ("GET", "/v2/models/fake/versions/7/ready", 404),
        ("GET", "/v2/models/fake/versions/000000000000/stats", 200),
        ("HEAD", "/v2/health/live", 200),
    ],
)
def test_wrong_paths_and_methods_get_errors_in_the_protocols_form(
    service: Served, method: str, path: str, status: int
) -> None:
    response = httpx.request(method, service.url + path)
    assert response.status_code == status
    if status != 200:
        assert error_of(response)


@pytest.mark.parametrize("body", [b"[]", b'{"ready": 7}', b"{"])
def test_a_malformed_repository_request_is_refused(service: Served, body: bytes) -> None:
    response = httpx.post(f"{service.url}/v2/repository/index", content=body)
    assert response.status_code in (400, 422)
    assert error_of(response)


def test_an_unload_accepts_only_its_own_parameter(service: Served) -> None:
    url = f"{service.url}/v2/repository/models/{MODEL}/unload"
    response = httpx.post(url, json={"parameters": {"at_once": True}})
    assert response.status_code == 400
    assert "'at_once'" in error_of(response)


def test_other_routes_keep_their_own_error_form(service: Served) -> None:
    response = httpx.get(f"{service.url}/v3")
    assert response.headers["content-type"] == "application/problem+json"
