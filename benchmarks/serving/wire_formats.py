"""Encodes requests and reads responses in the HTTP formats of the compared servers."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from benchmarks.serving.images import Found, read_found
from service.load.loop import post_request

_JSON_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class WireFormat:
    """One format over HTTP/1.1.

    Attributes:
        request: (bytes of an image file, path) -> head and body of the POST request.
        read: (headers, body) of a response -> its detections; raises ValueError, KeyError,
            TypeError or IndexError for anything else.
    """

    request: Callable[[bytes, str], bytes]
    read: Callable[[dict[bytes, bytes], bytes], Found]


def _raw_request(data: bytes, path: str) -> bytes:
    return post_request(path, data, {"Content-Type": "image/jpeg"})


def _read_json(_headers: dict[bytes, bytes], body: bytes) -> Found:
    return read_found(orjson.loads(body)["detections"])


def _base64_request(data: bytes, path: str) -> bytes:
    """A JSON object with the image as base64."""
    body = orjson.dumps({"image": base64.b64encode(data).decode()})
    return post_request(path, body, {"Content-Type": "application/json"})


def _triton_request(data: bytes, path: str) -> bytes:
    """Open Inference Protocol with its binary extension: one BYTES tensor in, one out."""
    tensor = len(data).to_bytes(4, "little") + data
    request = {
        "inputs": [
            {
                "name": "image",
                "shape": [1, 1],
                "datatype": "BYTES",
                "parameters": {"binary_data_size": len(tensor)},
            }
        ],
        "outputs": [{"name": "detections", "parameters": {"binary_data": True}}],
    }
    head = json.dumps(request).encode()
    headers = {"Content-Type": "application/octet-stream", _JSON_LENGTH: str(len(head))}
    return post_request(path, head + tensor, headers)


def _read_triton(headers: dict[bytes, bytes], body: bytes) -> Found:
    head = int(headers[_JSON_LENGTH.lower().encode()])
    return read_found(orjson.loads(body[head + 4 :])["detections"])  # after the element's length


def _oip_request(data: bytes, path: str) -> bytes:
    """Open Inference Protocol in plain JSON: the image as base64."""
    tensor: dict[str, Any] = {
        "name": "image",
        "shape": [1, 1],
        "datatype": "BYTES",
        "parameters": {"content_type": "base64"},
        "data": [base64.b64encode(data).decode()],
    }
    body = orjson.dumps({"inputs": [tensor]})
    return post_request(path, body, {"Content-Type": "application/json"})


def _read_oip(_headers: dict[bytes, bytes], body: bytes) -> Found:
    return read_found(orjson.loads(orjson.loads(body)["outputs"][0]["data"][0])["detections"])


WIRE_FORMATS = {
    "raw": WireFormat(_raw_request, _read_json),
    "base64": WireFormat(_base64_request, _read_json),
    "triton": WireFormat(_triton_request, _read_triton),
    "oip": WireFormat(_oip_request, _read_oip),
}
