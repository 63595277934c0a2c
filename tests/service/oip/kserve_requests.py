"""Sends images with KServe's SDK and prints its results as JSON.

A program of its own: the SDK requires an older protobuf than the service, so it is installed in an
environment of its own (`make kserve`). Arguments: address of HTTP, address of gRPC, model, image.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from kserve import (  # type: ignore[import-not-found, unused-ignore]
    InferenceGRPCClient,
    InferenceRESTClient,
    InferInput,
    InferRequest,
)
from kserve.inference_client import RESTConfig  # type: ignore[import-not-found, unused-ignore]

http, grpc, model, path = sys.argv[1:]
image = Path(path).read_bytes()
PARAMETERS = {"threshold": 0.0, "custom": "x", "level": 3}


def _binary() -> Any:
    tensor = InferInput("IMAGE", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([image], dtype=np.object_), binary_data=True)
    return tensor


def _text() -> Any:
    return InferInput("IMAGE", [1], "BYTES", data=[base64.b64encode(image).decode()])


def _list() -> Any:
    return InferInput("IMAGE", [1], "BYTES", data=[image])


def _count(response: Any) -> int:
    (output,) = (each for each in response.outputs if each.name == "num_detections")
    return int(output.as_numpy().ravel()[0])


async def main() -> dict[str, Any]:
    results: dict[str, Any] = {}

    def request(tensor: Callable[[], Any], parameters: dict[str, Any] | None) -> Any:
        return InferRequest(model, [tensor()], parameters=parameters, request_id="an-id")

    rest = InferenceRESTClient(RESTConfig(protocol="v2", timeout=60))
    results["REST live"] = await rest.is_server_live(http)
    results["REST ready"] = await rest.is_server_ready(http)
    results["REST model ready"] = await rest.is_model_ready(http, model)
    for tensor in (_binary, _text):
        for parameters in (None, PARAMETERS | {"threshold": "0.0", "nothing": None}):
            sent = request(tensor, parameters)
            name = f"REST {tensor.__name__} {'with' if parameters else 'without'} parameters"
            results[name] = _count(await rest.infer(http, sent, model_name=model))
    client = InferenceGRPCClient(grpc)
    results["gRPC live"] = await client.is_server_live()
    results["gRPC ready"] = await client.is_server_ready()
    results["gRPC model ready"] = await client.is_model_ready(model)
    for tensor in (_binary, _list):
        for parameters in (None, {"threshold": "0.0", "custom": "x", "level": 3}):
            name = f"gRPC {tensor.__name__} {'with' if parameters else 'without'} parameters"
            results[name] = _count(await client.infer(request(tensor, parameters)))
    return results


print(json.dumps(asyncio.run(main())))
