"""How each kind of server is asked, and how its answer is read."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from benchmarks.serving.images import Found, read_found

_JSON_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Dialect:
    """One protocol over HTTP/1.1.

    Attributes:
        request: a photo's bytes, and the path to post to -> head and body as they go on the wire.
        read: (headers, body) of an answer -> what was found; raises for anything else.
    """

    request: Callable[[bytes, str], bytes]
    read: Callable[[dict[bytes, bytes], bytes], Found]


def post_request(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """Head and body of a POST as they go on the wire."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


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
    asked = {
        "inputs": [
            {
                "name": "image",
                "shape": [1, 1],
                "datatype": "BYTES",
                "parameters": {"binary_data_size": len(tensor)},
            }
        ],
        "outputs": [{"name": "answer", "parameters": {"binary_data": True}}],
    }
    head = json.dumps(asked).encode()
    headers = {"Content-Type": "application/octet-stream", _JSON_LENGTH: str(len(head))}
    return post_request(path, head + tensor, headers)


def _read_triton(headers: dict[bytes, bytes], body: bytes) -> Found:
    head = int(headers[_JSON_LENGTH.lower().encode()])
    return read_found(orjson.loads(body[head + 4 :])["detections"])  # behind the element's length


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


DIALECTS = {
    "raw": Dialect(_raw_request, _read_json),
    "base64": Dialect(_base64_request, _read_json),
    "triton": Dialect(_triton_request, _read_triton),
    "oip": Dialect(_oip_request, _read_oip),
}
