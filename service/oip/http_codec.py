"""HTTP bodies <-> requests and results: JSON, optionally followed by binary data.

    {"inputs": [{..., "parameters": {"binary_data_size": n}}]}  n bytes of the tensor
    |<------ Inference-Header-Content-Length ---------------->|

Without that header the whole body is JSON. If it is 0, the whole body is one image file. In JSON an
image file is base64 text, because no image format is valid UTF-8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from service.errors import short_repr
from service.oip.errors import malformed
from service.oip.inference import InferResult
from service.oip.parameters import read_flag, read_parameters
from service.oip.request import (
    InferRequest,
    RequestedOutput,
    all_outputs,
    check_count,
    check_input,
    check_output_parameters,
    check_outputs,
    check_request_id,
    decode_image,
    find_output,
    is_base64,
)
from service.oip.tensors import INPUT, OutputTensor, unpack_elements
from service.transport.json_body import LARGE_JSON_BYTES, JsonError, read_json

HEADER_LENGTH = "Inference-Header-Content-Length"
_IMAGE_PATH = ("inputs", "data")
_BASE64 = b"base64"  # as the content type of binary data
_BINARY_SIZE = "binary_data_size"
_MAX_DIGITS = 18


def takes_long(body: bytes, header_length: str | None) -> bool:
    """Whether `read_request` should run in a thread: it decodes much base64 text.

    Raises:
        OipRefused: for an invalid header.
    """
    if len(body) <= LARGE_JSON_BYTES:
        return False
    json_length = _json_length(header_length, len(body))
    return json_length > LARGE_JSON_BYTES or _BASE64 in body[:json_length]


def read_request(body: bytes, header_length: str | None, max_images: int) -> InferRequest:
    """Reads a request from its body.

    Args:
        body: complete, decompressed.
        header_length: the value of `Inference-Header-Content-Length`; None if not given.
        max_images: maximum number of images in one request.

    Raises:
        OipRefused: for a body that violates the protocol.
        InvalidOptions: for an invalid parameter.
    """
    json_length = _json_length(header_length, len(body))
    if json_length == 0:
        parameters = read_parameters({"binary_data_output": True})
        return InferRequest((body,), parameters, all_outputs(binary=True))
    document = _read_json(body[:json_length])
    parameters = read_parameters(_parameters(document, "the request"))
    return InferRequest(
        images=_images(document, memoryview(body)[json_length:], max_images),
        parameters=parameters,
        outputs=_outputs(document, binary=parameters.binary_output),
        request_id=check_request_id(document.get("id")),
    )


def read_object(data: bytes) -> dict[str, Any]:
    """Reads a JSON object; an empty body is an empty object.

    Raises:
        OipRefused: for anything else.
    """
    return _read_json(data)


def read_repository_parameters(body: bytes) -> dict[str, Any]:
    """Reads the parameters of a request to the repository.

    Raises:
        OipRefused: for a body that violates the protocol.
    """
    return _parameters(read_object(body), "the request")


def write_response(request: InferRequest, result: InferResult) -> tuple[bytes, int | None]:
    """Writes the body of a response.

    Returns:
        The body, and the length of its JSON if binary data follow it, otherwise None.
    """
    entries, blobs = [], []
    for requested, tensor in zip(request.outputs, result.tensors, strict=True):
        entry = _entry(tensor)
        if requested.binary:
            blob = tensor.to_bytes()
            entry["parameters"] = {_BINARY_SIZE: len(blob)}
            blobs.append(blob)
        else:
            entry["data"] = tensor.to_list()
        entries.append(entry)
    document: dict[str, Any] = {
        "model_name": result.model_name,
        "model_version": result.model_version,
    }
    if request.request_id:
        document["id"] = request.request_id
    document["outputs"] = entries
    header = orjson.dumps(document)
    return b"".join((header, *blobs)), len(header) if blobs else None


def _read_json(data: bytes) -> dict[str, Any]:
    try:
        return read_json(data, _IMAGE_PATH)
    except JsonError as error:
        raise malformed(str(error)) from None


def _json_length(header_length: str | None, body_length: int) -> int:
    if header_length is None:
        return body_length or -1  # an empty body is invalid JSON, not an empty image
    text = header_length.strip()
    if not (text.isascii() and text.isdigit() and len(text) < _MAX_DIGITS):
        raise malformed(f"{HEADER_LENGTH} is {header_length[:100]!r}; it takes a number of bytes")
    if int(text) > body_length:
        raise malformed(f"{HEADER_LENGTH} is {text}, but the body has {body_length} bytes")
    return int(text)


def _parameters(owner: Mapping[str, Any], name: str) -> dict[str, Any]:
    parameters = owner.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise malformed(f"parameters of {name} are not a JSON object")
    return parameters


def _images(document: Mapping[str, Any], binary: memoryview, max_images: int) -> tuple[bytes, ...]:
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or not all(isinstance(each, dict) for each in inputs):
        raise malformed("the request has no list of inputs")
    if len(inputs) != 1:
        raise malformed(f"the request has {len(inputs)} inputs; the model has one, {INPUT.name}")
    tensor = inputs[0]
    shape = tensor.get("shape")
    count = check_input(
        tensor.get("name"),
        tensor.get("datatype"),
        shape if isinstance(shape, list) else None,
        max_images,
    )
    parameters = _parameters(tensor, f"input {INPUT.name}")
    as_text = is_base64(parameters)
    size = parameters.get(_BINARY_SIZE)
    if size is not None:
        if tensor.get("data") is not None:
            raise malformed(f"input {INPUT.name} has both data and {_BINARY_SIZE}")
        _check_binary_size(size, len(binary))
        elements = unpack_elements(binary, count)
        if not as_text:
            return elements
        return tuple(decode_image(index, each) for index, each in enumerate(elements))
    if len(binary):
        raise malformed(f"{len(binary)} bytes follow the JSON, and no input claims them")
    data = tensor.get("data")
    if not isinstance(data, list):
        raise malformed(f"input {INPUT.name} has no data")
    check_count(data, count)
    return tuple(decode_image(index, _only(element)) for index, element in enumerate(data))


def _check_binary_size(size: object, present: int) -> None:
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise malformed(f"{_BINARY_SIZE} of input {INPUT.name} is {short_repr(size)}")
    if size != present:
        raise malformed(
            f"{_BINARY_SIZE} of input {INPUT.name} is {size}, but {present} bytes follow the JSON"
        )


def _only(element: Any) -> Any:
    """The element of a row with one element (shape [N, 1]), otherwise the element itself."""
    return element[0] if isinstance(element, list) and len(element) == 1 else element


def _outputs(document: Mapping[str, Any], *, binary: bool) -> tuple[RequestedOutput, ...]:
    outputs = document.get("outputs")
    if outputs is None or outputs == []:
        return all_outputs(binary=binary)
    if not isinstance(outputs, list) or not all(isinstance(each, dict) for each in outputs):
        raise malformed("outputs is not a list of objects")
    return check_outputs(_output(each, binary=binary) for each in outputs)


def _output(requested: Mapping[str, Any], *, binary: bool) -> RequestedOutput:
    spec = find_output(requested.get("name"))
    parameters = _parameters(requested, f"output {spec.name}")
    check_output_parameters(spec, parameters)
    return RequestedOutput(spec, read_flag(parameters, "binary_data", binary))


def _entry(tensor: OutputTensor) -> dict[str, Any]:
    return {
        "name": tensor.spec.name,
        "datatype": tensor.spec.datatype,
        "shape": tensor.shape,
    }
