"""Requests of tritonclient, and checks of their results, for each of its transports."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http

from model.detections import Detections
from model.images.decode import ImageLimits, decode_image
from service.core.encoding import rounded_columns
from tests.support.fake_device import FAKE_MODEL, fake_detections

MODEL = "fake"
NAMES = ("num_detections", "boxes", "scores", "class_ids", "class_names")
ROWS = FAKE_MODEL.config.max_detections

# Kept to the end: gevent must not see a client collected by the service's thread.
_clients: list[tritonclient.http.InferenceServerClient] = []


@contextmanager
def http_client(address: str) -> Iterator[tritonclient.http.InferenceServerClient]:
    client = tritonclient.http.InferenceServerClient(address)
    _clients.append(client)
    with client:
        yield client


def http_input(*images: bytes, binary: bool = True) -> list[Any]:
    """Images as binary data, or as base64 in the JSON."""
    if not binary:
        images = tuple(base64.b64encode(image) for image in images)
    tensor = tritonclient.http.InferInput("IMAGE", [len(images)], "BYTES")
    tensor.set_data_from_numpy(np.array(images, dtype=np.object_), binary_data=binary)
    return [tensor]


def grpc_input(*images: bytes) -> list[Any]:
    tensor = tritonclient.grpc.InferInput("IMAGE", [len(images)], "BYTES")
    tensor.set_data_from_numpy(np.array(images, dtype=np.object_))
    return [tensor]


def input_of(client: object, *images: bytes) -> list[Any]:
    """The input for the client's transport."""
    speaks_http = "http" in type(client).__module__
    return http_input(*images) if speaks_http else grpc_input(*images)


def outputs_of(client: object, *names: str) -> list[Any]:
    speaks_http = "http" in type(client).__module__
    transport: ModuleType = tritonclient.http if speaks_http else tritonclient.grpc
    return [transport.InferRequestedOutput(name) for name in names]


def assert_results(result: Any, *images: bytes, rows: int = ROWS) -> None:
    """All outputs are those of these images, with threshold 0."""
    shapes = {name: result.as_numpy(name).shape for name in NAMES}
    count = len(images)
    assert shapes == {
        "num_detections": (count, 1),
        "boxes": (count, rows, 4),
        "scores": (count, rows),
        "class_ids": (count, rows),
        "class_names": (count, rows),
    }
    for index, image in enumerate(images):
        _assert_row(result, index, expected_of(image))


def expected_of(image: bytes) -> Detections:
    decoded = decode_image(image, FAKE_MODEL.config, ImageLimits(10**9, 10**9))
    return fake_detections(decoded.pixels, decoded.original_size)


def _assert_row(result: Any, index: int, expected: Detections) -> None:
    count, rows = len(expected), result.as_numpy("scores").shape[1]
    count = min(count, rows)
    scores, labels, boxes = rounded_columns(expected.keep(slice(count)))
    assert result.as_numpy("num_detections")[index].tolist() == [count]
    for name, column, padding in (
        ("scores", np.array(scores, dtype=np.float32), 0),
        ("class_ids", np.array(labels, dtype=np.int32), -1),
        ("boxes", np.array(boxes, dtype=np.float32), 0),
        ("class_names", [FAKE_MODEL.labels[label].encode() for label in labels], b""),
    ):
        values = result.as_numpy(name)[index]
        if name == "class_names":  # JSON carries text
            values = np.array([_as_bytes(value) for value in values], dtype=np.object_)
        else:
            assert values.dtype == np.asarray(column).dtype
        np.testing.assert_array_equal(values[:count], column)
        assert (values[count:] == padding).all()


def _as_bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value
